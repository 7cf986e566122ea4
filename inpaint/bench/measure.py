"""Interleaved measuring: the candidates take turns in one run, so that a neighbour disturbs all of them alike.

CPU time counts the process and its finished children; it is the robust figure, wall time depends on who else is there.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # of mallopt(3)


@dataclass(frozen=True)
class Cost:
    """Median over rounds, in seconds per unit of work."""

    cpu: float
    wall: float


def interleaved(candidates: Mapping[str, Callable[[], float]], *, rounds: int) -> dict[str, Cost]:
    """What each candidate costs per unit.

    Args:
        candidates: each does its work once and returns how many units it was.
        rounds: times that all of them are run, in turn.
    """
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, work in candidates.items():
            cpu, wall = cpu_seconds(), time.perf_counter()
            units = work()
            taken[name].append(((cpu_seconds() - cpu) / units, (time.perf_counter() - wall) / units))
    return {
        name: Cost(statistics.median(cpu for cpu, _ in runs), statistics.median(wall for _, wall in runs))
        for name, runs in taken.items()
    }


def cpu_seconds() -> float:
    """User and system time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def keep_freed_memory() -> None:
    """Have malloc keep large blocks instead of returning them: PIL's cost would else depend on what ran before it."""
    name = ctypes.util.find_library("c")
    if name:
        libc = ctypes.CDLL(name)
        libc.mallopt(MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(TRIM_THRESHOLD, 2**31 - 1)
