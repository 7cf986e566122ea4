"""What the records of a sweep say: rank agreement with a published table, importance of each setting, Pareto front.

Points are compared, not trials: among many points with several seeds each, the best single trial is a lucky one.
"""

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


@dataclass(frozen=True)
class Point:
    """One choice of values, judged by its mean over seeds.

    Attributes:
        id: that of its trials, without the seed.
        label: of its fixed point, or "random <number>".
        values: of the varied paths.
        trials: that finished with a finite score, by seed; one at least.
    """

    id: str
    label: str
    values: dict[str, Any]
    trials: tuple[Record, ...]

    @property
    def metrics(self) -> dict[str, float]:
        """Means over seeds, of what every one of its trials logged."""
        logged = set.intersection(*(set(trial.metrics) for trial in self.trials))
        return {name: float(np.mean([trial.metrics[name] for trial in self.trials])) for name in sorted(logged)}

    def told(self, metric: str) -> str:
        """Its score, with the deviation and the number of seeds where there are several."""
        values = [trial.metrics[metric] for trial in self.trials]
        over = f" ± {np.std(values, ddof=1):.2g} over {len(values)} seeds" if len(values) > 1 else ""
        return f"{np.mean(values):.4g}{over}"


def points(records: Mapping[str, Record], metric: str) -> list[Point]:
    """The points of finished trials with this score, in order."""
    groups: dict[str, list[Record]] = {}
    for record in finished(records, metric):
        groups.setdefault(record.id.partition("-")[0], []).append(record)
    return [Point(name, found[0].label, found[0].values, tuple(found)) for name, found in groups.items()]


def finished(records: Mapping[str, Record], metric: str) -> list[Record]:
    """Trials that came to the end of their budget with this score, in order."""
    return [r for r in records.values() if r.status == "finished" and math.isfinite(r.metrics.get(metric, math.nan))]


def ranked(records: Mapping[str, Record], sweep: SweepConfig) -> list[Point]:
    """Points, best first by their mean of the sweep's metric; those that fewer seeds have finished come behind."""

    def rank(point: Point) -> tuple[int, float]:
        return len(point.trials), _oriented(point.metrics[sweep.metric], sweep.metrics[sweep.metric])

    return sorted(points(records, sweep.metric), key=rank, reverse=True)


def spearman(first: Sequence[float], second: Sequence[float], *, seed: int = 0) -> Correlation | None:
    """Rank correlation of two scores of the same points; None for fewer than three, or where one does not vary.

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
    """How strongly a point's metric follows each varied number: |Spearman's correlation|, most important first.

    A monotone measure: it sees a weight whose effect goes one way, not one with its best in the middle, and nothing of
    interactions. Settings that are no numbers, or did not vary, are left out.
    """
    known = points(records, sweep.metric)
    found: dict[str, float] = {}
    for path in sweep.vary:
        pairs = [(p.values[path], p.metrics[sweep.metric]) for p in known if _is_number(p.values.get(path))]
        values = np.array(pairs, dtype=float).T
        if len(pairs) >= 3 and np.ptp(values, axis=1).min() > 0:
            found[path] = abs(_rank_correlation(values))
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def pareto_front(records: Mapping[str, Record], metrics: Mapping[str, str]) -> list[Point]:
    """Points that no other one equals or beats in every mean and beats in one; in order of the first metric.

    Args:
        records: of a sweep.
        metrics: direction (`max`, `min`) by name; points that lack one, have one that is not finite, or were finished
            by fewer seeds than others, are left out.
    """
    first = next(iter(metrics))
    known = [p for p in points(records, first) if all(math.isfinite(p.metrics.get(m, math.nan)) for m in metrics)]
    most = max((len(p.trials) for p in known), default=0)
    known = [p for p in known if len(p.trials) == most]
    places = {p.id: [_oriented(p.metrics[m], way) for m, way in metrics.items()] for p in known}
    front = [p for p in known if not any(_beats(places[o.id], places[p.id]) for o in known)]
    return sorted(front, key=lambda p: _oriented(p.metrics[first], metrics[first]), reverse=True)


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
