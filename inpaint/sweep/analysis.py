"""What the records of a sweep say: rank agreement with a published table, importance of each setting, Pareto front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from inpaint.config.sweep import Choice, LogUniform, SweepConfig
from inpaint.sweep.trials import Record

RESAMPLES = 2000
LOOKS = ("lpips_alex", "lpips_vgg", "lpips_squeeze", "health/checkerboard", "health/seam_error")


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation with its 95 % bootstrap interval over the `n` pairs it is made of."""

    value: float
    low: float
    high: float
    n: int


def finished(records: Mapping[str, Record], metric: str) -> list[Record]:
    """Trials that came to the end of their budget with this score, in order."""
    return [r for r in records.values() if r.status == "finished" and math.isfinite(r.metrics.get(metric, math.nan))]


def ranked(records: Mapping[str, Record], sweep: SweepConfig) -> list[Record]:
    """Finished trials, best first by the sweep's metric."""
    best_first = sweep.metrics[sweep.metric] == "max"
    return sorted(finished(records, sweep.metric), key=lambda r: r.metrics[sweep.metric], reverse=best_first)


def spearman(first: Sequence[float], second: Sequence[float], *, seed: int = 0) -> Correlation | None:
    """Rank correlation of two scores of the same trials; None for fewer than three, or where one does not vary.

    Ties get their mean rank. The interval is of a bootstrap over pairs; with ten pairs it is wide, as it should be.
    """
    pairs = np.array([first, second], dtype=float)
    n = pairs.shape[1]
    if n < 3 or np.ptp(pairs, axis=1).min() == 0:
        return None
    value = _rank_correlation(pairs)
    generator = np.random.default_rng(seed)
    drawn = []
    for _ in range(RESAMPLES):
        sample = pairs[:, generator.integers(0, n, n)]
        if np.ptp(sample, axis=1).min() > 0:
            drawn.append(_rank_correlation(sample))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Correlation(value, float(low), float(high), n)


def importance(records: Mapping[str, Record], sweep: SweepConfig) -> dict[str, float]:
    """How strongly the metric follows each varied number: |Spearman's correlation|, most important first.

    A monotone measure: it sees a weight whose effect goes one way, not one with its best in the middle, and nothing of
    interactions. Settings that are no numbers, or did not vary, are left out.
    """
    trials = finished(records, sweep.metric)
    found: dict[str, float] = {}
    for path in sweep.vary:
        pairs = [(r.values[path], r.metrics[sweep.metric]) for r in trials if _is_number(r.values.get(path))]
        values = np.array(pairs, dtype=float).T
        if len(pairs) >= 3 and np.ptp(values, axis=1).min() > 0:
            found[path] = abs(_rank_correlation(values))
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def pareto_front(records: Mapping[str, Record], metrics: Mapping[str, str]) -> list[Record]:
    """Finished trials that no other one equals or beats in every metric and beats in one; in order of the first metric.

    Args:
        records: of a sweep.
        metrics: direction (`max`, `min`) by name; trials that lack one, or have one that is not finite, are left out.
    """
    first = next(iter(metrics))
    trials = [r for r in finished(records, first) if all(math.isfinite(r.metrics.get(m, math.nan)) for m in metrics)]
    points = {r.id: [_oriented(r.metrics[m], way) for m, way in metrics.items()] for r in trials}
    front = [r for r in trials if not any(_beats(points[o.id], points[r.id]) for o in trials)]
    return sorted(front, key=lambda r: _oriented(r.metrics[first], metrics[first]), reverse=True)


def looks_in(records: Mapping[str, Record]) -> list[str]:
    """What was logged of how fills look, smaller is better: LPIPS first, then artefacts."""
    known = {metric for record in records.values() for metric in record.metrics}
    return [metric for metric in LOOKS if metric in known]


def compared(sweep: SweepConfig, records: Mapping[str, Record]) -> dict[str, str]:
    """The sweep's metric and what stands for the look, or its second metric where nothing of the look was logged."""
    others = {metric: "min" for metric in looks_in(records) if metric != sweep.metric}
    others |= {metric: way for metric, way in sweep.metrics.items() if metric != sweep.metric}
    return {sweep.metric: sweep.metrics[sweep.metric], **dict(list(others.items())[:1])}


def spread(records: Mapping[str, Record], metric: str) -> dict[str, tuple[float, float, int]]:
    """Label → mean, standard deviation and number of the score over seeds, for labels tried with more than one."""
    groups: dict[str, list[float]] = {}
    for record in finished(records, metric):
        groups.setdefault(record.label, []).append(record.metrics[metric])
    return {
        label: (float(np.mean(values)), float(np.std(values, ddof=1)), len(values))
        for label, values in groups.items()
        if len(values) > 1
    }


def axis_of(sweep: SweepConfig, path: str, value: Any) -> float:
    """Where a value lies on its distribution, 0 to 1: in the logarithm for log-uniform ones, by place for choices.

    A point may have values that the distribution never draws: they lie at its ends.
    """
    found = sweep.vary[path]
    if isinstance(found, Choice):
        place = found.choice.index(value) if value in found.choice else len(found.choice)
        share = place / max(1, len(found.choice) - 1)
    elif isinstance(found, LogUniform):
        low, high = (math.log(end) for end in found.loguniform)
        share = (math.log(max(float(value), 1e-12)) - low) / (high - low)
    else:
        low, high = found.uniform
        share = (float(value) - low) / (high - low)
    return min(max(share, 0.0), 1.0)


def _rank_correlation(pairs: np.ndarray) -> float:
    from scipy.stats import rankdata

    return float(np.corrcoef(rankdata(pairs[0]), rankdata(pairs[1]))[0, 1])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _oriented(value: float, way: str) -> float:
    return value if way == "max" else -value


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(a >= b for a, b in zip(one, other, strict=True)) and any(a > b for a, b in zip(one, other, strict=True))
