"""What state a run is in, in plain words, from everything known of it. Pure.

KubeRay's own words mislead in places: a stopped job ends `Complete`, a refused one stays `ValidationFailed` for ever,
a lost head shows as `Running` with `failed: 0`, and `Failed` may be said while the driver runs on. So the RayJob, its
cluster, its pods and the store are read together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from inpaint.cluster.manifest import KIND_LABEL, QUEUE_SECONDS, RUN_LABEL, STOP_ASKED, URL
from inpaint.cluster.stuck import reasons

Object = dict[str, Any]
FAILURES = {
    "AppFailed": "the entry point failed",
    "DeadlineExceeded": "it ran longer than timeouts.activeDeadlineSeconds allows",
    "PreRunningDeadlineExceeded": "it was not running within timeouts.preRunningDeadlineSeconds",
    "SubmissionFailed": "the submitter could not hand it to the head",
    "JobStatusCheckTimeoutExceeded": "the operator could not reach the head for five minutes",
    "JobDeploymentStatusTransitionGracePeriodExceeded": "Ray ended it, but the submitter never did",
    "ValidationFailed": "KubeRay refused it",
}
NOT_SEEN_SECONDS = 60  # after which an untouched RayJob means that no operator looks at it
NEW_HEAD_SECONDS = 60  # a head so much younger than its cluster has replaced another


@dataclass(frozen=True)
class Progress:
    """What a run last wrote about itself into its folder; None where it has not."""

    step: int | None = None
    total_steps: int | None = None
    stage: str | None = None
    images_per_second: float | None = None
    checkpoint_step: int | None = None
    checkpoint_time: float | None = None  # seconds since 1970
    preemptions: int | None = None
    verdict: str | None = None  # what ended it for good, although KubeRay tries it on a new cluster


@dataclass(frozen=True)
class Seen:
    """Everything the API server says about one run."""

    job: Object
    cluster: Object | None = None
    pods: Sequence[Object] = ()
    events: Sequence[Object] = ()


@dataclass(frozen=True)
class Summary:
    """One run in plain words.

    Attributes:
        state: one or two words.
        detail: a sentence, with the next step where there is one.
        finished: nothing more will happen by itself.
        holds: why it does not start or go on, the most telling first.
        gpu_hours: GPUs asked for, times hours since the start.
    """

    name: str
    kind: str
    run: str
    url: str
    state: str
    detail: str
    finished: bool
    workers_ready: int
    workers_wanted: int
    gpus: int
    gpu_hours: float
    attempt: int
    progress: Progress = field(default_factory=Progress)
    holds: tuple[str, ...] = ()


def summarize(seen: Seen, progress: Progress, *, now: datetime) -> Summary:
    """What there is to say about a run.

    Args:
        seen: from the API server.
        progress: from the store; empty where it cannot be read.
        now: with a time zone.
    """
    job, status = seen.job, seen.job.get("status") or {}
    holds = tuple(reasons(_live(seen.pods), seen.events))
    state, detail, finished = _state(seen, progress, holds, now)
    workers = [pod for pod in seen.pods if node_type(pod) == "worker"]
    labels = job["metadata"].get("labels") or {}
    gpus = gpus_wanted(job)
    return Summary(
        name=job["metadata"]["name"],
        kind=labels.get(KIND_LABEL, "?"),
        run=labels.get(RUN_LABEL, job["metadata"]["name"]),
        url=(job["metadata"].get("annotations") or {}).get(URL, ""),
        state=state,
        detail=detail,
        finished=finished,
        workers_ready=sum(_ready(pod) for pod in workers),
        workers_wanted=sum(group["maxReplicas"] for group in _groups(job)),
        gpus=gpus,
        gpu_hours=gpus * _seconds(status.get("startTime"), status.get("endTime"), now) / 3600,
        attempt=int(status.get("failed") or 0) + 1,
        progress=progress,
        holds=() if finished or state == "running" else holds,
    )


def is_finished(job: Object) -> bool:
    """Whether the operator is done with a RayJob. ValidationFailed is final too, though KubeRay does not count it."""
    return (job.get("status") or {}).get("jobDeploymentStatus") in ("Complete", "Failed", "ValidationFailed")


def is_overdue(job: Object, *, now: datetime) -> bool:
    """Whether a queue has kept a run waiting for longer than its runtime allows."""
    limit = (job["metadata"].get("annotations") or {}).get(QUEUE_SECONDS)
    waits = job["spec"].get("suspend") and (job.get("status") or {}).get("jobDeploymentStatus", "") in ("", "Suspended")
    return bool(limit and waits) and _seconds(job["metadata"].get("creationTimestamp"), None, now) > float(limit or 0)


def succeeded(job: Object) -> bool:
    """Whether the entry point came to its end."""
    return (job.get("status") or {}).get("jobStatus") == "SUCCEEDED"


def node_type(pod: Object) -> str:
    """`head`, `worker` or, for the submitter, an empty string; the operator labels the first two."""
    return str((pod["metadata"].get("labels") or {}).get("ray.io/node-type", ""))


def gpus_wanted(job: Object) -> int:
    """GPUs of all worker pods a RayJob asks for."""
    total = 0
    for group in _groups(job):
        limits = group["template"]["spec"]["containers"][0].get("resources", {}).get("limits", {})
        per_pod = sum(int(count) for name, count in limits.items() if "gpu" in name or "/mig-" in name)
        total += per_pod * int(group["maxReplicas"])
    return total


def _state(seen: Seen, progress: Progress, holds: tuple[str, ...], now: datetime) -> tuple[str, str, bool]:
    metadata, status = seen.job["metadata"], seen.job.get("status") or {}
    deployment, job_status = status.get("jobDeploymentStatus", ""), status.get("jobStatus", "")
    message = last_line(status.get("message", ""))
    if metadata.get("deletionTimestamp"):
        return "stopping", "it is being deleted", False
    if deployment == "ValidationFailed":
        return "refused", f"KubeRay refused it and will not look again: {message}", True
    if progress.verdict and deployment != "Failed":
        freed = f"KubeRay's new cluster for it will end at once; `inpaint stop {metadata['name']} --now` frees it"
        return "failing", f"{progress.verdict} ({freed})", False
    if deployment == "Complete":
        return _complete(seen, progress, job_status)
    if deployment == "Failed":
        return _failed(seen, status, job_status, message)
    if deployment == "Retrying":
        attempt = int(status.get("failed") or 0) + 1
        return "retrying", f"attempt {attempt} starts on a new cluster{_from(progress)}", False
    if deployment in ("Suspending", "Suspended") or seen.job["spec"].get("suspend"):
        return _queued(seen.job, holds, now)
    if deployment == "Waiting":
        return "waiting", "KubeRay waits for somebody to submit by hand (InteractiveMode)", False
    if deployment == "Initializing":
        return "starting", holds[0] if holds else "its Ray cluster is coming up", False
    if deployment == "Running":
        return _running(seen, progress, job_status, holds)
    if deployment:
        return deployment.lower(), f"KubeRay says {deployment}, which this version does not know", False
    if _seconds(metadata.get("creationTimestamp"), None, now) > NOT_SEEN_SECONDS:
        return "not seen", "no KubeRay operator has touched it; is one running and watching this namespace?", False
    return "accepted", "waiting for the KubeRay operator", False


def _complete(seen: Seen, progress: Progress, job_status: str) -> tuple[str, str, bool]:
    if job_status == "STOPPED":
        held = "; its cluster still holds its pods, `inpaint stop` frees them" if _live(seen.pods) else ""
        return "stopped", f"Ray stopped it{_at(progress)} (KubeRay calls this Complete){held}", True
    if job_status == "FAILED":
        return "failed", f"the entry point failed{_at(progress)} (KubeRay calls this Complete)", True
    if STOP_ASKED in (seen.job["metadata"].get("annotations") or {}):
        return "stopped", f"as `inpaint stop` asked{_at(progress)}, after a checkpoint; submit it again to go on", True
    if progress.step is not None and progress.total_steps and progress.step < progress.total_steps:
        return "stopped", f"it ended{_at(progress)} of {progress.total_steps:,}; submit it again to go on", True
    return "succeeded", "", True


def _failed(seen: Seen, status: Object, job_status: str, message: str) -> tuple[str, str, bool]:
    reason = str(status.get("reason", ""))
    why = FAILURES.get(reason, reason or "KubeRay gives no reason")
    if job_status == "SUCCEEDED":
        return "succeeded", f"the entry point finished, although KubeRay says Failed: {why}", True
    if job_status in ("RUNNING", "PENDING") and any(node_type(pod) == "head" for pod in _live(seen.pods)):
        return "failed", f"KubeRay gave up ({why}), but its driver may still run; `inpaint stop` ends it", True
    return "failed", f"{why}: {message}" if message else why, True


def _queued(job: Object, holds: tuple[str, ...], now: datetime) -> tuple[str, str, bool]:
    metadata = job["metadata"]
    queue = (metadata.get("labels") or {}).get("kueue.x-k8s.io/queue-name", "")
    waited = _seconds(metadata.get("creationTimestamp"), None, now)
    limit = float((metadata.get("annotations") or {}).get(QUEUE_SECONDS, "inf"))
    if not queue:
        return "suspended", "spec.suspend is set; nothing runs until it is cleared", False
    said = holds[0] if holds else f"queue {queue} has not admitted it"
    if waited > limit:
        return "queued", f"{said}; it has waited {_hours(waited)}, longer than its limit of {_hours(limit)}", False
    return "queued", f"{said}; waiting for {_hours(waited)}", False


def _running(seen: Seen, progress: Progress, job_status: str, holds: tuple[str, ...]) -> tuple[str, str, bool]:
    heads = [pod for pod in _live(seen.pods) if node_type(pod) == "head"]
    if job_status in ("SUCCEEDED", "FAILED", "STOPPED"):
        return "finishing", f"Ray says {job_status}; the submitter is about to end", False
    if not any(_ready(pod) for pod in heads):
        if job_status in ("RUNNING", "PENDING"):
            why = f" ({holds[0]})" if holds else ""
            return "head lost", f"a new head is coming{why}; it will run again{_from(progress)}", False
        return "starting", holds[0] if holds else "the head is not ready yet", False
    if job_status != "RUNNING":
        return "starting", holds[0] if holds else "the submitter hands it to the head", False
    if _is_replaced(heads[0], seen.cluster):
        return "running", f"the head was lost and replaced; it runs again{_from(progress)}", False
    ready = sum(_ready(pod) for pod in _live(seen.pods) if node_type(pod) == "worker")
    least = [int(each["minReplicas"] if "minReplicas" in each else each["maxReplicas"]) for each in _groups(seen.job)]
    if holds and ready < sum(least):
        return "waiting", holds[0], False
    return "running", "", False


def _is_replaced(head: Object, cluster: Object | None) -> bool:
    if cluster is None:
        return False
    born, built = _time(head["metadata"].get("creationTimestamp")), _time(cluster["metadata"].get("creationTimestamp"))
    return born is not None and built is not None and (born - built).total_seconds() > NEW_HEAD_SECONDS


def last_line(message: str) -> str:
    """The last line of a message that says something; Ray puts whole logs there."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def _groups(job: Object) -> list[Object]:
    return list((job["spec"].get("rayClusterSpec") or {}).get("workerGroupSpecs") or [])


def _live(pods: Sequence[Object]) -> list[Object]:
    return [pod for pod in pods if pod.get("status", {}).get("phase") not in ("Succeeded", "Failed")]


def _ready(pod: Object) -> bool:
    if pod["metadata"].get("deletionTimestamp"):
        return False
    conditions: list[Mapping[str, str]] = pod.get("status", {}).get("conditions") or []
    return any(each.get("type") == "Ready" and each.get("status") == "True" for each in conditions)


def _from(progress: Progress) -> str:
    return f" from checkpoint {progress.checkpoint_step:,}" if progress.checkpoint_step else " from its last checkpoint"


def _at(progress: Progress) -> str:
    return f" at step {progress.step:,}" if progress.step is not None else ""


def _time(text: str | datetime | None) -> datetime | None:
    if text is None or isinstance(text, datetime):
        return text
    return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(UTC)


def _seconds(start: str | None, end: str | None, now: datetime) -> float:
    begun = _time(start)
    return max(0.0, ((_time(end) or now) - begun).total_seconds()) if begun else 0.0


def _hours(seconds: float) -> str:
    if math.isinf(seconds):
        return "no limit"
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"
