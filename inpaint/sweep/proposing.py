"""The next points of a search that learns from results: Optuna's tree-structured Parzen estimator."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from inpaint.config.sweep import Choice, LogUniform, SweepConfig
from inpaint.sweep.trials import Record


def propose(sweep: SweepConfig, records: list[Record], count: int) -> list[dict[str, Any]]:
    """The next `count` points of Optuna's TPE, given what is known; the same for the same records.

    With `search.multi_objective` all metrics count, else the first. A trial teaches when it finished with finite scores
    at values that the search could draw. One that successive halving stopped ranks behind those, by how far it came
    and its score there, as Optuna has it for pruned trials; over several metrics there is no such rank.
    """
    import optuna

    space = _space(sweep)
    names = list(sweep.metrics) if sweep.search.multi_objective else [sweep.metric]  # type: ignore[union-attr]
    directions = ["maximize" if sweep.metrics[name] == "max" else "minimize" for name in names]
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=sweep.search.seed + len(records), multivariate=True, constant_liar=True)
    study = optuna.create_study(directions=directions, sampler=sampler)
    for record in sorted(records, key=lambda record: record.id):
        values = [record.metrics.get(name, math.nan) for name in names]
        if not all(map(math.isfinite, values)) or not _could_be_drawn(sweep, record.values):
            continue
        ended: dict[str, Any] = {}
        if record.status == "finished":
            ended = {"values": values}
        elif record.status == "stopped" and len(names) == 1:
            ended = {"state": optuna.trial.TrialState.PRUNED, "intermediate_values": {record.step: values[0]}}
        if ended:
            study.add_trial(optuna.trial.create_trial(params=record.values, distributions=space, **ended))
    return [study.ask(space).params for _ in range(count)]


def _could_be_drawn(sweep: SweepConfig, values: Mapping[str, Any]) -> bool:
    """Whether each varied path has a value within its distribution; a fixed point may have others, or none."""
    for path, found in sweep.vary.items():
        value = values.get(path)
        if isinstance(found, Choice):
            inside = value in found.choice
        else:
            low, high = found.loguniform if isinstance(found, LogUniform) else found.uniform
            inside = isinstance(value, int | float) and low <= value <= high
        if not inside:
            return False
    return True


def _space(sweep: SweepConfig) -> dict[str, Any]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    space: dict[str, Any] = {}
    for path, found in sweep.vary.items():
        if isinstance(found, Choice):
            space[path] = CategoricalDistribution(found.choice)
        else:
            logarithmic = isinstance(found, LogUniform)
            low, high = found.loguniform if logarithmic else found.uniform
            space[path] = FloatDistribution(low, high, log=logarithmic)
    return space
