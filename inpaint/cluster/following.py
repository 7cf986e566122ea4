"""Following a run on Kubernetes: what is known of it, its log from wherever it still is, and stopping it."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from inpaint import storage
from inpaint.cluster.client import Cluster
from inpaint.cluster.manifest import KIND_LABEL, RUN_LABEL, STOP_ASKED, URL
from inpaint.cluster.pods import DRIVER_LOG, stop_map
from inpaint.cluster.ray_client import LAST_LINES, tells_of_stop
from inpaint.cluster.refusals import Unavailable, insist
from inpaint.cluster.status import Progress, Seen, Summary, is_finished, node_type, summarize
from inpaint.cluster.stuck import event_time
from inpaint.cluster.task import SUFFIXES, VERDICT_FILE
from inpaint.errors import ClusterError, StorageError

Object = dict[str, Any]
Answer = TypeVar("Answer")
SUBMITTER = "ray-job-submitter"
TAIL_LINES = 2000  # of a driver's log, in which its progress is looked for
STEP_LINE = re.compile(r"^(\S*).*?\bstep (\d+)/(\d+)\b(.*)", re.MULTILINE)
STAGE = re.compile(r"\bstage=(\w+)")
NUMBER = re.compile(r"(?<!\S)(\w+)=([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,2})?)(?!\S)")
STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[-+]\d\d:\d\d)")
LOOK_FOR_STOP_MARK = ("train", "sweep")
STORE_PATIENCE_SECONDS = 20.0
PREEMPTION = "a node goes away"
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")  # what Ray says of a job that has come to its end


def resolve(cluster: Cluster, name: str) -> Object:
    """The RayJob of a run: by its own name, or by the name of the run, sweep or set it was made for.

    Raises:
        ClusterError: none.
    """
    for candidate in dict.fromkeys(name + suffix for suffix in SUFFIXES.values()):
        job = cluster.find_job(candidate)
        if job is not None and (job["metadata"].get("labels") or {}).get(RUN_LABEL):
            return job
    known = [job["metadata"]["name"] for job in cluster.list_jobs()[0]]
    there = f"there: {', '.join(known)}" if known else "there is none at all"
    raise ClusterError(f"no run {name} in namespace {cluster.namespace}; {there}")


def look(cluster: Cluster, job: Object) -> Seen:
    """Everything the API server says about a run."""
    name, selector = job["metadata"]["name"], _selector(job)
    cluster_name = (job.get("status") or {}).get("rayClusterName") or ""
    owned = (name, cluster_name) if cluster_name else (name,)
    events = cluster.list_events(lambda other: other in owned or any(other.startswith(f"{one}-") for one in owned))
    born = str(job["metadata"].get("creationTimestamp") or "")
    return Seen(
        job=job,
        cluster=cluster.find_cluster(cluster_name) if cluster_name else None,
        pods=cluster.list_pods(selector),
        events=[event for event in events if event_time(event) >= born],  # not those of an earlier job of this name
    )


def summary(cluster: Cluster, job: Object, store: StoreReader) -> Summary:
    """A run in plain words, with how far it is."""
    seen = look(cluster, job)
    return summarize(seen, read_progress(cluster, seen, store), now=datetime.now(UTC))


def read_progress(cluster: Cluster, seen: Seen, store: StoreReader) -> Progress:
    """How far a run is, from the tail of its driver's log and, where this machine may read it, from the store."""
    text = ""
    for pod, container in log_sources(seen.pods):
        text = cluster.read_log(pod, container, tail_lines=TAIL_LINES, timestamps=True)
        if STEP_LINE.search(text):
            break
    metadata = seen.job["metadata"]
    url = (metadata.get("annotations") or {}).get(URL, "")
    progress = parse_progress(text, checkpoint=store.newest_checkpoint(url))
    again = (seen.job.get("status") or {}).get("failed")
    return replace(progress, verdict=store.verdict(url, metadata["uid"])) if again else progress


def parse_progress(text: str, *, checkpoint: tuple[int, float] | None) -> Progress:
    """The newest progress line of a driver's log, in numbers.

    Args:
        text: log lines, each after its time; a progress line reads
            `2026-11-21T10:00:00.5Z step 120/400 stage=gan images_per_second=81.2 ...`.
        checkpoint: step and time of the newest one, where the store can be read.
    """
    lines = STEP_LINE.findall(text)
    stamp, step, total, rest = lines[-1] if lines else ("", "0", "0", "")
    numbers = {name: float(value) for name, value in NUMBER.findall(rest)}
    stage = STAGE.search(rest)
    age = numbers.get("checkpoint_age_seconds")
    said = _written_at(stamp)  # a head that was lost said it long ago
    written = checkpoint[1] if checkpoint else said.timestamp() - age if said and age is not None else None
    return Progress(
        step=int(step) if lines else checkpoint[0] if checkpoint else None,
        total_steps=int(total) if lines else None,
        stage=stage[1] if stage else None,
        images_per_second=numbers.get("images_per_second"),
        checkpoint_step=checkpoint[0] if checkpoint else None,
        checkpoint_time=written,
        preemptions=text.count(PREEMPTION) if text else None,
    )


class StoreReader:
    """Looks into runs' folders as far as this machine may; after one failure or long wait it does not ask again.

    Args:
        patience_seconds: for one look. A laptop without the store's credentials would wait for many times that.
    """

    def __init__(self, *, patience_seconds: float = 3.0) -> None:
        self._patience = patience_seconds
        self._given_up = False

    def newest_checkpoint(self, url: str) -> tuple[int, float] | None:
        """Step and time (seconds since 1970) of a run's newest whole checkpoint; None without one or without access."""
        return self._ask(_newest_checkpoint, url)

    def verdict(self, url: str, task: str) -> str | None:
        """What ended the RayJob with this UID for good; None if nothing did, or without access."""
        found = self._ask(_verdict, url)
        return found[1] if found and found[0] == task else None

    def _ask(self, question: Callable[[str], Answer | None], url: str) -> Answer | None:
        if self._given_up or not storage.is_remote(url):
            return None
        found: list[Answer | None] = []

        def work() -> None:
            with suppress(StorageError):
                found.append(question(url))

        look = threading.Thread(target=work, name="look-into-store", daemon=True)
        look.start()
        look.join(self._patience)
        self._given_up = not found
        return found[0] if found else None


def _newest_checkpoint(url: str) -> tuple[int, float] | None:
    folder = storage.join(url, "checkpoints")
    for name in sorted(storage.list_folders(folder), reverse=True):
        manifest = storage.join(folder, name, "manifest.json")
        if name.isdigit() and storage.exists(manifest):
            return int(name), storage.stat(manifest).modified
    return None


def _verdict(url: str) -> tuple[str, str] | None:
    """Task and message of what a run's folder says ended a task for good."""
    try:
        said = json.loads(storage.read_bytes(storage.join(url, VERDICT_FILE)))
    except storage.MissingObject:
        return None
    return str(said["task"]), str(said["message"])


def log_sources(pods: Iterable[Object]) -> list[tuple[str, str]]:
    """(pod, container) pairs that may hold the driver's log, the best first: newest submitter, then the head."""
    listed = list(pods)
    submitters = [pod["metadata"]["name"] for pod in listed if _component(pod) == "submitter"]
    heads = [pod["metadata"]["name"] for pod in listed if node_type(pod) == "head"]
    return [(name, SUBMITTER) for name in reversed(submitters)] + [(name, DRIVER_LOG) for name in reversed(heads)]


def read_logs(cluster: Cluster, job: Object, *, tail_lines: int | None = None) -> Iterator[str]:
    """Lines of a run's log: from the submitter, else from the head, else from the store.

    Raises:
        ClusterError: none of them has any.
    """
    for pod, container in log_sources(cluster.list_pods(_selector(job))):
        text = cluster.read_log(pod, container, tail_lines=tail_lines)
        if text.strip():
            yield from text.splitlines()
            return
    name = job["metadata"]["name"]
    stored = stored_logs((job["metadata"].get("annotations") or {}).get(URL, ""), name)
    try:
        yield from deque(stored, tail_lines) if tail_lines else stored
    except ClusterError:
        if is_finished(job) or (job.get("status") or {}).get("jobStatus"):
            raise
        raise ClusterError(f"{name} has no log yet; `inpaint jobs show {name}` says what it waits for") from None


def stored_logs(url: str, name: str) -> Iterator[str]:
    """Lines of the logs that a run copied to its folder, oldest file first.

    Raises:
        ClusterError: there are none, or this machine cannot read the store.
    """
    if not storage.is_remote(url):
        raise ClusterError(f"{name}: its pods are gone, and its logs lie in {url}/logs on the cluster's own volume")
    try:
        files = sorted(storage.list_objects(storage.join(url, "logs")), key=lambda info: info.modified)
        if not files:
            raise ClusterError(f"{name}: its pods are gone or have not started, and {url}/logs is empty")
        for info in files:
            yield f"==> {info.url} <=="
            yield from storage.read_bytes(info.url).decode(errors="replace").splitlines()
    except StorageError as error:
        raise ClusterError(f"{name}: its pods are gone, and {url}/logs cannot be read from here: {error}") from error


def follow_logs(
    cluster: Cluster, job: Object, *, pause_seconds: float = 2.0, tell: Callable[[str], None] = lambda text: None
) -> Iterator[str]:
    """Lines of a run's log as they come, across cut connections, new submitters and a lost head, until it has ended.

    A connection that is cut is taken up where it ended: lines already given are not given again.
    """
    name, source, last, given, waits = job["metadata"]["name"], ("", ""), "", False, False
    while True:
        sources = insist(lambda: log_sources(cluster.list_pods(_selector(job))))
        current = insist(lambda: cluster.find_job(name))
        if current is not None and _has_no_submitter_yet(current, sources):
            if not waits:
                tell(f"{name} has not started yet; `inpaint jobs show {name}` says what it waits for")
            waits = True
        elif sources:
            if source[0] and sources[0] != source:
                tell(f"{name}: the log goes on in {sources[0][0]}")
                last = ""
            source = sources[0]
            try:
                for line in cluster.follow_log(*source, since_seconds=_seconds_since(last)):
                    stamp, _, text = line.partition(" ")
                    if stamp > last:
                        last, given = stamp, True
                        yield text
            except Unavailable:
                if current is None or is_finished(current):
                    raise
        if current is None or is_finished(current):
            if not given:
                yield from read_logs(cluster, job)
            return
        time.sleep(pause_seconds)


def _has_no_submitter_yet(job: Object, sources: list[tuple[str, str]]) -> bool:
    """Whether a submitter will come that gives the driver's log from its first line; the head gives the same lines."""
    comes = job["spec"].get("submissionMode") == "K8sJobMode" and not is_finished(job)
    is_here = any(container == SUBMITTER for _, container in sources)
    return comes and not is_here and (job.get("status") or {}).get("jobStatus") not in ("RUNNING", *ENDED)


def _seconds_since(stamp: str) -> int | None:
    """How far back to ask for a log that was read up to a time, with a minute to spare; None for all of it."""
    read_to = _written_at(stamp)
    return max(1, round((datetime.now(UTC) - read_to).total_seconds())) + 60 if read_to else None


def _written_at(stamp: str) -> datetime | None:
    """The time at which a node says, in its own time zone, that a line was written; None where there is none."""
    with suppress(ValueError):  # the 32nd of a month
        return datetime.fromisoformat(stamp) if STAMP.fullmatch(stamp) else None
    return None


def ask_to_stop(cluster: Cluster, job: Object) -> str:
    """Leave the mark that workers look for: they write a checkpoint and end.

    It goes into the run's folder, where it is seen within seconds, or, where this machine cannot write the store, into
    a ConfigMap that the run's pods mount, which takes about a minute.

    Returns:
        How it was asked.
    """
    name, url = job["metadata"]["name"], (job["metadata"].get("annotations") or {}).get(URL, "")
    cluster.annotate_job(name, {STOP_ASKED: datetime.now(UTC).isoformat(timespec="seconds")})
    why = _write_mark(url) if storage.is_remote(url) else f"its store {url} is a volume of the cluster"
    if not why:
        return "through its store"
    insist(lambda: cluster.put_stop_mark(stop_map(name), owner=job))
    return f"through a ConfigMap, which takes about a minute ({why})"


def _write_mark(url: str) -> str:
    """Put a stop mark into a run's folder; why it could not be done, or empty."""
    outcome: list[str] = []

    def work() -> None:
        try:
            storage.write_bytes(storage.join(url, "stop"), b"")
            outcome.append("")
        except StorageError as error:
            outcome.append(f"this machine cannot write {url}: {error}")

    thread = threading.Thread(target=work, name="stop-mark", daemon=True)
    thread.start()
    thread.join(STORE_PATIENCE_SECONDS)
    return outcome[0] if outcome else f"{url} did not answer within {STORE_PATIENCE_SECONDS:.0f} s"


def wait_until_ended(cluster: Cluster, name: str, *, seconds: float, pause_seconds: float = 1.0) -> str:
    """How a run that was asked to stop has ended, as far as a network that comes and goes lets us see; empty when it
    has not within the time."""
    until = time.monotonic() + seconds
    while True:
        with suppress(Unavailable):
            job = cluster.find_job(name)
            if job is None:
                return "is gone: somebody has removed its RayJob"
            if is_finished(job):
                return _how_it_ended(cluster, job)
        if time.monotonic() >= until:
            return ""
        time.sleep(pause_seconds)


def _how_it_ended(cluster: Cluster, job: Object) -> str:
    about = summarize(Seen(job), Progress(), now=datetime.now(UTC))
    status = "FAILED" if about.state in ("failed", "refused") else job["status"].get("jobStatus", "")
    logs = (
        cluster.read_log(pod, container, tail_lines=LAST_LINES)
        for pod, container in log_sources(cluster.list_pods(_selector(job)))
    )
    log = next((text for text in logs if text.strip()), "")
    return describe_end(status, why=about.detail, log=log, url=about.url)


def describe_end(status: str, *, why: str, log: str, url: str) -> str:
    """What became of a run that was asked to stop, in words that go on from its name.

    Args:
        status: SUCCEEDED, FAILED or STOPPED (by Ray).
        why: it failed.
        log: the end of its driver's; empty where nobody can read it.
        url: of its folder, in which its newest checkpoint is looked for.
    """
    found = StoreReader().newest_checkpoint(url)
    kept = f"; its newest checkpoint is of step {found[0]:,}" if found else ""
    if status == "FAILED":
        return f"failed instead of stopping: {why or 'nobody says why'}{kept}"
    if status == "STOPPED":
        return f"was ended by Ray{kept}"
    if tells_of_stop(log):
        return f"stopped, after a checkpoint{f' at step {found[0]:,}' if found else ''}"
    if log.strip():
        return f"came to its own end before it had to stop{kept}"
    return f"ended well: it stopped after a checkpoint, or had come to its own end{kept}"


def can_be_asked_to_stop(job: Object) -> bool:
    """Whether its driver runs and looks for the stop mark; other tasks lose nothing that is worth a checkpoint."""
    asks = (job["metadata"].get("labels") or {}).get(KIND_LABEL) in LOOK_FOR_STOP_MARK
    return asks and (job.get("status") or {}).get("jobStatus") == "RUNNING" and not is_finished(job)


def _selector(job: Object) -> str:
    labels = job["metadata"]["labels"]
    return f"{RUN_LABEL}={labels[RUN_LABEL]},{KIND_LABEL}={labels[KIND_LABEL]}"


def _component(pod: Object) -> str:
    return str((pod["metadata"].get("labels") or {}).get("app.kubernetes.io/component", ""))
