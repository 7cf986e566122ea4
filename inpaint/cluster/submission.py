"""Submitting a task once: the same name twice goes on, resumes or is refused, and never runs twice."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from inpaint.cluster.client import Cluster
from inpaint.cluster.manifest import DIGEST, KIND_LABEL, STOP_ASKED, TRIALS, URL, Manifests
from inpaint.cluster.pods import stop_map
from inpaint.cluster.refusals import AlreadyExists
from inpaint.cluster.status import is_finished, succeeded
from inpaint.cluster.task import FILE_NAME, settled
from inpaint.errors import ClusterError

Object = dict[str, Any]
Action = Literal["create", "attach", "done", "replace"]
RACES = 5  # how often another submission may come between looking and creating


@dataclass(frozen=True)
class Outcome:
    """What became of a submission: `created`, `resumed`, `running` (it was already) or `finished` (nothing to do)."""

    result: Literal["created", "resumed", "running", "finished"]
    name: str
    note: str


class NameTaken(ClusterError):
    """A RayJob of this name was made from another place or other settings."""


def decide(existing: Object | None, wanted: Object) -> Action:
    """What to do about a RayJob that may already be there under the wanted one's name.

    Returns:
        `create` (none there), `attach` (the same is on its way), `done` (the same has finished), `replace` (the same
        has failed, was stopped, or is a sweep that has grown; a new RayJob resumes it).

    Raises:
        ClusterError: the name is taken by something else, or by other settings.
    """
    if existing is None:
        return "create"
    name, old, new = wanted["metadata"]["name"], existing["metadata"], wanted["metadata"]
    notes, labels = old.get("annotations") or {}, old.get("labels") or {}
    if labels.get(KIND_LABEL) != new["labels"][KIND_LABEL]:
        what = labels.get(KIND_LABEL) or "RayJob that inpaint did not make"
        raise ClusterError(f"{name} is the name of a {what}; choose another with --name")
    for key, word in ((URL, "another place"), (DIGEST, "other settings")):
        if notes.get(key) != new["annotations"][key]:
            was = f" ({notes.get(key)}, not {new['annotations'][key]})" if key == URL else ""
            raise NameTaken(
                f"{name} was submitted with {word}{was}; choose another --name, or first let it go with "
                f"`inpaint stop {name} --delete`"
            )
    if not is_finished(existing):
        return "attach"
    done = succeeded(existing) and STOP_ASKED not in notes and not _grown(existing, wanted)
    return "done" if done else "replace"


def submit(
    cluster: Cluster,
    manifests: Manifests,
    *,
    replace_seconds: float = 300.0,
    tell: Callable[[str], None] = lambda text: None,
) -> Outcome:
    """Check both objects on the server, then create them, unless the same task is there already.

    Args:
        cluster: where.
        manifests: from `manifest.build`.
        replace_seconds: how long an ended run's pods may take to go before it is submitted again.
        tell: called with a line when it takes a while.

    Raises:
        ClusterError: refused by the server, or the name is taken.
    """
    job, name = manifests.job, manifests.job["metadata"]["name"]
    replaced = False
    for _ in range(RACES):
        existing = cluster.find_job(name)
        if existing is not None and existing["metadata"].get("deletionTimestamp"):
            tell(f"{name} is being deleted; waiting")
            _until_gone(cluster, existing, replace_seconds)
            continue
        try:
            action = decide(existing, job)
        except NameTaken as error:
            raise ClusterError(f"{error}{_what_differs(cluster, manifests)}") from None
        if existing is not None and action == "attach":
            cluster.put_run_file(manifests.config_map, owner=existing)  # mends a submission that broke off in between
            notes = (_failed_before(existing), _changed_resources(existing, job), _grown(existing, job))
            return Outcome("running", name, "; ".join(filter(None, notes)))
        if action == "done":
            return Outcome("finished", name, "")
        _check(cluster, manifests, exists=existing is not None)
        if existing is not None:
            tell(f"{name} has ended; clearing its RayJob before it resumes")
            cluster.delete_job(name, uid=existing["metadata"].get("uid"), wait_seconds=replace_seconds)
            replaced = True
            continue
        try:
            _create(cluster, manifests)
        except AlreadyExists:
            continue  # somebody else was faster; look at theirs
        return Outcome("resumed" if replaced else "created", name, "")
    raise ClusterError(f"{name}: other submissions of this name keep coming in between; see `inpaint jobs show {name}`")


def _check(cluster: Cluster, manifests: Manifests, *, exists: bool) -> None:
    """Let the server judge both objects; nothing is kept."""
    job = manifests.job
    if exists:  # a dry run under a name that is taken says only that; judge the same content under another
        job = {**job, "metadata": {**job["metadata"], "name": job["metadata"]["name"][:40].rstrip("-") + "-check"}}
    try:
        cluster.create_job(job, dry_run=True)
    except AlreadyExists:
        return
    cluster.put_run_file(manifests.config_map, owner=None, dry_run=True)


def _create(cluster: Cluster, manifests: Manifests) -> None:
    """The RayJob, then the ConfigMap that it owns; neither without the other."""
    cluster.delete_config_map(stop_map(manifests.job["metadata"]["name"]))  # of an earlier RayJob
    made = cluster.create_job(manifests.job)
    try:
        cluster.put_run_file(manifests.config_map, owner=made)
    except BaseException:
        cluster.delete_job(made["metadata"]["name"], uid=made["metadata"].get("uid"))
        raise


def _until_gone(cluster: Cluster, job: Object, seconds: float) -> None:
    until = time.monotonic() + seconds
    while (now := cluster.find_job(job["metadata"]["name"])) is not None:
        if now["metadata"].get("uid") != job["metadata"].get("uid"):
            return
        if time.monotonic() > until:
            raise ClusterError(
                f"{job['metadata']['name']} has been going away for {seconds:.0f} s; a pod or finalizer holds it, see "
                f"`kubectl describe rayjob {job['metadata']['name']}`"
            )
        time.sleep(min(2.0, seconds / 50))


def _failed_before(existing: Object) -> str:
    """That KubeRay tries a task again; what was mended meanwhile may come too late for it."""
    failed = (existing.get("status") or {}).get("failed")
    name = existing["metadata"]["name"]
    return f"it has failed {failed}× and is tried again; see `inpaint jobs show {name}`" if failed else ""


def _changed_resources(existing: Object, wanted: Object) -> str:
    """What a second submission asked for that the running one does not give."""
    old, new = (_groups(job) for job in (existing, wanted))
    return "" if old == new else f"it keeps its workers ({old}); stop it first to change them ({new})"


def _grown(existing: Object, wanted: Object) -> str:
    return growth(*(int((job["metadata"].get("annotations") or {}).get(TRIALS, 0)) for job in (existing, wanted)))


def growth(trials: int, wanted: int) -> str:
    """What to do about a submitted sweep that is to have more trials; empty when it is not, or is none."""
    return f"it keeps to its {trials} trials; submit it again when it has ended to make {wanted}" * (trials < wanted)


def _groups(job: Object) -> str:
    groups = job["spec"].get("rayClusterSpec", {}).get("workerGroupSpecs") or []
    return ", ".join(f"{group['maxReplicas']} × {group['groupName']}" for group in groups)


def _what_differs(cluster: Cluster, manifests: Manifests) -> str:
    """The first settings in which the run file on the cluster differs from the wanted one; empty when it is gone."""
    old_map = cluster.find_config_map(manifests.config_map["metadata"]["name"])
    if old_map is None:
        return ""
    kind = manifests.job["metadata"]["labels"][KIND_LABEL]
    old, new = (settled(kind, yaml.safe_load(each["data"][FILE_NAME])) for each in (old_map, manifests.config_map))
    changed = [path for path in {**old, **new} if old.get(path) != new.get(path)]
    told = "; ".join(f"{path} is {old.get(path)!r} there and {new.get(path)!r} here" for path in changed[:5])
    return f" ({told})" if told else ""
