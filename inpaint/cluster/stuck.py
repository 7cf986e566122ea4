"""Why a run does not start: one sentence with the next step, from its pods and events. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Object = dict[str, Any]
IMAGE_TROUBLE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")


def reasons(pods: Iterable[Object], events: Iterable[Object]) -> list[str]:
    """What holds a run up, the most telling first; empty when nothing does.

    Args:
        pods: of the run, as the API server gives them.
        events: of the run's RayJob, RayCluster, submitter Job and pods.
    """
    found: dict[str, None] = {}
    for pod in pods:
        for sentence in (*_unscheduled(pod), *_containers(pod)):
            found.setdefault(sentence)
    for event in sorted(events, key=event_time, reverse=True):
        if event.get("type") != "Normal":
            for sentence in _event(event):
                found.setdefault(sentence)
    return list(found)


def event_time(event: Object) -> str:
    """When an event last happened, as sortable text; events name it in one of three fields."""
    return str(event.get("lastTimestamp") or event.get("eventTime") or event.get("firstTimestamp") or "")


def _unscheduled(pod: Object) -> Iterator[str]:
    for condition in pod.get("status", {}).get("conditions") or []:
        if condition.get("type") != "PodScheduled" or condition.get("status") != "False":
            continue
        name, message = pod["metadata"]["name"], condition.get("message", "")
        if condition.get("reason") == "SchedulingGated":
            yield f"{name} waits for a scheduling gate; its queue has not admitted it yet"
        elif gpu := re.search(r"Insufficient (\S+/(?:\S*gpu|mig-)\S*)", message):
            yield f"{name} is unschedulable: no node has enough free {gpu[1].rstrip('.,')} ({message})"
        else:
            yield f"{name} is unschedulable: {message or 'no node fits'}"


def _containers(pod: Object) -> Iterator[str]:
    name, status = pod["metadata"]["name"], pod.get("status", {})
    if status.get("reason") == "Evicted":
        yield f"{name} was evicted: {status.get('message', '')}"
    for container in (status.get("initContainerStatuses") or []) + (status.get("containerStatuses") or []):
        waiting = (container.get("state") or {}).get("waiting") or {}
        reason, message = waiting.get("reason", ""), waiting.get("message", "")
        ended = (container.get("lastState") or {}).get("terminated") or (container.get("state") or {}).get("terminated")
        if reason in IMAGE_TROUBLE:
            yield f"{name} cannot pull {container.get('image', 'its image')}: {message or reason}; check image.* values"
        elif reason == "CreateContainerConfigError":
            yield f"{name} misses a Secret or ConfigMap: {message}; create it in this namespace"
        elif reason == "CrashLoopBackOff":
            yield f"{name}/{container.get('name')} keeps crashing: {message}; see `inpaint logs`"
        if ended and ended.get("reason") == "OOMKilled":
            yield f"{name}/{container.get('name')} ran out of memory; raise its memory value"


def _event(event: Object) -> Iterator[str]:
    message = str(event.get("message") or "")
    for pattern, explain in EVENTS:
        if re.search(pattern, message) or re.search(pattern, str(event.get("reason") or "")):
            yield explain(message)
            return


def _quota(message: str) -> str:
    part = re.search(r"exceeded quota: (.*)", message)
    return f"the namespace's quota is used up: {part[1] if part else message}; wait, or ask for more"


def _security(message: str) -> str:
    part = re.search(r"violates PodSecurity (.*)", message)
    return f"PodSecurity forbids a pod: {part[1] if part else message}; remove what the values added to that pod"


def _mount(message: str) -> str:
    return f"a volume cannot be mounted: {message}"


def _admission(message: str) -> str:
    return f"the cluster refuses a pod: {message}"


def _invalid(message: str) -> str:
    return f"KubeRay refuses the run: {message}"


def _queue(message: str) -> str:
    return f"the queue has not admitted the run: {message}"


EVENTS: tuple[tuple[str, Callable[[str], str]], ...] = (
    (r"exceeded quota", _quota),
    (r"violates PodSecurity", _security),
    (r"FailedMount|FailedAttachVolume", _mount),
    (r"InvalidRayJob|InvalidRayCluster", _invalid),
    (r"couldn't assign flavors|QuotaReserved|insufficient quota|insufficient unused quota", _queue),
    (r"is forbidden|admission webhook .* denied|FailedCreate", _admission),
)
