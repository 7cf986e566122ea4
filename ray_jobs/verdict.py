"""What ended a task for good, in its folder: a new cluster for the same task repeats the message and not the work.

KubeRay starts a failed RayJob again on a new cluster (`retries.newClusters`) without asking why it failed. A RayJob
that somebody submits anew is another task, so that what was mended is tried.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from inpaint import storage
from inpaint.cluster.task import FILE_FOLDER, TASK_NAME, VERDICT_FILE
from inpaint.errors import ClusterError, InpaintError, MendableError, StorageError

TASK_FILE = Path(FILE_FOLDER, TASK_NAME)


MENDABLE = (StorageError, ClusterError, MendableError)


@contextmanager
def once_for_all(url: str) -> Iterator[None]:
    """Do what is inside unless this very task has ended for good before, and keep an error that ends it so.

    Args:
        url: of the folder that belongs to the task.

    Raises:
        InpaintError: what ended it before, or now.
    """
    if (said := verdict(url)) is not None:
        raise InpaintError(said)
    try:
        yield
    except InpaintError as error:
        remember(url, error)
        raise


def is_mendable(error: BaseException) -> bool:
    """Whether a later start, or another cluster, may do better; an object that is missing stays so."""
    return isinstance(error, MENDABLE) and not isinstance(error, storage.MissingObject)


def verdict(url: str) -> str | None:
    """What ended this very task before, or None; outside of Kubernetes always None.

    Raises:
        StorageError: the store does not answer.
    """
    task = _task()
    if not task:
        return None
    try:
        said = json.loads(storage.read_bytes(storage.join(url, VERDICT_FILE)))
    except storage.MissingObject:
        return None
    return str(said["message"]) if said["task"] == task else None


def remember(url: str, error: InpaintError) -> None:
    """Keep an error that no other cluster will mend; where the store does not answer, the next one tries again."""
    task = _task()
    if not task or is_mendable(error):
        return
    with suppress(StorageError):
        said = {"task": task, "message": str(error)}
        storage.write_bytes(storage.join(url, VERDICT_FILE), json.dumps(said).encode())


def _task() -> str:
    return TASK_FILE.read_text().strip() if TASK_FILE.is_file() else ""
