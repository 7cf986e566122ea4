"""When a run ought to stop: what the ranks agree on, and the stop mark in the store."""

from __future__ import annotations

import logging
import os
import threading
import time

import torch
import torch.distributed as dist

from inpaint import storage
from inpaint.cluster.task import STOP_FILE
from inpaint.errors import StorageError
from ray_jobs.session import Session

log = logging.getLogger(__name__)

REASONS = ("", "preempted", "stopped")  # the later one wins when the ranks differ
ASK_EVERY_SECONDS = 1.0
MOST_STEPS_BETWEEN = 200
STOP_MARK = "stop"


class Stops:
    """Asks the session and the store about once a second, on all ranks between the same steps.

    Args:
        session: asked on every rank.
        mark: watches the store; on rank 0 only, None elsewhere.
    """

    def __init__(self, session: Session, mark: StopMark | None) -> None:
        self._session, self._mark = session, mark
        self._group = _host_group(session.world_size)
        self._ask_at: int | None = None
        self._asked = time.monotonic()
        self._asked_step = 0

    def after(self, step: int, *, at_once: bool = False) -> str | None:
        """Why to stop after `step`, the same on every rank, or None. Called after every step.

        Args:
            step: that was made.
            at_once: ask now, the same on every rank; after a score, which may decide.
        """
        if self._ask_at is None:
            self._ask_at, self._asked_step, self._asked = step + 1, step, time.monotonic()
            if not at_once:
                return None
        if step < self._ask_at and not at_once:
            return None
        reason = self._session.should_stop() or ("stopped" if self._mark and self._mark.seen else "")
        answer = torch.tensor([REASONS.index(reason), self._steps_until_next(step)])
        if self._session.world_size > 1:
            dist.all_reduce(answer, dist.ReduceOp.MAX, group=self._group)
        code, wait = answer.tolist()
        self._ask_at, self._asked_step, self._asked = step + wait, step, time.monotonic()
        return REASONS[code] or None

    def begin_again(self) -> None:
        """Forget when to ask next; the run went back."""
        self._ask_at = None

    def _steps_until_next(self, step: int) -> int:
        """How many steps take about a second, as rank 0 sees it; 0 on the others, which are not asked."""
        if self._session.rank != 0:
            return 0
        per_step = (time.monotonic() - self._asked) / max(1, step - self._asked_step)
        return min(MOST_STEPS_BETWEEN, max(1, int(ASK_EVERY_SECONDS / max(per_step, 1e-6))))


class StopMark:
    """Watches for the mark that `inpaint stop` leaves, in a thread of its own: `<run>/stop`, or a file in the pod.

    Args:
        run: the run's URL, or a sweep's.
        every_seconds: how often to look.
    """

    def __init__(self, run: str, *, every_seconds: float = 2.0) -> None:
        self._run = run
        self._every = every_seconds
        self._seen, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stop-mark", daemon=True)
        self._thread.start()

    @property
    def seen(self) -> bool:
        """Whether the mark was there at the last look."""
        return self._seen.is_set()

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(self._every):
            try:
                if stop_is_asked(self._run):
                    self._seen.set()
                    return
            except StorageError as error:
                log.debug("cannot look for a stop mark of %s: %s", self._run, error)


def stop_is_asked(run: str) -> bool:
    """Whether there is a stop mark of this run or sweep now.

    Raises:
        StorageError: the store does not answer.
    """
    return os.path.exists(STOP_FILE) or storage.exists(storage.join(run, STOP_MARK))


def clear_stop_mark(run: str) -> None:
    """Forget an earlier wish to stop this run."""
    url = storage.join(run, STOP_MARK)
    if storage.exists(url):
        storage.delete(url)


def _host_group(world_size: int) -> dist.ProcessGroup | None:
    """A group that talks over the host, so that asking never waits for the device."""
    if world_size > 1 and dist.get_backend() == "nccl":
        return dist.new_group(backend="gloo")
    return None  # the group there is talks over the host, at least for tensors on it
