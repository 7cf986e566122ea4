"""A soak: one toy run is left alone, others are killed again and again, and all must end byte for byte the same.

    inpaint bench soak --kills 20

Each disturbed run goes through the real driver, Ray Train and two workers. What is killed and when is drawn from a
seed.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from inpaint import checkpoints, storage
from inpaint.config import RunConfig
from inpaint.errors import TrainingError
from ray_jobs.toy import toy_run, write_toy_shards

EARLY = 0.3  # share of kills that fall before the first checkpoint of a start
START_SECONDS = 300.0  # most that a start may take until its first step is logged
LONGEST_LIFE_SECONDS = 8.0  # of a start, after its workers are there


@dataclass
class Outcome:
    """What must not depend on how often a run was killed."""

    history: bytes
    step: int
    weights: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, url: str) -> Outcome:
        last = checkpoints.layout.find(url)
        weights = {name: entry["sha256"] for name, entry in last.files.items() if name.startswith("networks/")}
        return cls(storage.read_bytes(storage.join(url, "history.jsonl")), last.step, weights)


def kill_worker(driver: subprocess.Popen[bytes]) -> str:
    """SIGKILL one of the training workers; Ray restarts the group inside the job."""
    return _kill(workers_of(driver), "worker")


def kill_driver(driver: subprocess.Popen[bytes]) -> str:
    """SIGKILL the driver; the run is started again by hand, or by its RayJob."""
    driver.kill()
    return "driver"


def kill_ray(driver: subprocess.Popen[bytes]) -> str:
    """SIGKILL everything: driver, controller, workers, raylet, GCS."""
    below = _below(driver.pid)
    driver.kill()
    for pid in below:
        _signal(pid, signal.SIGKILL)
    return "everything"


def kill_raylet(driver: subprocess.Popen[bytes]) -> str:
    """SIGKILL the node's raylet under a living driver."""
    return _kill(_named(driver.pid, "raylet/raylet"), "raylet")


def terminate_driver(driver: subprocess.Popen[bytes]) -> str:
    """SIGTERM the driver, as Kubernetes does before it takes a pod away."""
    driver.terminate()
    return "driver, by SIGTERM"


Kill = Callable[[subprocess.Popen[bytes]], str]
KILLS: dict[str, Kill] = {
    "worker": kill_worker,
    "driver": kill_driver,
    "raylet": kill_raylet,
    "everything": kill_ray,
    "terminate": terminate_driver,
}


def soak(
    root: str,
    *,
    kills: int,
    seed: int,
    kinds: Sequence[str] = tuple(KILLS),
    steps: int = 200,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Kill a toy run `kills` times at drawn moments and compare its end with an undisturbed one's.

    Args:
        root: local folder or s3:// for the runs; the shards lie in a local folder beside it.
        kills: how often.
        seed: of what is killed and when.
        kinds: what may be killed, of `KILLS`.
        steps: length of the run.
        say: told what happens.

    Returns:
        "kills" by kind, "seconds", "equal": history, weights.

    Raises:
        TrainingError: a start ended with an error of its own, or the ends differ.
    """
    shards = Path(root if not storage.is_remote(root) else "soak-shards").absolute()
    write_toy_shards(shards)
    settings = (
        f"stages.gan.steps={steps}", "checkpoints.every=5", "evaluation.every=10",
        f"data.train={shards}/shards/toy/train", f"data.held_out={shards}/shards/toy/test",
    )  # fmt: skip
    began = time.monotonic()
    calm = toy_run(root, "calm", *settings, workers=2)
    _finish(_start(calm, shards), calm)
    say(f"undisturbed: {time.monotonic() - began:.0f} s")
    wild = toy_run(root, "wild", *settings, workers=2)
    counts = _disturb(wild, shards, kills, [KILLS[kind] for kind in kinds], random.Random(seed), say)
    expected, found = Outcome.of(calm.url), Outcome.of(wild.url)
    equal = {"history": expected.history == found.history, "weights": expected.weights == found.weights}
    if not all(equal.values()) or found.step != steps:
        raise TrainingError(f"{wild.url} ended otherwise than {calm.url}: {equal}, step {found.step} of {steps}")
    return {"kills": counts, "seconds": time.monotonic() - began, "equal": equal}


def _disturb(
    run: RunConfig, folder: Path, kills: int, kinds: Sequence[Kill], draw: random.Random, say: Callable[[str], None]
) -> dict[str, int]:
    """Start the run again and again, killing something of it each time, until it has survived so many kills."""
    counts: dict[str, int] = {}
    driver = _start(run, folder)
    while sum(counts.values()) < kills:
        kind = draw.choice(kinds)
        _wait_for_life(driver, run, draw.random() < EARLY)
        time.sleep(draw.uniform(0.0, LONGEST_LIFE_SECONDS))
        if driver.poll() is not None:
            say("the run ended before it was killed; its checkpoints are removed to go on")
            storage.delete_tree(storage.join(run.url, "checkpoints"))
            driver = _start(run, folder)
            continue
        what = kind(driver)
        counts[what] = counts.get(what, 0) + 1
        say(f"killed {what} after checkpoint {_newest_step(run)}")
        if kind not in (kill_worker, kill_raylet):
            driver.wait(START_SECONDS)
        if driver.poll() is not None:
            driver = _start(run, folder)
    _finish(driver, run)
    return counts


def _start(run: RunConfig, folder: Path) -> subprocess.Popen[bytes]:
    """The real driver, in a process of its own."""
    path = folder / f"{run.name}.yaml"
    path.write_text(yaml.safe_dump(run.to_dict()))
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    environment.pop("RAY_ADDRESS", None)
    with (folder / f"{run.name}.log").open("ab") as log:
        command = [sys.executable, "-m", "ray_jobs.train", str(path)]
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def _finish(driver: subprocess.Popen[bytes], run: RunConfig) -> None:
    code = driver.wait()
    if code:
        raise TrainingError(f"{run.name} ended with exit code {code}; see {run.name}.log beside its shards")


def _wait_for_life(driver: subprocess.Popen[bytes], run: RunConfig, early: bool) -> None:
    """Until the workers of this start are there (early) or have written a checkpoint, or the driver has ended."""
    until = time.monotonic() + START_SECONDS
    before = _newest_step(run)
    while time.monotonic() < until and driver.poll() is None:
        if len(workers_of(driver)) >= run.resources.num_workers and (
            early or _newest_step(run) > before
        ):
            return
        time.sleep(0.1)


def _newest_step(run: RunConfig) -> int:
    newest = checkpoints.latest(run.url)
    return newest.step if newest else 0


def workers_of(driver: subprocess.Popen[Any]) -> list[int]:
    """Processes of the training workers below a driver with a Ray of its own."""
    return _named(driver.pid, "ray::RayTrainWorker")


def _named(pid: int, name: str) -> list[int]:
    """Processes below `pid` whose command line contains a name."""
    return [child for child in _below(pid) if name in _command(child)]


def _below(pid: int) -> list[int]:
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


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _kill(pids: list[int], what: str) -> str:
    if pids:
        _signal(pids[0], signal.SIGKILL)
    return what


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
