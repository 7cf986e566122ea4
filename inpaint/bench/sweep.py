"""A sweep's throughput against the straightforward way: a fresh `inpaint train` process per trial, as many at a time.

The trials are the first of ISNet's loss-weight search under its `tiny` budget (20 steps of 4 images at 32 pixels), on
drawn pictures, with random feature weights. Both ways are started from the command line and pay for all of their own
start; half of the processes run before the sweep and half after it, so that a busy neighbour slows both. CPU time is
beside wall time, because it hardly depends on neighbours.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from inpaint.bench.processes import run_together
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
        "sweep" and "alone": "seconds" (wall, all trials), "cpu_seconds" (of a trial), "per_hour" (trials); "ratio" of
        trials per hour, "cpu_ratio"; "in_trials" and "in_steps" (shares of the sweep's slots that trials, and their
        steps, filled; the latter from the speed at the end of each trial, scoring included).

    Raises:
        TrainingError: a trial of either way did not finish.
    """
    with tempfile.TemporaryDirectory(prefix="inpaint-bench-") as root:
        write_shards(root)
        path = _write_definition(root, f"trials={trials}", f"concurrent={concurrent}", steps=steps)
        sweep = load_sweep(path)
        runs = [run_of(sweep, trial, root=f"{root}/alone") for trial in planned(sweep)[:alone]]
        runs = [_reading(run, root) for run in runs]
        before = _all_alone(runs[: alone // 2], root, concurrent)
        swept = run_together([_command("sweep", "run", path, "--root", root)])
        after = _all_alone(runs[alone // 2 :], root, concurrent)
        records = read_records(sweep.name, root=root)
    both = (before[0] + after[0], before[1] + after[1])
    return _figures(sweep, records, _cost(*swept, trials=trials), _cost(*both, trials=alone), concurrent)


def report(results: dict[str, Any]) -> list[str]:
    """Lines for a person."""
    sweep, alone = results["sweep"], results["alone"]
    return [
        f"{sweep['trials']} trials of {results['steps']} steps, {results['concurrent']} at a time, with Ray's start",
        "                            trials/hour   wall s   CPU s per trial",
        f"one sweep                   {sweep['per_hour']:11.0f} {sweep['seconds']:8.0f} {sweep['cpu_seconds']:17.1f}",
        f"a process per trial ({alone['trials']:2d})    {alone['per_hour']:11.0f} {alone['seconds']:8.0f} "
        f"{alone['cpu_seconds']:17.1f}",
        f"ratio                       {results['ratio']:11.2f} {'':8} {results['cpu_ratio']:17.2f}  (floor {FLOOR:g})",
        f"share of the sweep's time   {results['in_trials']:11.1%} in trials, {results['in_steps']:.1%} training",
    ]


def _cost(seconds: float, cpu_seconds: float, *, trials: int) -> dict[str, float]:
    return {
        "trials": trials,
        "seconds": seconds,
        "per_hour": 3600 * trials / seconds,
        "cpu_seconds": cpu_seconds / trials,
    }


def _figures(
    sweep: SweepConfig, records: dict[str, Record], swept: dict[str, float], alone: dict[str, float], concurrent: int
) -> dict[str, Any]:
    unfinished = [record for record in records.values() if record.status != "finished"]
    if unfinished or len(records) != sweep.trials:
        raise TrainingError(f"{len(records)} of {sweep.trials} trials have records, {len(unfinished)} not finished")
    run = run_of(sweep, planned(sweep)[0], root="nowhere")
    images = run.total_steps * run.training.global_batch
    in_steps = sum(images / record.metrics["images_per_second"] for record in records.values())
    in_trials, slots = sum(record.seconds for record in records.values()), swept["seconds"] * concurrent
    return {
        "steps": run.total_steps,
        "concurrent": concurrent,
        "sweep": swept,
        "alone": alone,
        "ratio": swept["per_hour"] / alone["per_hour"],
        "cpu_ratio": alone["cpu_seconds"] / swept["cpu_seconds"] if swept["cpu_seconds"] else 0.0,
        "in_trials": in_trials / slots,
        "in_steps": min(in_steps, in_trials) / slots,
    }


def _write_definition(root: str, *assignments: str, steps: int | None) -> str:
    """The measured sweep as a file; its path."""
    definition = load_sweep(DEFINITION, budget="tiny", assignments=[*SETTINGS, *assignments]).model_dump(mode="json")
    if steps is not None:
        paths = ("stages.gan.steps", "checkpoints.every", "evaluation.every", "training.log_every")
        definition["budgets"]["tiny"] |= dict.fromkeys(paths, steps)
    path = Path(root) / f"{DEFINITION}.yaml"
    path.write_text(yaml.safe_dump(definition, sort_keys=False))  # the first metric decides
    return str(path)


def _all_alone(runs: list[RunConfig], folder: str, concurrent: int) -> tuple[float, float]:
    """Wall and CPU seconds of a process per run, so many at a time."""
    costs = []
    for first in range(0, len(runs), concurrent):
        paths = [_write_run(run, folder) for run in runs[first : first + concurrent]]
        costs.append(run_together([_command("train", path) for path in paths]))
    return sum(seconds for seconds, _ in costs), sum(cpu for _, cpu in costs)


def _write_run(run: RunConfig, folder: str) -> str:
    path = Path(folder) / f"{run.name}.yaml"
    path.write_text(yaml.safe_dump(run.to_dict()))
    return str(path)


def _reading(run: RunConfig, root: str) -> RunConfig:
    """The run on the shards of another root."""
    shards = {split: f"{root}/shards/toy/{folder}" for split, folder in (("train", "train"), ("held_out", "test"))}
    return run.model_copy(update={"data": run.data.model_copy(update=shards)})


def _command(*words: str) -> list[str]:
    return [sys.executable, "-m", "inpaint", *words]
