"""Pod templates of head, workers and submitter, hardened for PodSecurity `restricted`; pure functions of a runtime."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

from inpaint.cluster.quantity import cores, quantity
from inpaint.cluster.runtime import Head, PodShape, Runtime, WorkerGroup
from inpaint.cluster.task import FILE_FOLDER, MAX_NODES, STOP_FOLDER, Task

Object = dict[str, Any]
HOME = "/home/inpaint"
CACHE = "/cache"
SCRATCH = (CACHE, "/tmp", HOME, "/dev/shm")  # where a worker may write; gone with its pod
CA_FOLDER = "/etc/inpaint-ca"
DRIVER_LOG = "driver-log"
RAY_LOGS = "ray-logs"
FOLLOW_DRIVER = (  # a new head container starts a new session, whose driver may have the same name
    "pid=; trap 'kill $pid 2>/dev/null; exit 0' TERM; shown=; while true; do "
    "newest=$(readlink -f $(ls -t /tmp/ray/session_latest/logs/job-driver-*.log 2>/dev/null | head -1) 2>/dev/null); "
    'if [ -n "$newest" ] && [ "$newest" != "$shown" ]; then '
    '[ -n "$pid" ] && kill $pid; tail -n +1 -F "$newest" 2>/dev/null & pid=$!; shown=$newest; fi; '
    "sleep 2 & wait $!; done"
)
KEEP = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "karpenter.sh/do-not-disrupt": "true"}


def head_template(runtime: Runtime, *, task: Task, labels: dict[str, str], workers: Mapping[str, int]) -> Object:
    """Pod template of the Ray head. It needs the API server only for the autoscaler.

    Args:
        runtime: the platform's half.
        task: what to run.
        labels: of the pod.
        workers: most pods of each worker group.
    """
    head = runtime.head
    env = _ray_env(runtime) | _store_env(runtime) | {
        "RAY_DASHBOARD_MAX_EVENTS_TO_CACHE": str(head.dashboard_events),
        "RAY_JOB_STOP_SIGNAL": "SIGINT",  # Ray's own SIGTERM handling would abort the driver
        "RAY_JOB_STOP_WAIT_TIME_S": str(runtime.shutdown.drain_seconds + runtime.shutdown.checkpoint_seconds),
        "TORCH_HOME": "/tmp/torch",
    }  # fmt: skip
    if runtime.autoscaler.enabled:  # whose workers are not there yet when a sweep asks what the cluster holds
        groups = [runtime.worker_groups[name] for name, count in workers.items() for _ in range(count)]
        env[MAX_NODES] = json.dumps([{"CPU": group.cpus, "GPU": group.gpus} for group in groups])
    container = _container("ray-head", runtime, head, env=env, secrets=True) | {
        "ports": [
            {"containerPort": 6379, "name": "gcs-server"},
            {"containerPort": 8265, "name": "dashboard"},
            {"containerPort": 10001, "name": "client"},
            {"containerPort": 8080, "name": "metrics"},
        ]
    }
    pod = _pod(runtime, head, container, account=runtime.service_accounts.head, task=task)
    pod["containers"].append(_driver_log(runtime))
    if runtime.autoscaler.enabled:  # the operator shares this folder with the autoscaler, by this name
        for each in (container, pod["containers"][-1]):
            each["volumeMounts"].append({"name": RAY_LOGS, "mountPath": "/tmp/ray"})
        pod["volumes"].append({"name": RAY_LOGS, "emptyDir": {}})
    pod["automountServiceAccountToken"] = runtime.autoscaler.enabled
    pod["terminationGracePeriodSeconds"] = runtime.shutdown.grace_seconds
    return _template(runtime, head, pod, labels | {"app.kubernetes.io/component": "head"}, KEEP)


def worker_template(runtime: Runtime, group: WorkerGroup, *, task: Task, labels: dict[str, str]) -> Object:
    """Pod template of one worker group; a spot group tells Ray before it goes."""
    env = _ray_env(runtime) | _store_env(runtime) | {
        "TORCHINDUCTOR_CACHE_DIR": f"{CACHE}/inductor",
        "TRITON_CACHE_DIR": f"{CACHE}/triton",
        "NUMBA_CACHE_DIR": f"{CACHE}/numba",
        "TORCH_HOME": f"{CACHE}/torch",
        "TMPDIR": CACHE,  # where the shard cache and checkpoints on their way lie unless a run says otherwise
        "RAY_TMPDIR": "/tmp",  # Ray's sessions stay where their short socket paths fit
    }  # fmt: skip
    container = _container("ray-worker", runtime, group, env=env, secrets=True)
    if group.gpus:
        for side in ("requests", "limits"):
            container["resources"][side][group.gpu_resource] = str(group.gpus)
    container["ports"] = [{"containerPort": 8080, "name": "metrics"}]
    if group.spot:
        container["lifecycle"] = {"preStop": {"exec": {"command": ["/bin/bash", "-c", _drain(runtime)]}}}
    pod = _pod(runtime, group, container, account=runtime.service_accounts.worker, task=task)
    pod["terminationGracePeriodSeconds"] = runtime.shutdown.grace_seconds
    _mount(pod, container, "cache", CACHE, _cache_volume(group))
    labels = labels | {"app.kubernetes.io/component": "worker", "inpaint/spot": str(group.spot).lower()}
    return _template(runtime, group, pod, labels, {} if group.spot else KEEP)


def submitter_template(runtime: Runtime, *, labels: dict[str, str]) -> Object:
    """Pod template of the submitter: no store, no secrets; the operator adds its command and the dashboard's token."""
    env = {"HOME": HOME, "RAY_USAGE_STATS_ENABLED": "0"}
    container = _container("ray-job-submitter", runtime, runtime.submitter, env=env, secrets=False)
    pod = _pod(runtime, runtime.submitter, container, account=runtime.service_accounts.submitter, task=None)
    pod["restartPolicy"] = "Never"
    return _template(runtime, runtime.submitter, pod, labels | {"app.kubernetes.io/component": "submitter"}, KEEP)


def stop_map(job_name: str) -> str:
    """Name of the ConfigMap whose appearance asks a task to stop; pods see it within about a minute."""
    return f"{job_name}-stop"


def security_context(runtime: Runtime) -> Object:
    """What PodSecurity `restricted` asks of every container, and a read-only root besides."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "runAsUser": runtime.run_as_user,
        "runAsGroup": runtime.run_as_user,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def object_store_bytes(shape: Head | WorkerGroup) -> int:
    """Ray's object store, bytes: 70 % of /dev/shm; the rest is left to NCCL and batches."""
    return int(quantity(shape.shm) * 0.7)


def _container(name: str, runtime: Runtime, shape: PodShape, *, env: dict[str, str], secrets: bool) -> Object:
    size = {"cpu": cores(shape.cpus), "memory": shape.memory}
    entries: list[Object] = [{"name": key, "value": value} for key, value in (env | runtime.env).items()]
    entries += _secret_env(runtime) if secrets else []
    container: Object = {
        "name": name,
        "image": runtime.image.reference,
        "imagePullPolicy": runtime.image.pull_policy,
        "env": entries + copy.deepcopy(shape.extra_env),
        "resources": {"requests": dict(size), "limits": dict(size)},
        "securityContext": security_context(runtime),
        "volumeMounts": [],
    }
    if shape.extra_env_from:
        container["envFrom"] = copy.deepcopy(shape.extra_env_from)
    return container


def _pod(runtime: Runtime, shape: PodShape, container: Object, *, account: str, task: Task | None) -> Object:
    pod: Object = {
        "serviceAccountName": account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "fsGroup": runtime.fs_group,
            "fsGroupChangePolicy": "OnRootMismatch",
            "runAsNonRoot": True,
            "runAsUser": runtime.run_as_user,
            "runAsGroup": runtime.run_as_user,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container, *_hardened(runtime, shape.sidecars)],
        "volumes": [],
    }
    if shape.init_containers:
        pod["initContainers"] = _hardened(runtime, shape.init_containers)
    if runtime.image.pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in runtime.image.pull_secrets]
    for field in ("node_selector", "tolerations", "affinity", "topology_spread_constraints", "priority_class_name",
                  "scheduler_name", "runtime_class_name"):  # fmt: skip
        value = getattr(shape, field)
        if value:
            pod[type(shape).model_fields[field].alias or field] = copy.deepcopy(value)
    _mount(pod, container, "tmp", "/tmp", {"emptyDir": {}})
    _mount(pod, container, "home", HOME, {"emptyDir": {}})
    _mount(pod, container, "shm", "/dev/shm", {"emptyDir": {"medium": "Memory", "sizeLimit": shape.shm}})
    if task is not None:
        _mount(pod, container, "run-file", FILE_FOLDER, {"configMap": {"name": task.file_map}}, read_only=True)
        wish = {"configMap": {"name": stop_map(task.job_name), "optional": True}}
        _mount(pod, container, "stop", STOP_FOLDER, wish, read_only=True)
        _mount_store(runtime, pod, container)
    pod["volumes"] += copy.deepcopy(shape.extra_volumes)
    container["volumeMounts"] += copy.deepcopy(shape.extra_volume_mounts)
    return pod


def _template(runtime: Runtime, shape: PodShape, pod: Object, labels: dict[str, str], notes: dict[str, str]) -> Object:
    metadata: Object = {"labels": runtime.labels | labels | shape.labels}
    if notes or shape.annotations:
        metadata["annotations"] = notes | shape.annotations
    return {"metadata": metadata, "spec": pod}


def _hardened(runtime: Runtime, containers: list[Object]) -> list[Object]:
    """A site's own containers under the same security context, whatever they brought."""
    return [copy.deepcopy(each) | {"securityContext": security_context(runtime)} for each in containers]


def _mount(pod: Object, container: Object, name: str, path: str, source: Object, *, read_only: bool = False) -> None:
    pod["volumes"].append({"name": name, **source})
    container["volumeMounts"].append({"name": name, "mountPath": path} | ({"readOnly": True} if read_only else {}))


def _mount_store(runtime: Runtime, pod: Object, container: Object) -> None:
    store = runtime.store
    if store.existing_claim:
        claim = {"persistentVolumeClaim": {"claimName": store.existing_claim}}
        _mount(pod, container, "store", store.mount_path, claim)
    if runtime.s3.ca_bundle_config_map:
        bundle = {"configMap": {"name": runtime.s3.ca_bundle_config_map}}
        _mount(pod, container, "ca", CA_FOLDER, bundle, read_only=True)


def _cache_volume(group: WorkerGroup) -> Object:
    if not group.cache.storage_class:
        return {"emptyDir": {"sizeLimit": group.cache.size}}
    claim = {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": group.cache.storage_class,
        "resources": {"requests": {"storage": group.cache.size}},
    }
    return {"ephemeral": {"volumeClaimTemplate": {"spec": claim}}}


def _ray_env(runtime: Runtime) -> dict[str, str]:
    """Ray's settings; of Train's those that the chart has values for, the rest is in `ray_jobs.runtime`.

    A run's driver reads them on the head, a sweep's trial on a worker, so both get them.
    """
    return {
        "HOME": HOME,
        "PYTHONUNBUFFERED": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(runtime.shutdown.drain_seconds),
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(runtime.timeouts.worker_start_seconds),
        "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": str(runtime.timeouts.collective_seconds),
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
        "WANDB_DIR": "/tmp",
    }


def _store_env(runtime: Runtime) -> dict[str, str]:
    env = {
        "INPAINT_ROOT": runtime.store.root,
        "AWS_ENDPOINT_URL_S3": runtime.s3.endpoint,
        "AWS_REGION": runtime.s3.region,
        "AWS_DEFAULT_REGION": runtime.s3.region,
        "AWS_CA_BUNDLE": f"{CA_FOLDER}/ca.crt" if runtime.s3.ca_bundle_config_map else "",
        "WANDB_BASE_URL": runtime.wandb.base_url,
    }
    return {name: value for name, value in env.items() if value}


def _secret_env(runtime: Runtime) -> list[Object]:
    """Environment entries that point at Secrets; no value is ever copied."""
    s3, wandb = runtime.s3, runtime.wandb
    wanted = [
        ("AWS_ACCESS_KEY_ID", s3.existing_secret, s3.access_key_id_key),
        ("AWS_SECRET_ACCESS_KEY", s3.existing_secret, s3.secret_access_key_key),
        ("AWS_SESSION_TOKEN", s3.existing_secret, s3.session_token_key),
        ("WANDB_API_KEY", wandb.existing_secret, wandb.api_key_key),
    ]
    return [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
        for name, secret, key in wanted
        if secret and key
    ]


def _driver_log(runtime: Runtime) -> Object:
    """A container that prints the driver's log, so that it can be read where there is no submitter."""
    size = {"cpu": "50m", "memory": "64Mi"}
    return {
        "name": DRIVER_LOG,
        "image": runtime.image.reference,
        "imagePullPolicy": runtime.image.pull_policy,
        "command": ["/bin/bash", "-c", FOLLOW_DRIVER],
        "resources": {"requests": dict(size), "limits": dict(size)},
        "securityContext": security_context(runtime),
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp", "readOnly": True}],
    }


def _drain(runtime: Runtime) -> str:
    """preStop of a spot worker: tell Ray that the node goes, then stay until a checkpoint can be written."""
    deadline = runtime.shutdown.drain_seconds + runtime.shutdown.checkpoint_seconds
    return (
        "ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message 'the node is being taken away' "
        f"--deadline-remaining-seconds {deadline}; sleep {runtime.shutdown.checkpoint_seconds}"
    )
