"""Interleaved measuring: the candidates take turns in one run, so that a neighbour disturbs all of them alike.

CPU time counts the process and its finished children; it is the robust figure, wall time depends on who else is there.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import datetime
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

Work = Callable[[], float]  # done once; returns how many units it was

CACHE_LINE = 64  # bytes
MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # of mallopt(3)


@dataclass(frozen=True)
class Cost:
    """Median over rounds, in seconds per unit of work."""

    cpu: float
    wall: float


class Elsewhere:
    """A candidate in a process of its own, as its users have it: what else a benchmark imported, allocated or freed
    changes what the same call costs (mostly by what malloc keeps), and some packages change defaults for everybody.

    Args:
        make: at the top of a module; called there with the arguments, returns the work. What it takes is not measured.
    """

    def __init__(self, make: Callable[..., Work], *arguments: object, **options: object):
        context = multiprocessing.get_context("spawn")
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, make, arguments, options))
        self._process.start()
        there.close()

    def __enter__(self) -> Elsewhere:
        self.measure()  # imports and first pages are nobody's cost
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.join(timeout=10)
        self._process.kill()

    def measure(self) -> tuple[float, float]:
        """Seconds of CPU and of wall time per unit, of the work done once."""
        self._pipe.send("work")
        return self._pipe.recv()


def _serve(pipe: Connection, make: Callable[..., Work], arguments: tuple, options: dict) -> None:
    os.dup2(2, 1)  # the report is alone on stdout
    work = make(*arguments, **options)
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        pipe.send(measured(work))


def interleaved(candidates: Mapping[str, Work | Elsewhere], *, rounds: int) -> dict[str, Cost]:
    """What each candidate costs per unit.

    Args:
        candidates: here or elsewhere.
        rounds: times that all of them are run, in turn.
    """
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, work in candidates.items():
            taken[name].append(work.measure() if isinstance(work, Elsewhere) else measured(work))
    return {
        name: Cost(statistics.median(cpu for cpu, _ in runs), statistics.median(wall for _, wall in runs))
        for name, runs in taken.items()
    }


def measured(work: Work) -> tuple[float, float]:
    """Seconds of CPU and of wall time per unit, of the work done once."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    units = work()
    return (cpu_seconds() - cpu) / units, (time.perf_counter() - wall) / units


def read_all(batch: np.ndarray) -> int:
    """Read a batch as its consumer does, one byte in every cache line, and return how many samples it has.

    Memory that a worker process shares is mapped page by page when it is first read: the hand-over is not done before.
    """
    batch.reshape(-1).view(np.uint8)[::CACHE_LINE].max()
    return len(batch)


def cpu_seconds() -> float:
    """User and system time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def keep_freed_memory() -> None:
    """Have malloc keep large blocks instead of returning them: PIL's cost would else depend on what ran before it."""
    _set_malloc(1 << 30, 2**31 - 1)


def return_freed_memory() -> None:
    """Have malloc return large blocks when they are freed, so that whoever asks next gets new pages, as at a start."""
    _set_malloc(128 << 10, 128 << 10)


def _set_malloc(mmap_threshold: int, trim_threshold: int) -> None:
    name = ctypes.util.find_library("c")
    if name:
        libc = ctypes.CDLL(name)
        libc.mallopt(MMAP_THRESHOLD, mmap_threshold)
        libc.mallopt(TRIM_THRESHOLD, trim_threshold)


def today() -> str:
    """The date of a measurement, as 2026-11-21 (UTC)."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def device_name(device: str) -> str:
    """What a measurement ran on: the name of the processor or of the graphics card."""
    if device.startswith("cuda"):
        import torch

        return str(torch.cuda.get_device_name(device))
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "cpu"
