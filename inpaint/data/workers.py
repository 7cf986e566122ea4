"""Shards written by the processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from inpaint.data.shards import Progress, ShardResult, ShardTask, write_shard
from inpaint.errors import DataError

POLL_SECONDS = 0.2

_done: Any = None  # images done, over all processes; set in each worker process
_stop: Any = None  # 1 when the work is to be given up


def available_cpus() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_processes(tasks: Sequence[ShardTask], progress: Progress, *, workers: int | None = None) -> list[ShardResult]:
    """Write every task's shard, `workers` at a time (one per CPU when None); one worker is this process itself.

    Raises:
        DataError: a worker process was killed.
        KeyboardInterrupt: passed on after the workers have stopped; finished shards stay.
    """
    workers = min(workers or available_cpus(), len(tasks))
    if workers <= 1:
        return [write_shard(task, progress) for task in tasks]
    context = multiprocessing.get_context("spawn")
    done, stop = context.Value("q", 0), context.Value("b", 0)
    results: list[ShardResult] = []
    reported = 0
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_prepare, initargs=(done, stop)) as pool:
        try:
            running = {pool.submit(_write, task) for task in tasks}
            while running:
                finished, running = wait(running, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
                results += [future.result() for future in finished]
                now = done.value
                progress(now - reported)
                reported = now
        except BrokenProcessPool:
            raise DataError(
                "a worker process was killed, most likely because memory ran out; run the command again with fewer "
                "--workers: finished shards are kept"
            ) from None
        except BaseException:
            stop.value = 1
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return results


def _prepare(done: Any, stop: Any) -> None:
    """In each worker: leave Ctrl-C to the parent, and do not outlive it."""
    global _done, _stop
    _done, _stop = done, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _write(task: ShardTask) -> ShardResult:
    return write_shard(task, _count)


def _count(images: int) -> None:
    if _stop.value:
        raise InterruptedError("the work was given up")
    with _done.get_lock():
        _done.value += images
