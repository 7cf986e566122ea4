"""The next points of a search that learns from results: Optuna's tree-structured Parzen estimator."""

from __future__ import annotations

from typing import Any

from inpaint.config.sweep import Choice, LogUniform, SweepConfig
from inpaint.sweep.trials import Record


def propose(sweep: SweepConfig, records: list[Record], count: int) -> list[dict[str, Any]]:
    """The next `count` points of Optuna's TPE, given what is known; the same for the same records.

    With `search.multi_objective` all metrics count, else the first. Trials without a score teach nothing.
    """
    import optuna

    space = _space(sweep)
    names = list(sweep.metrics) if sweep.search.multi_objective else [sweep.metric]  # type: ignore[union-attr]
    directions = ["maximize" if sweep.metrics[name] == "max" else "minimize" for name in names]
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=sweep.search.seed + len(records), multivariate=True, constant_liar=True)
    study = optuna.create_study(directions=directions, sampler=sampler)
    for record in sorted(records, key=lambda record: record.id):
        if all(name in record.metrics for name in names) and set(space) <= set(record.values):
            values = [record.metrics[name] for name in names]
            study.add_trial(optuna.trial.create_trial(params=record.values, distributions=space, values=values))
    return [study.ask(space).params for _ in range(count)]


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
