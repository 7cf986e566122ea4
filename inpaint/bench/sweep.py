"""A sweep's throughput against the straightforward way: a fresh `inpaint train` process per trial, as many at a time.

The trials are the first of ISNet's loss-weight search under its `tiny` budget, on drawn pictures, with random feature
weights. Both ways are started from the command line and pay for all of their own start; half of the processes run
before the sweep and half after it, so that a busy neighbour slows both.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from inpaint.config.run import RunConfig
from inpaint.config.sweep import SweepConfig, load_sweep
from inpaint.errors import TrainingError
from inpaint.sweep.trials import Record, planned, read_records, run_of

FLOOR = 3.0  # times the trials per hour of the straightforward way
DEFINITION = "isnet-loss-weights"
SETTINGS = (
    "settings.data.dataset=toy",
    "settings.feature_weights.vgg19=random",
    "settings.evaluation.images=6",
    "settings.tracking.mode=disabled",
)


def measure_sweep(
    *, trials: int, alone: int, concurrent: int, steps: int | None = None, write_shards: Callable[[str], object]
) -> dict[str, Any]:
    """Trials per hour of both ways.

    Args:
        trials: of the sweep.
        alone: trials made by processes of their own; half before the sweep, half after it.
        concurrent: at a time, in both ways.
        steps: of a trial; the budget's when None.
        write_shards: puts the data the trials train on under a root.

    Returns:
        "sweep_seconds" and "alone_seconds" (wall, all trials), "sweep_per_hour" and "alone_per_hour", "ratio",
        "in_trials" and "in_steps" (shares of the sweep's slots that trials, and their steps alone, filled).

    Raises:
        TrainingError: a trial of either way did not finish.
    """
    with tempfile.TemporaryDirectory(prefix="inpaint-bench-") as root:
        write_shards(root)
        path = _write_definition(root, f"trials={trials}", f"concurrent={concurrent}", steps=steps)
        sweep = load_sweep(path)
        runs = [run_of(sweep, trial, root=f"{root}/alone") for trial in planned(sweep)[:alone]]
        runs = [_reading(run, root) for run in runs]
        alone_seconds = _all_alone(runs[: alone // 2], root, concurrent)
        sweep_seconds = _swept(path, root)
        alone_seconds += _all_alone(runs[alone // 2 :], root, concurrent)
        records = read_records(sweep.name, root=root)
    return _figures(sweep, records, sweep_seconds, alone_seconds, alone, concurrent)


def report(results: dict[str, Any]) -> list[str]:
    """Lines for a person."""
    return [
        f"{results['trials']} trials of {results['steps']} steps, {results['concurrent']} at a time, with Ray's start",
        f"one sweep                   {results['sweep_per_hour']:7.0f} trials/hour ({results['sweep_seconds']:.0f} s)",
        f"a process per trial         {results['alone_per_hour']:7.0f} trials/hour "
        f"({results['alone_seconds']:.0f} s for {results['alone']})",
        f"ratio                       {results['ratio']:7.2f} (floor {FLOOR:g})",
        f"share of the sweep's time   {results['in_trials']:7.1%} in trials, {results['in_steps']:.1%} in their steps",
    ]


def _figures(
    sweep: SweepConfig, records: dict[str, Record], sweep_seconds: float, alone_seconds: float, alone: int,
    concurrent: int,
) -> dict[str, Any]:  # fmt: skip
    unfinished = [record for record in records.values() if record.status != "finished"]
    if unfinished or len(records) != sweep.trials:
        raise TrainingError(f"{len(records)} of {sweep.trials} trials have records, {len(unfinished)} not finished")
    run = run_of(sweep, planned(sweep)[0], root="nowhere")
    images = run.total_steps * run.training.global_batch
    in_steps = sum(images / record.metrics["images_per_second"] for record in records.values())
    slots = sweep_seconds * concurrent
    found = {"sweep_per_hour": 3600 * len(records) / sweep_seconds, "alone_per_hour": 3600 * alone / alone_seconds}
    return found | {
        "trials": len(records),
        "steps": run.total_steps,
        "alone": alone,
        "concurrent": concurrent,
        "sweep_seconds": sweep_seconds,
        "alone_seconds": alone_seconds,
        "ratio": found["sweep_per_hour"] / found["alone_per_hour"],
        "in_trials": sum(record.seconds for record in records.values()) / slots,
        "in_steps": in_steps / slots,
    }


def _write_definition(root: str, *assignments: str, steps: int | None) -> str:
    """The measured sweep as a file; its path."""
    definition = load_sweep(DEFINITION, budget="tiny", assignments=[*SETTINGS, *assignments]).model_dump(mode="json")
    if steps is not None:
        paths = ("stages.gan.steps", "checkpoints.every", "evaluation.every", "training.log_every")
        definition["budgets"]["tiny"] |= dict.fromkeys(paths, steps)
    path = Path(root) / f"{DEFINITION}.yaml"
    path.write_text(yaml.safe_dump(definition))
    return str(path)


def _swept(path: str, root: str) -> float:
    """Wall seconds of the sweep in a process of its own."""
    began = time.monotonic()
    _finish(_start("sweep", "run", path, "--root", root, "--json"))
    return time.monotonic() - began


def _all_alone(runs: list[RunConfig], folder: str, concurrent: int) -> float:
    """Wall seconds of a process per run, so many at a time."""
    began = time.monotonic()
    for first in range(0, len(runs), concurrent):
        started = []
        for run in runs[first : first + concurrent]:
            path = Path(folder) / f"{run.name}.yaml"
            path.write_text(yaml.safe_dump(run.to_dict()))
            started.append(_start("train", str(path), "--json"))
        for process in started:
            _finish(process)
    return time.monotonic() - began


def _reading(run: RunConfig, root: str) -> RunConfig:
    """The run on the shards of another root."""
    shards = {split: f"{root}/shards/toy/{folder}" for split, folder in (("train", "train"), ("held_out", "test"))}
    return run.model_copy(update={"data": run.data.model_copy(update=shards)})


def _start(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "inpaint", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate()
    if process.returncode:
        raise TrainingError(f"{' '.join(process.args[2:5])} failed: {err.strip().splitlines()[-1]}")  # type: ignore
    return json.loads(out.splitlines()[-1])
