"""What of a running training can be killed, and how: for the soak and the tests."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Driver = subprocess.Popen[Any]


@dataclass(frozen=True)
class Kill:
    """A way to hurt a run.

    Attributes:
        what: is killed, in words.
        strike: does it.
        ends_driver: the run has to be started again by hand, or by its RayJob.
    """

    what: str
    strike: Callable[[Driver], None]
    ends_driver: bool = False


def below(pid: int) -> list[int]:
    """All processes below a process."""
    found, waiting = [], [pid]
    while waiting:
        for path in Path(f"/proc/{waiting.pop()}/task").glob("*/children"):
            try:
                children = [int(child) for child in path.read_text().split()]
            except OSError:
                continue
            found += children
            waiting += children
    return found


def named(pid: int, name: str) -> list[int]:
    """Processes below `pid` whose command line contains a name."""
    return [child for child in below(pid) if name in _command(child)]


def workers_of(driver: Driver) -> list[int]:
    """Processes of the training workers below a driver with a Ray of its own."""
    return named(driver.pid, "ray::RayTrainWorker")


def _one(name: str) -> Callable[[Driver], None]:
    """SIGKILL the first process below a driver that has this name."""

    def strike(driver: Driver) -> None:
        for pid in named(driver.pid, name)[:1]:
            _signal(pid)

    return strike


def _everything(driver: Driver) -> None:
    found = below(driver.pid)
    driver.kill()
    for pid in found:
        _signal(pid)


def _signal(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


KILLS = {
    "worker": Kill("a worker", _one("ray::RayTrainWorker")),
    "controller": Kill("Ray Train's controller", _one("ray::TrainController")),
    "raylet": Kill("the raylet", _one("raylet/raylet")),
    "gcs": Kill("Ray's control store", _one("gcs_server")),
    "attempt": Kill("the process that drives Ray", _one("ray_jobs.attempt")),
    "driver": Kill("the driver", lambda driver: driver.kill(), ends_driver=True),
    "everything": Kill("everything", _everything, ends_driver=True),
    "terminate": Kill("the driver, by SIGTERM", lambda driver: driver.terminate(), ends_driver=True),
}
