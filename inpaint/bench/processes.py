"""Wall and CPU seconds of commands with all that they started; Ray leaves much behind that nobody waits for."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
import uuid
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from inpaint.errors import TrainingError

MARK = "INPAINT_BENCH_MARK"
LOOK_SECONDS = 0.25


def run_together(commands: Sequence[Sequence[str]]) -> tuple[float, float]:
    """Run commands at the same time.

    CPU time is looked up in /proc a few times a second, by a mark in the environment that every process inherits; what
    a process uses after the last look at it is missed. Without /proc it is 0.

    Returns:
        Wall seconds until the last one ended, and CPU seconds of all.

    Raises:
        TrainingError: one ended with an error; the last line it wrote.
    """
    mark = uuid.uuid4().hex
    seen: dict[int, float] = {}
    began = time.monotonic()
    with ExitStack() as stack:
        errors = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in commands]
        running = [
            subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=error, env=os.environ | {MARK: mark})
            for command, error in zip(commands, errors, strict=True)
        ]
        while any(process.poll() is None for process in running):
            _look(f"{MARK}={mark}".encode(), seen)
            time.sleep(LOOK_SECONDS)
        seconds = time.monotonic() - began
        for command, process, error in zip(commands, running, errors, strict=True):
            if process.returncode:
                error.seek(0)
                last = (error.read().strip().splitlines() or ["without a word"])[-1]
                raise TrainingError(f"{' '.join(command[2:5])} failed: {last}")
    return seconds, sum(seen.values())


def _look(mark: bytes, seen: dict[int, float]) -> None:
    """Note what each process with the mark has used so far."""
    ticks = os.sysconf("SC_CLK_TCK")
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):
            if int(folder.name) in seen or mark in (folder / "environ").read_bytes():
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                seen[int(folder.name)] = (int(fields[11]) + int(fields[12])) / ticks
