"""One RayJob and its ConfigMap from a task and a runtime. Pure: no server, no clock, no environment."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import yaml

from inpaint import __version__
from inpaint.cluster.pods import (
    HOME,
    head_template,
    object_store_bytes,
    security_context,
    submitter_template,
    worker_template,
)
from inpaint.cluster.quantity import quantity
from inpaint.cluster.rules import violations
from inpaint.cluster.runtime import Runtime, WorkerGroup
from inpaint.cluster.secrets import refuse_secrets
from inpaint.cluster.task import FILE_NAME, Task
from inpaint.config.sweep import DRIVER_CPUS
from inpaint.errors import ClusterError, ConfigError

Object = dict[str, Any]
RUN_LABEL, KIND_LABEL, TRIALS = "inpaint/run", "inpaint/kind", "inpaint/trials"
DIGEST, URL, QUEUE_SECONDS, STOP_ASKED = "inpaint/digest", "inpaint/url", "inpaint/queue-seconds", "inpaint/stop-asked"
CONFIG_MAP_LIMIT = 1_000_000  # bytes; the API server refuses more


@dataclass(frozen=True)
class Placement:
    """Which worker group runs a task, and with how many pods."""

    group: str
    workers_per_pod: int
    replicas: int


@dataclass(frozen=True)
class Manifests:
    """What is created on the cluster for one task."""

    job: Object
    config_map: Object

    def to_yaml(self) -> str:
        """Both as one YAML stream, without anchors."""
        return yaml.dump_all([self.config_map, self.job], Dumper=_Plain, sort_keys=False)


def build(task: Task, runtime: Runtime, *, namespace: str, spot: bool = False, group: str | None = None) -> Manifests:
    """The RayJob that runs a task on its own cluster, and the ConfigMap that holds its run file.

    Args:
        task: what to run.
        runtime: the platform's half.
        namespace: where.
        spot: choose among the groups that may be taken away.
        group: choose this worker group.

    Raises:
        ConfigError: a secret written out, or a run file too large.
        ClusterError: no worker group can hold the task, or KubeRay would refuse the result.
    """
    placement = place(task, runtime, spot=spot, group=group)
    labels = runtime.labels | {RUN_LABEL: task.name, KIND_LABEL: task.kind, "app.kubernetes.io/managed-by": "inpaint"}
    config_map = _config_map(task, namespace, labels)
    job: Object = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {
            "name": task.job_name,
            "namespace": namespace,
            "labels": labels | _queue_labels(runtime),
            "annotations": _annotations(task, runtime),
        },
        "spec": _job_spec(task, runtime, placement, labels),
    }
    refuse_secrets([config_map, job], place=f"{task.kind} {task.name}")
    broken = violations(job)
    if broken:
        raise ClusterError(f"{task.job_name}: KubeRay would refuse this RayJob: " + "; ".join(broken))
    return Manifests(job, config_map)


def place(task: Task, runtime: Runtime, *, spot: bool = False, group: str | None = None) -> Placement:
    """The worker group that holds a task with the fewest idle GPUs and pods.

    Raises:
        ClusterError: none can; says what each one lacks.
    """
    if group is not None and group not in runtime.worker_groups:
        raise ClusterError(f"--group {group} is not in the runtime; groups: {', '.join(runtime.worker_groups)}")
    fits: list[tuple[float, Placement]] = []
    lacks: list[str] = []
    for name, candidate in runtime.worker_groups.items():
        if group not in (None, name):
            continue
        reason = _misfit(task, candidate, spot=candidate.spot if group else spot)
        per_pod = 0 if reason else _workers_per_pod(task, candidate)
        replicas = math.ceil(task.workers / per_pod) if per_pod else 0
        if not reason and replicas > candidate.max_replicas:
            reason = f"{replicas} pods are more than maxReplicas {candidate.max_replicas}"
        if reason:
            lacks.append(f"{name}: {reason}")
        else:
            fits.append((candidate.gpus * replicas + replicas / 1000, Placement(name, per_pod, replicas)))
    if not fits:
        wanted = f"{task.workers} workers of {task.gpus:g} GPUs and {task.cpus:g} CPUs"
        raise ClusterError(f"no worker group of the runtime can hold {wanted}: " + "; ".join(lacks))
    return min(fits, key=lambda fit: fit[0])[1]


def _misfit(task: Task, group: WorkerGroup, *, spot: bool) -> str:
    """Why a group cannot hold one worker of the task; empty when it can."""
    if spot != group.spot:
        return "is a spot group, ask for it with --spot" if group.spot else "is not a spot group"
    if bool(task.gpus) != bool(group.gpus):
        return "has no GPUs" if task.gpus else "is kept for GPU work (resources.gpus_per_worker is 0)"
    if task.gpus > group.gpus:
        return f"has {group.gpus} GPUs a pod"
    if task.cpus > group.cpus:
        return f"has {group.cpus:g} CPUs a pod"
    if task.drivers and (full := _workers_per_pod(task, group)) * (task.cpus + _driver_share(task)) > group.cpus:
        return (
            f"{full} workers of {task.cpus:g} CPUs fill the {group.cpus:g} of a pod, and each trial's driver takes "
            f"{DRIVER_CPUS:g}; lower resources.cpus_per_worker a little"
        )
    if task.cache_gib * 2**30 > quantity(group.cache.size):
        return f"has a cache of {group.cache.size}, less than data.cache_gib {task.cache_gib:g}"
    return ""


def _driver_share(task: Task) -> float:
    """CPUs of a trial's driver, which Ray may place beside its workers, for each of them."""
    return DRIVER_CPUS * task.drivers / task.workers


def _workers_per_pod(task: Task, group: WorkerGroup) -> int:
    by_cpu = math.floor(group.cpus / task.cpus + 1e-9)
    return min(by_cpu, math.floor(group.gpus / task.gpus + 1e-9)) if task.gpus else by_cpu


def _config_map(task: Task, namespace: str, labels: dict[str, str]) -> Object:
    text = yaml.dump(dict(task.file), Dumper=_Plain, sort_keys=False, allow_unicode=True)
    if len(text.encode()) > CONFIG_MAP_LIMIT:
        raise ConfigError(f"{task.name}: the run file has {len(text)} bytes, more than a ConfigMap holds (1 MB)")
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": task.file_map, "namespace": namespace, "labels": dict(labels)},
        "immutable": True,
        "data": {FILE_NAME: text},
    }


def _annotations(task: Task, runtime: Runtime) -> dict[str, str]:
    notes = {DIGEST: task.digest, URL: task.url, "inpaint/runtime": runtime.name, "inpaint/version": __version__}
    preset = task.file.get("preset")
    if preset:
        notes["inpaint/preset"] = str(preset)
    if task.trials:
        notes[TRIALS] = str(task.trials)
    if runtime.queue.kind == "kueue":
        notes[QUEUE_SECONDS] = str(runtime.timeouts.queue_seconds)
    return notes


def _queue_labels(runtime: Runtime) -> dict[str, str]:
    label = {"none": "", "kueue": "kueue.x-k8s.io/queue-name", "volcano": "volcano.sh/queue-name"}[runtime.queue.kind]
    return {label: runtime.queue.name} if label else {}


def _job_spec(task: Task, runtime: Runtime, placement: Placement, labels: dict[str, str]) -> Object:
    spec: Object = {
        "entrypoint": task.command(),
        "submissionMode": runtime.submission_mode,
        "backoffLimit": runtime.retries.new_clusters,
        "activeDeadlineSeconds": runtime.timeouts.active_deadline_seconds,
        "preRunningDeadlineSeconds": runtime.timeouts.pre_running_deadline_seconds,
        **_ending(runtime),
        "rayClusterSpec": _cluster_spec(task, runtime, placement, labels),
    }
    if runtime.submission_mode == "K8sJobMode":
        spec["submitterConfig"] = {"backoffLimit": runtime.retries.submitter}
        spec["submitterPodTemplate"] = submitter_template(runtime, labels=labels)
    return spec


def _ending(runtime: Runtime) -> Object:
    """What is freed when, after the end. Kueue needs `suspend`, which KubeRay allows only with a whole shutdown."""
    if runtime.queue.kind == "kueue":
        return {"suspend": True, "shutdownAfterJobFinishes": True, "ttlSecondsAfterFinished": 0}
    keep = runtime.retention
    rules: list[Object] = []
    endings = (
        ("jobStatus", "SUCCEEDED", keep.succeeded_seconds),
        ("jobDeploymentStatus", "Failed", keep.failed_seconds),
    )
    for field, value, head_seconds in endings:
        waits = {"DeleteWorkers": 0, "DeleteCluster": head_seconds, "DeleteSelf": keep.record_seconds}
        if runtime.autoscaler.enabled:  # KubeRay refuses DeleteWorkers then; idle workers leave by themselves
            del waits["DeleteWorkers"]
        rules += [
            {"policy": policy, "condition": {field: value, "ttlSeconds": seconds}} for policy, seconds in waits.items()
        ]
    return {"deletionStrategy": {"deletionRules": rules}}


def _cluster_spec(task: Task, runtime: Runtime, placement: Placement, labels: dict[str, str]) -> Object:
    counts = {placement.group: placement.replicas}
    if task.drivers:
        name, count = _driver_pods(task, runtime, placement)
        counts[name] = count
    spec: Object = {
        "rayVersion": runtime.ray_version,
        "authOptions": {"mode": "token" if runtime.dashboard_token else "disabled"},
        "headGroupSpec": {
            "rayStartParams": {
                "num-cpus": "0",  # no training on the head
                "dashboard-host": "0.0.0.0",
                "object-store-memory": str(object_store_bytes(runtime.head)),
            },
            "template": head_template(runtime, task=task, labels=labels, workers=counts),
        },
        "workerGroupSpecs": [_worker_group(runtime, name, count, task, labels) for name, count in counts.items()],
    }
    if runtime.autoscaler.enabled:
        spec["enableInTreeAutoscaling"] = True
        spec["autoscalerOptions"] = _autoscaler(runtime)
    return spec


def _worker_group(runtime: Runtime, name: str, replicas: int, task: Task, labels: dict[str, str]) -> Object:
    group = runtime.worker_groups[name]
    least = 0 if runtime.autoscaler.enabled else replicas
    return {
        "groupName": name,
        "replicas": least,
        "minReplicas": least,
        "maxReplicas": replicas,
        "rayStartParams": {"object-store-memory": str(object_store_bytes(group))},
        "labels": {"inpaint/group": name},
        "template": worker_template(runtime, group, task=task, labels=labels),
    }


def _driver_pods(task: Task, runtime: Runtime, placement: Placement) -> tuple[str, int]:
    """A CPU group for trial drivers, so that they never hold the cores that GPU workers wait for."""
    for name, group in runtime.worker_groups.items():
        count = math.ceil(task.drivers / math.floor(group.cpus)) if group.cpus >= 1 else math.inf
        if not group.gpus and not group.spot and name != placement.group and count <= group.max_replicas:
            return name, int(count)
    raise ClusterError(
        f"{task.name}: no on-demand CPU group of the runtime can hold {task.drivers} trial drivers; add one "
        "(workerGroups.cpu with gpus: 0) or lower the sweep's concurrency"
    )


def _autoscaler(runtime: Runtime) -> Object:
    size = {"cpu": "500m", "memory": "512Mi"}
    return {
        "version": "v2",
        "idleTimeoutSeconds": runtime.autoscaler.idle_timeout_seconds,
        "imagePullPolicy": runtime.image.pull_policy,
        "resources": {"requests": dict(size), "limits": dict(size)},
        "securityContext": security_context(runtime),
        "env": [{"name": "HOME", "value": HOME}],
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, {"name": "home", "mountPath": HOME}],
    }


class _Plain(yaml.SafeDumper):
    """YAML without anchors: shared objects are written out each time, and long strings as blocks."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _block(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Plain.add_representer(str, _block)
