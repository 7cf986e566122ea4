"""The rules that KubeRay 1.7's operator checks after the API server has said yes.

Break one and the RayJob sits there as ValidationFailed, or never starts; so they are checked on the laptop. Each rule
is a function that yields one sentence per breach; `RULES` is the table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml

Object = dict[str, Any]
LABEL_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
LABEL_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
LONGEST_JOB_NAME = 47
RESOURCE_PARAMS = ("num-cpus", "num-gpus", "memory", "resources")


def violations(job: Object) -> list[str]:
    """Everything KubeRay would refuse in a RayJob, one sentence each; empty when it would run."""
    return [sentence for rule in RULES for sentence in rule(job)]


def name_is_a_short_label(job: Object) -> Iterator[str]:
    name = job["metadata"]["name"]
    if len(name) > LONGEST_JOB_NAME:
        yield f"the name {name} has {len(name)} characters; at most {LONGEST_JOB_NAME} are allowed"
    if not LABEL_1035.fullmatch(name):
        yield f"the name {name} is not a DNS-1035 label (a-z, 0-9, -, a letter first)"


def submission_mode_is_known(job: Object) -> Iterator[str]:
    mode = job["spec"].get("submissionMode", "K8sJobMode")
    if mode not in MODES:
        yield f"submissionMode {mode} is unknown; one of {', '.join(MODES)}"


def suspend_needs_shutdown(job: Object) -> Iterator[str]:
    spec = job["spec"]
    if spec.get("suspend") and not spec.get("shutdownAfterJobFinishes"):
        yield "suspend needs shutdownAfterJobFinishes: true"


def times_are_possible(job: Object) -> Iterator[str]:
    spec = job["spec"]
    for field in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if field in spec and spec[field] <= 0:
            yield f"{field} {spec[field]} must be positive"
    if spec.get("backoffLimit", 0) < 0:
        yield f"backoffLimit {spec['backoffLimit']} must not be negative"
    after = spec.get("ttlSecondsAfterFinished", 0)
    if after < 0:
        yield f"ttlSecondsAfterFinished {after} must not be negative"
    if after > 0 and not spec.get("shutdownAfterJobFinishes"):
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes: true"


def deletion_is_said_once(job: Object) -> Iterator[str]:
    strategy = job["spec"].get("deletionStrategy")
    if strategy is None:
        return
    rules, legacy = strategy.get("deletionRules") or [], [key for key in ("onSuccess", "onFailure") if key in strategy]
    if rules and job["spec"].get("shutdownAfterJobFinishes"):
        yield "deletionRules and shutdownAfterJobFinishes exclude each other"
    if rules and legacy:
        yield "deletionRules and onSuccess/onFailure exclude each other"
    if not rules and len(legacy) != 2:
        yield "deletionStrategy needs deletionRules, or both onSuccess and onFailure"


def deletion_rules_are_possible(job: Object) -> Iterator[str]:
    spec = job["spec"]
    rules = (spec.get("deletionStrategy") or {}).get("deletionRules") or []
    waits: dict[tuple[str, str], dict[str, int]] = {}
    for position, rule in enumerate(rules):
        condition, policy, place = rule["condition"], rule["policy"], f"deletionRules[{position}]"
        named = [(key, condition[key]) for key in ("jobStatus", "jobDeploymentStatus") if key in condition]
        if len(named) != 1:
            yield f"{place} needs exactly one of jobStatus and jobDeploymentStatus"
            continue
        if condition.get("ttlSeconds", 0) < 0:
            yield f"{place} has a negative ttlSeconds"
        if spec.get("clusterSelector") and policy in ("DeleteCluster", "DeleteWorkers"):
            yield f"{place}: {policy} is not possible with clusterSelector"
        if policy == "DeleteWorkers" and _cluster(job).get("enableInTreeAutoscaling"):
            yield f"{place}: DeleteWorkers is not possible with the autoscaler"
        if policy in waits.setdefault(named[0], {}):
            yield f"{place} repeats {policy} for {named[0][1]}"
        waits[named[0]][policy] = condition.get("ttlSeconds", 0)
    for (_, status), seconds in waits.items():
        order = [seconds[policy] for policy in ("DeleteWorkers", "DeleteCluster", "DeleteSelf") if policy in seconds]
        if order != sorted(order):
            yield f"deletionRules for {status}: workers must go before the cluster and the cluster before the RayJob"


def cluster_is_made_or_chosen(job: Object) -> Iterator[str]:
    spec, selector = job["spec"], job["spec"].get("clusterSelector")
    if not selector:
        if "rayClusterSpec" not in spec:
            yield "one of rayClusterSpec and clusterSelector must be there"
        return
    if not selector.get("ray.io/cluster"):
        yield "clusterSelector needs ray.io/cluster: <name>"
    if spec.get("suspend"):
        yield "clusterSelector cannot be suspended"
    if spec.get("backoffLimit", 0) > 0:
        yield "clusterSelector allows no backoffLimit"
    if spec.get("submissionMode") == "SidecarMode":
        yield "clusterSelector is not possible in SidecarMode"


def mode_fits_the_rest(job: Object) -> Iterator[str]:
    spec, mode = job["spec"], job["spec"].get("submissionMode", "K8sJobMode")
    if mode == "InteractiveMode" and spec.get("backoffLimit", 0) > 0:
        yield "InteractiveMode allows no backoffLimit"
    if mode != "SidecarMode":
        return
    for field in ("submitterPodTemplate", "submitterConfig"):
        if field in spec:
            yield f"SidecarMode allows no {field}"
    if _head(job).get("template", {}).get("spec", {}).get("restartPolicy", "Never") != "Never":
        yield "SidecarMode needs restartPolicy Never on the head"
    if _head(job).get("template", {}).get("spec", {}).get("securityContext", {}).get("runAsNonRoot"):
        yield "SidecarMode adds a container that PodSecurity restricted refuses; the job would stay Initializing"


def authentication_is_possible(job: Object) -> Iterator[str]:
    cluster = _cluster(job)
    options = cluster.get("authOptions") or {}
    if options.get("enableK8sTokenAuth"):
        yield "enableK8sTokenAuth is not possible for a RayJob"
    if options.get("mode") == "token" and _version(cluster) < (2, 52):
        yield f"authOptions.mode token needs rayVersion 2.52.0 or later, not {cluster.get('rayVersion', 'none')}"


def groups_are_possible(job: Object) -> Iterator[str]:
    cluster = _cluster(job)
    if not cluster:
        return
    scaling = bool(cluster.get("enableInTreeAutoscaling"))
    yield from _group_rules("head", _head(job))
    for group in cluster.get("workerGroupSpecs") or []:
        name = group.get("groupName", "(no name)")
        yield from _group_rules(name, group)
        least, most = group.get("minReplicas"), group.get("maxReplicas")
        if not scaling and (least is None or most is None):
            yield f"group {name} needs minReplicas and maxReplicas without the autoscaler"
        if (least or 0) < 0 or (most or 0) < 0:
            yield f"group {name} has negative replicas"
        if least is not None and most is not None and least > most:
            yield f"group {name} has minReplicas {least} above maxReplicas {most}"
        if group.get("suspend") and scaling:
            yield f"group {name} cannot be suspended with the autoscaler"
        yield from _autoscaler_only(name, group, cluster)


def autoscaler_is_possible(job: Object) -> Iterator[str]:
    cluster = _cluster(job)
    env = {entry["name"]: entry.get("value") for entry in _first_container(_head(job)).get("env", [])}
    options = cluster.get("autoscalerOptions") or {}
    if options.get("idleTimeoutSeconds", 0) < 0:
        yield "autoscalerOptions.idleTimeoutSeconds must not be negative"
    if any(entry["name"] == "KUBERAY_GEN_AUTOSCALER_START_CMD" for entry in options.get("env", [])):
        yield "autoscalerOptions.env must not set KUBERAY_GEN_AUTOSCALER_START_CMD"
    if not cluster.get("enableInTreeAutoscaling"):
        if env.get("RAY_enable_autoscaler_v2") in ("1", "true"):
            yield "RAY_enable_autoscaler_v2 needs enableInTreeAutoscaling: true"
        return
    if options.get("version") and "RAY_enable_autoscaler_v2" in env:
        yield "autoscalerOptions.version and RAY_enable_autoscaler_v2 exclude each other"
    for name, group in [("head", _head(job))] + [(g["groupName"], g) for g in cluster.get("workerGroupSpecs") or []]:
        if group.get("template", {}).get("spec", {}).get("restartPolicy", "Never") != "Never":
            yield f"{name}: the autoscaler needs restartPolicy Never, or none"


def redis_is_not_half_set(job: Object) -> Iterator[str]:
    names = {entry["name"] for entry in _first_container(_head(job)).get("env", [])}
    options = _cluster(job).get("gcsFaultToleranceOptions")
    if "RAY_REDIS_ADDRESS" in names:
        yield "RAY_REDIS_ADDRESS is set by gcsFaultToleranceOptions only" if options else (
            "RAY_REDIS_ADDRESS needs gcsFaultToleranceOptions"
        )
    for name in ("redis-password", "REDIS_PASSWORD") if options else ():
        if name in names or _head(job).get("rayStartParams", {}).get(name):
            yield f"{name} is set by gcsFaultToleranceOptions only"
    if "REDIS_USERNAME" in names or _head(job).get("rayStartParams", {}).get("redis-username"):
        yield "a Redis user name is set by gcsFaultToleranceOptions only"


def runtime_env_is_a_mapping(job: Object) -> Iterator[str]:
    text = job["spec"].get("runtimeEnvYAML", "")
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        yield "runtimeEnvYAML is not YAML"
        return
    if found is not None and not isinstance(found, dict):
        yield "runtimeEnvYAML is not a mapping"


def gated_features_are_off(job: Object) -> Iterator[str]:
    for field in ("networkPolicy", "tlsOptions", "historyServerOptions"):
        if field in _cluster(job):
            yield f"rayClusterSpec.{field} needs a feature gate that is off by default"
    if (_cluster(job).get("upgradeStrategy") or {}).get("type"):
        yield "upgradeStrategy is not possible in a RayJob"


def _group_rules(name: str, group: Object) -> Iterator[str]:
    params = group.get("rayStartParams") or {}
    if not group.get("template", {}).get("spec", {}).get("containers"):
        yield f"group {name} has no container"
    if group.get("resources") and any(params.get(key) for key in RESOURCE_PARAMS):
        yield f"group {name} sets resources both in rayStartParams and in resources"
    if "labels" in params:
        yield f"group {name} sets rayStartParams.labels; use labels"
    for key, value in (group.get("labels") or {}).items():
        if not LABEL_KEY.fullmatch(key) or len(key.rsplit("/", 1)[-1]) > 63:
            yield f"group {name} has a label with an impossible key {key}"
        if not LABEL_VALUE.fullmatch(value) or len(value) > 63:
            yield f"group {name} has a label {key} with an impossible value {value}"


def _autoscaler_only(name: str, group: Object, cluster: Object) -> Iterator[str]:
    """Fields that autoscaler v2 alone understands; v2 is what Ray from 2.47 uses unless told otherwise."""
    version = (cluster.get("autoscalerOptions") or {}).get("version", "v2" if _version(cluster) >= (2, 47) else "v1")
    second = bool(cluster.get("enableInTreeAutoscaling")) and version == "v2"
    if group.get("idleTimeoutSeconds", 0) < 0:
        yield f"group {name} has a negative idleTimeoutSeconds"
    if "idleTimeoutSeconds" in group and not second:
        yield f"group {name} sets idleTimeoutSeconds without autoscaler v2"
    if group.get("priority") and (not second or _version(cluster) < (2, 56)):
        yield f"group {name} sets priority, which needs autoscaler v2 and Ray 2.56 or later"


def _cluster(job: Object) -> Object:
    cluster: Object = job["spec"].get("rayClusterSpec") or {}
    return cluster


def _head(job: Object) -> Object:
    head: Object = _cluster(job).get("headGroupSpec") or {}
    return head


def _first_container(group: Object) -> Object:
    containers: list[Object] = group.get("template", {}).get("spec", {}).get("containers") or [{}]
    return containers[0]


def _version(cluster: Object) -> tuple[int, ...]:
    match = re.match(r"(\d+)\.(\d+)", str(cluster.get("rayVersion", "")))
    return (int(match[1]), int(match[2])) if match else (0, 0)


RULES: tuple[Callable[[Object], Iterator[str]], ...] = (
    name_is_a_short_label,
    submission_mode_is_known,
    suspend_needs_shutdown,
    times_are_possible,
    deletion_is_said_once,
    deletion_rules_are_possible,
    cluster_is_made_or_chosen,
    mode_fits_the_rest,
    authentication_is_possible,
    groups_are_possible,
    autoscaler_is_possible,
    redis_is_not_half_set,
    runtime_env_is_a_mapping,
    gated_features_are_off,
)
