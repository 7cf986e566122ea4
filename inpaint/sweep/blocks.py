"""The parts of a sweep's report: each a heading, sentences and a table, and for the page a figure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np

from inpaint.config.sweep import SweepConfig
from inpaint.evaluation import html
from inpaint.evaluation.protocols import data_set
from inpaint.evaluation.published import PublishedTable, published_tables
from inpaint.sweep.analysis import (
    Correlation,
    Point,
    compared,
    finished,
    importance,
    looks_in,
    pareto_front,
    points,
    ranked,
    spearman,
    spread,
)
from inpaint.sweep.coordinates import coordinates
from inpaint.sweep.trials import Record, planned, run_of

BEST = 10  # trials in the table of the best
Row = Sequence[str]
Records = Mapping[str, Record]
Pictures = Mapping[str, Mapping[str, np.ndarray]]  # trial → label → uint8 [H, W, 3]
STATES = ("finished", "stopped", "diverged", "failed")
SHARE = "health/share/"


@dataclass(frozen=True)
class Block:
    """A heading, sentences, and a table; `figure` is HTML that only the page shows."""

    title: str
    sentences: tuple[str, ...] = ()
    headings: Row = ()
    rows: Sequence[Row] = ()
    figure: str = ""


def rank_agreement(table: str, records: Records, metric: str) -> Correlation | None:
    """Rank correlation between a published table's scores and ours, means over seeds, over its finished rows."""
    theirs, ours = _printed(published_tables()[table], metric), _by_row(table, finished(records, metric))
    pairs = [(theirs[row], fmean(r.metrics[metric] for r in found)) for row, found in ours.items() if row in theirs]
    return spearman(*zip(*pairs, strict=True)) if pairs else None


def summary(sweep: SweepConfig, records: Records, root: str) -> Block:
    """How far the sweep has come, under which budget, and what marks its numbers."""
    run = run_of(sweep, planned(sweep)[0], root=root) if planned(sweep) else None
    states = {state: sum(record.status == state for record in records.values()) for state in STATES}
    told = ", ".join(f"{count} {state}" for state, count in states.items() if count)
    budget = f"Preset {sweep.preset}, budget {sweep.budget or 'as in the preset'}"
    if run:
        size, batch = run.data.image_size, run.training.global_batch
        budget += f": {run.total_steps} steps of {batch} images at {size} pixels"
    hours = sum(record.gpu_hours for record in records.values())
    total = sweep.trials * len(sweep.seeds)
    sentences = [
        f"{len(records)} of {total} trials: {told or 'none yet'}",
        budget,
        f"{hours:.2f} GPU-hours, {sum(r.seconds for r in records.values()) / 3600:.2f} hours of training",
        f"Every trial has the same initial weights, data order, holes and evaluation pairs; seeds {list(sweep.seeds)}",
    ]
    if run and "random" in (run.feature_weights.vgg16, run.feature_weights.vgg19):
        sentences.append("Marked: the feature network had RANDOM weights; nothing here compares with the paper")
    papers = dict.fromkeys(published_tables()[name].dataset for name in sweep.published)
    if run and papers and data_set(run.data.dataset) not in papers:
        sentences.append(f"Marked: data set {run.data.dataset}, not {' or '.join(papers)} as in the paper's tables")
    return Block("Summary", tuple(sentences))


def beside_published(sweep: SweepConfig, records: Records) -> list[Block]:
    """Each published table with ours beside it."""
    return [_beside(name, sweep, records) for name in sweep.published]


def _beside(name: str, sweep: SweepConfig, records: Records) -> Block:
    table = published_tables()[name]
    metrics = [metric for metric in sweep.metrics if metric in table.metrics]
    by_row = _by_row(name, records.values())
    settings = [path.rpartition(".")[2] for path in sweep.vary]
    rows = []
    for row in dict.fromkeys(str(number.row) for number in table.numbers):
        found = by_row.get(row, [])
        values = [_number(found[0].values.get(path)) if found else "–" for path in sweep.vary]
        numbers = {number.metric: number.printed for number in table.numbers if str(number.row) == row}
        printed = [numbers.get(metric, "–") for metric in metrics]
        ours = [_scores(found, metric) for metric in metrics]
        rows.append([row, *values, *(cell for pair in zip(printed, ours, strict=True) for cell in pair)])
    headings = ["row", *settings, *(text for m in metrics for text in (f"{m}, printed", f"{m}, ours"))]
    sentences = []
    for metric in metrics:
        agreement = rank_agreement(name, records, metric)
        if agreement:
            sentences.append(
                f"Spearman's rank correlation of {metric}, printed against ours: {agreement.value:+.2f} "
                f"(95 % bootstrap interval {agreement.low:+.2f} to {agreement.high:+.2f}, {agreement.n} rows)"
            )
    sentences.append(f"Printed: {table.source}. The paper notes that score and look disagree; see the pictures.")
    title = f"Table {_number_of(name)}, {table.title}: printed and ours"
    return Block(title, (*sentences, *table.notes), headings, rows)


def best(sweep: SweepConfig, records: Records) -> Block:
    """The best points by the metric that decides."""
    paths = list(sweep.vary)
    rows = [
        [p.id, p.label, *(_number(p.values.get(path)) for path in paths), *_means(sweep, p, sweep.metrics)]
        for p in ranked(records, sweep)[:BEST]
    ]
    headings = ["trial", "point", *(path.rpartition(".")[2] for path in paths), *sweep.metrics, *_seeds(sweep)]
    return Block(f"Best trials by {sweep.metric}", _of_seeds(sweep) if rows else (), headings, rows)


def importance_block(sweep: SweepConfig, records: Records) -> Block:
    """What each setting matters."""
    found = importance(records, sweep)
    over = "means over seeds" if len(sweep.seeds) > 1 else "finished trials"
    sentence = f"|Spearman's rank correlation| with {sweep.metric} over {over}; blind to interactions."
    rows = [[path, f"{value:.2f}"] for path, value in found.items()]
    return Block("Importance of each setting", (sentence,) if rows else (), ("setting", "importance"), rows)


def front(sweep: SweepConfig, records: Records) -> Block:
    """The points that none beats in score and look at once."""
    metrics = compared(sweep, records)
    if len(metrics) < 2:
        return Block("Pareto front")
    on_front = pareto_front(records, metrics)
    rows = [[p.id, p.label, *_means(sweep, p, metrics)] for p in on_front]
    first, second = metrics
    places = sorted((p.metrics[first], p.metrics[second]) for p in on_front)
    figure = html.line_plot(f"{second} against {first}", {"front": places}) if len(places) > 1 else ""
    headings = ("trial", "point", *metrics, *_seeds(sweep))
    sentences = _of_seeds(sweep) if rows else ()
    return Block(f"Pareto front of {first} and {second}", sentences, headings, rows, figure)


def _seeds(sweep: SweepConfig) -> list[str]:
    """The heading of a column that only a sweep of several seeds has."""
    return ["seeds"] if len(sweep.seeds) > 1 else []


def _means(sweep: SweepConfig, point: Point, metrics: Iterable[str]) -> list[str]:
    """A point's means and deviations, and by how many of its seeds."""
    seeds = [f"{len(point.trials)} of {len(sweep.seeds)}" for _ in _seeds(sweep)]
    return [*(_scores(point.trials, metric) for metric in metrics), *seeds]


def _of_seeds(sweep: SweepConfig) -> tuple[str, ...]:
    """What the numbers of a sweep of several seeds are."""
    return ("Mean over seeds ± standard deviation; points are compared, not single trials",) if _seeds(sweep) else ()


def looks(sweep: SweepConfig, records: Records) -> Block:
    """Scores beside what eyes notice, and what each trial cost."""
    names = [*sweep.metrics, *looks_in(records)]
    sentences = []
    for look in names[len(sweep.metrics) :]:
        found = points(records, sweep.metric)
        pairs = [(p.metrics[sweep.metric], p.metrics[look]) for p in found if look in p.metrics]
        agreement = spearman(*zip(*pairs, strict=True)) if pairs else None
        if agreement:
            sentences.append(
                f"Spearman's rank correlation of {sweep.metric} with {look}: {agreement.value:+.2f} "
                f"({agreement.low:+.2f} to {agreement.high:+.2f}, {agreement.n} points)"
            )
    if sentences:
        agreement_at = "-1" if sweep.metrics[sweep.metric] == "max" else "+1"
        sentences.append(f"A smaller value looks better, so {agreement_at} would be full agreement of score and look")
    rows = [
        [r.id, r.label, *(_score(r, n) for n in names), f"{r.seconds:.0f}", f"{r.gpu_hours:.3g}"]
        for r in records.values()
    ]
    return Block("Score, look and cost", tuple(sentences), ("trial", "point", *names, "seconds", "GPU-hours"), rows)


def terms(records: Records) -> Block:
    """Raw magnitude of each loss term, and its weighted share in the gradient at what the network drew."""
    logged = {metric for record in records.values() for metric in record.metrics}
    shares = sorted(name for name in logged if name.startswith(SHARE))
    raw = sorted(
        name for name in logged
        if "/" in name and not name.startswith(("health/", "data/")) and not name.endswith(("/learning_rate", "/loss"))
    )  # fmt: skip
    if not raw:
        return Block("Terms of the losses")
    rows = [
        [r.id, r.label, *(_score(r, n) for n in raw), *(_percent(r, n) for n in shares)] for r in records.values()
    ]
    headings = ["trial", "point", *raw, *(f"{name.removeprefix(SHARE)}, share" for name in shares)]
    sentence = "Unweighted, at the last logged step; shares of the weighted terms in the gradient at the last look."
    return Block("Terms of the losses", (sentence,), headings, rows)


def spread_block(sweep: SweepConfig, records: Records) -> Block:
    """How far seeds alone move the score."""
    rows = [
        [label, f"{mean:.4g}", f"{deviation:.2g}", str(n)]
        for label, (mean, deviation, n) in spread(records, sweep.metric).items()
    ]
    return Block("Spread over seeds", (), ("point", f"mean {sweep.metric}", "standard deviation", "seeds"), rows)


def unfinished(records: Records) -> Block:
    """Trials that came to another end."""
    rows = [[r.id, r.label, r.status, str(r.step), r.reason] for r in records.values() if r.status != "finished"]
    return Block("Trials that did not finish", (), ("trial", "point", "state", "step", "reason"), rows)


def coordinates_block(sweep: SweepConfig, records: Records) -> Block:
    """Parallel coordinates of settings and score."""
    return Block("Parallel coordinates", figure=coordinates(sweep, records))


def grid(pictures: Pictures) -> Block:
    """Held-out images filled by the trials of the front."""
    pieces = [html.slider(layers, trial) for trial, layers in pictures.items()]
    return Block("Fills of the front", figure=html.cards(pieces))


def _printed(table: PublishedTable, metric: str) -> dict[str, float]:
    return {str(number.row): number.value for number in table.numbers if number.metric == metric}


def _number_of(table: str) -> str:
    """The number that a paper gives its table: 7 of isnet_table7."""
    return table.rpartition("table")[2]


def _by_row(table: str, records: Iterable[Record]) -> dict[str, list[Record]]:
    """Trials by the row of a published table that their point stands for, one for each seed.

    Of "Table 7, row 4: ISNet; Table 8, row 4: 4 blocks" it is row 4 in both.
    """
    place = re.compile(rf"Table {_number_of(table)}, row (\w+)")
    found: dict[str, list[Record]] = {}
    for record in records:
        if match := place.search(record.label):
            found.setdefault(match[1], []).append(record)
    return found


def _scores(records: Sequence[Record], metric: str) -> str:
    """A score, or its mean and deviation over seeds; of trials that did not finish only where none did."""
    done = finished({record.id: record for record in records}, metric)
    if len(done) > 1:
        values = [record.metrics[metric] for record in done]
        return f"{fmean(values):.4g} ± {stdev(values):.2g}"
    return _score(next(iter((*done, *records)), None), metric)


def _percent(record: Record, metric: str) -> str:
    return f"{record.metrics[metric]:.1%}" if metric in record.metrics else "–"


def _score(record: Record | None, metric: str) -> str:
    if record is None or metric not in record.metrics:
        return "–"
    mark = "" if record.status == "finished" else f" ({record.status})"
    return f"{record.metrics[metric]:.4g}{mark}"


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "preset" if value is None else str(value)
