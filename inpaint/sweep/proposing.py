"""The next points of a search that learns from results: Optuna's tree-structured Parzen estimator."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from inpaint.config.sweep import Choice, LogUniform, SweepConfig
from inpaint.sweep.trials import Record


def propose(sweep: SweepConfig, records: list[Record], count: int) -> list[dict[str, Any]]:
    """The next `count` points of Optuna's TPE, given what is known; the same for the same records.

    With `search.multi_objective` all metrics count, else the first. A trial teaches at values that the search could
    draw: by its scores when it finished, and behind all those, so that the search keeps away, when it diverged. One
    that successive halving stopped ranks between them, by how far it came and its score there, as Optuna has it for
    pruned trials; over several metrics there is no such rank, and it teaches nothing. Nor does one that failed, for
    its values need not be the reason.
    """
    import optuna

    space = _space(sweep)
    names = list(sweep.metrics) if sweep.search.multi_objective else [sweep.metric]  # type: ignore[union-attr]
    directions = ["maximize" if sweep.metrics[name] == "max" else "minimize" for name in names]
    teaching = [r for r in records if r.status != "failed" and _could_be_drawn(sweep, r.values)]
    worst = _worst(sweep, teaching, names)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seed = np.random.SeedSequence([sweep.search.seed, len(records)]).generate_state(1)  # a sum would make seeds alike
    sampler = optuna.samplers.TPESampler(seed=int(seed[0]), multivariate=True, constant_liar=True)
    study = optuna.create_study(directions=directions, sampler=sampler)
    for record in sorted(teaching, key=lambda record: record.id):
        values, stopped = _scores(record, names), record.status == "stopped"
        ended: dict[str, Any] = {}
        if values and not stopped:
            ended = {"values": values}
        elif len(names) == 1:  # a pruned trial without a score ranks last
            reached = {record.step: values[0]} if values else {}
            ended = {"state": optuna.trial.TrialState.PRUNED, "intermediate_values": reached}
        elif worst and not stopped:
            ended = {"values": worst}
        if ended:
            study.add_trial(optuna.trial.create_trial(params=record.values, distributions=space, **ended))
    return [study.ask(space).params for _ in range(count)]


def _scores(record: Record, names: Sequence[str]) -> list[float]:
    """Those of a trial that tell how good its values are; empty when it diverged, or one is not finite."""
    values = [record.metrics.get(name, math.nan) for name in names]
    return values if record.status != "diverged" and all(map(math.isfinite, values)) else []


def _worst(sweep: SweepConfig, records: Sequence[Record], names: Sequence[str]) -> list[float]:
    """The worst score of finished trials in each metric; empty before one has finished."""
    finished = [scores for r in records if r.status == "finished" and (scores := _scores(r, names))]
    by_name = zip(names, zip(*finished, strict=True), strict=True) if finished else ()
    return [min(values) if sweep.metrics[name] == "max" else max(values) for name, values in by_name]


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
