"""The report of a sweep as HTML, Markdown and CSV: the published table, ours beside it, and what the trials say."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from inpaint.config.sweep import SweepConfig
from inpaint.evaluation import html
from inpaint.evaluation.html import Section
from inpaint.evaluation.published import PublishedTable, published_tables
from inpaint.sweep.analysis import Correlation, axis_of, importance, pareto_front, ranked, spearman, spread
from inpaint.sweep.trials import Record, planned, read_records, recorded, run_of

BEST = 10  # trials in the table of the best
Row = Sequence[str]
Pictures = Mapping[str, Mapping[str, np.ndarray]]  # trial → label → uint8 [H, W, 3]
STATES = ("finished", "stopped", "diverged", "failed")


@dataclass(frozen=True)
class SweepReport:
    """The same report in three forms."""

    html: str
    markdown: str
    csv: str


@dataclass(frozen=True)
class Block:
    """A heading, sentences, and a table; `figure` is HTML that only the page shows."""

    title: str
    sentences: tuple[str, ...] = ()
    headings: Row = ()
    rows: Sequence[Row] = ()
    figure: str = ""


def report_sweep(name: str, *, root: str, pictures: Pictures | None = None) -> SweepReport:
    """The report of a sweep as far as it has come.

    Args:
        name: of the sweep.
        root: of the storage layout.
        pictures: for the picture grid of the front.

    Raises:
        ConfigError: no such sweep.
    """
    sweep = recorded(name, root=root)
    records = read_records(name, root=root)
    blocks = [
        _summary(sweep, records, root),
        *_beside_published(sweep, records),
        _best(sweep, records),
        _importance(sweep, records),
        _front(sweep, records),
        Block("Parallel coordinates", figure=_coordinates(sweep, records)),
        _terms(records),
        _spread(sweep, records),
        _unfinished(records),
    ]
    shown = [block for block in blocks if block.sentences or block.rows or block.figure]
    if pictures:
        shown.append(_grid(pictures))
    return SweepReport(
        html=html.page(f"Sweep {sweep.name}", sweep.about, [Section(b.title, _block_html(b)) for b in shown]),
        markdown="\n".join([f"# Sweep {sweep.name}", "", sweep.about, "", *(_block_markdown(b) for b in shown)]),
        csv=_csv(sweep, records),
    )


def rank_agreement(sweep: SweepConfig, records: Mapping[str, Record], metric: str) -> Correlation | None:
    """Rank correlation between the published scores and ours over the finished fixed points."""
    table = _published(sweep)
    if table is None:
        return None
    theirs = _printed(table, metric)
    pairs = [
        (theirs[row], record.metrics[metric])
        for record in records.values()
        if record.status == "finished" and (row := _row(record)) in theirs and metric in record.metrics
    ]
    return spearman(*zip(*pairs, strict=True)) if pairs else None


def _summary(sweep: SweepConfig, records: Mapping[str, Record], root: str) -> Block:
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
    if run and run.data.dataset != "places2":
        sentences.append(f"Marked: data set {run.data.dataset}, not the paper's")
    return Block("Summary", tuple(sentences))


def _beside_published(sweep: SweepConfig, records: Mapping[str, Record]) -> list[Block]:
    table = _published(sweep)
    if table is None:
        return []
    metrics = [metric for metric in sweep.metrics if metric in table.metrics]
    by_row = {_row(record): record for record in records.values() if _row(record)}
    settings = [path.rpartition(".")[2] for path in sweep.vary]
    rows = []
    for row in dict.fromkeys(str(number.row) for number in table.numbers):
        record = by_row.get(row)
        values = [_number(record.values.get(path)) if record else "–" for path in sweep.vary]
        numbers = {number.metric: number.printed for number in table.numbers if str(number.row) == row}
        printed = [numbers.get(metric, "–") for metric in metrics]
        ours = [_score(record, metric) for metric in metrics]
        rows.append([row, *values, *(cell for pair in zip(printed, ours, strict=True) for cell in pair)])
    headings = ["row", *settings, *(text for m in metrics for text in (f"{m}, printed", f"{m}, ours"))]
    sentences = []
    for metric in metrics:
        found = rank_agreement(sweep, records, metric)
        if found:
            sentences.append(
                f"Spearman's rank correlation of {metric}, printed against ours: {found.value:+.2f} "
                f"(95 % bootstrap interval {found.low:+.2f} to {found.high:+.2f}, {found.n} rows)"
            )
    sentences.append(f"Printed: {table.source}. The paper notes that score and look disagree; see the pictures.")
    return [Block(f"{table.title}: printed and ours", (*sentences, *table.notes), headings, rows)]


def _best(sweep: SweepConfig, records: Mapping[str, Record]) -> Block:
    paths = list(sweep.vary)
    rows = [
        [r.id, r.label, *(_number(r.values.get(p)) for p in paths), *(_score(r, m) for m in sweep.metrics)]
        for r in ranked(records, sweep)[:BEST]
    ]
    headings = ["trial", "point", *(path.rpartition(".")[2] for path in paths), *sweep.metrics]
    return Block(f"Best trials by {sweep.metric}", headings=headings, rows=rows)


def _importance(sweep: SweepConfig, records: Mapping[str, Record]) -> Block:
    found = importance(records, sweep)
    sentence = f"|Spearman's rank correlation| with {sweep.metric} over finished trials; blind to interactions."
    rows = [[path, f"{value:.2f}"] for path, value in found.items()]
    return Block("Importance of each setting", (sentence,) if rows else (), ("setting", "importance"), rows)


def _front(sweep: SweepConfig, records: Mapping[str, Record]) -> Block:
    metrics = _compared(sweep, records)
    if len(metrics) < 2:
        return Block("Pareto front")
    front = pareto_front(records, metrics)
    rows = [[r.id, r.label, *(_score(r, metric) for metric in metrics)] for r in front]
    first, second = list(metrics)[:2]
    points = sorted((r.metrics[first], r.metrics[second]) for r in front)
    figure = html.line_plot(f"{second} against {first}", {"front": points}) if len(points) > 1 else ""
    return Block(f"Pareto front of {' and '.join(metrics)}", (), ("trial", "point", *metrics), rows, figure)


def _compared(sweep: SweepConfig, records: Mapping[str, Record]) -> dict[str, str]:
    """The sweep's metric, and what stands for the look of a fill: LPIPS or an artefact score where it was measured."""
    looks = ("lpips_alex", "lpips_vgg", "lpips_squeeze", "health/checkerboard", "health/seam")
    known = {metric for record in records.values() for metric in record.metrics}
    extra = {metric: "min" for metric in looks if metric in known and metric not in sweep.metrics}
    return {**sweep.metrics, **dict(list(extra.items())[:1])}


def _terms(records: Mapping[str, Record]) -> Block:
    names = sorted({m for r in records.values() for m in r.metrics if "/" in m and not m.endswith("learning_rate")})
    rows = [[r.id, r.label, *(_score(r, name) for name in names)] for r in records.values()]
    sentence = "Unweighted, at the last logged step."
    if not names:
        return Block("Raw terms of the losses")
    return Block("Raw terms of the losses", (sentence,), ("trial", "point", *names), rows)


def _spread(sweep: SweepConfig, records: Mapping[str, Record]) -> Block:
    rows = [
        [label, f"{mean:.4g}", f"{deviation:.2g}", str(n)]
        for label, (mean, deviation, n) in spread(records, sweep.metric).items()
    ]
    return Block("Spread over seeds", (), ("point", f"mean {sweep.metric}", "standard deviation", "seeds"), rows)


def _unfinished(records: Mapping[str, Record]) -> Block:
    rows = [[r.id, r.label, r.status, str(r.step), r.reason] for r in records.values() if r.status != "finished"]
    return Block("Trials that did not finish", (), ("trial", "point", "state", "step", "reason"), rows)


def _grid(pictures: Pictures) -> Block:
    pieces = [html.slider(layers, trial) for trial, layers in pictures.items()]
    return Block("Fills of the front", figure=html.cards(pieces))


def _coordinates(sweep: SweepConfig, records: Mapping[str, Record]) -> str:
    """One line per finished trial over the axes of its settings and its score, the best in full colour."""
    paths = list(sweep.vary)
    trials = [r for r in ranked(records, sweep) if all(path in r.values for path in paths)]
    if len(trials) < 2 or not paths:
        return ""
    scores = [r.metrics[sweep.metric] for r in trials]
    low, high = min(scores), max(scores)
    width, height, names = 720, 300, [*paths, sweep.metric]
    places = np.linspace(60, width - 60, len(names))
    parts = []
    for position, record in reversed(list(enumerate(trials))):
        shares = [axis_of(sweep, path, record.values[path]) for path in paths]
        shares.append((record.metrics[sweep.metric] - low) / ((high - low) or 1.0))
        heights = [height - 40 - share * (height - 80) for share in shares]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(places, heights, strict=True))
        stroke = f'stroke="{html.COLOURS[0]}" stroke-opacity="{1 - 0.85 * position / len(trials):.2f}"'
        parts.append(f'<polyline points="{path}" fill="none" {stroke}/>')
    for x, name in zip(places, names, strict=True):
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="40" y2="{height - 40}" stroke="#8c8c8c"/>')
        label = html.text(name.rpartition(".")[2])
        parts.append(f'<text x="{x:.1f}" y="{height - 18}" font-size="11" text-anchor="middle">{label}</text>')
    frame = f'<svg width="{width}" height="{height}" role="img" font-family="system-ui">'
    return f"<figure>{frame}{''.join(parts)}</svg></figure>"


def _csv(sweep: SweepConfig, records: Mapping[str, Record]) -> str:
    paths = list(sweep.vary)
    metrics = sorted({metric for record in records.values() for metric in record.metrics})
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["trial", "point", "seed", "state", "step", *paths, *metrics, "seconds", "gpu_hours"])
    for r in records.values():
        values = [r.values.get(path, "") for path in paths] + [r.metrics.get(metric, "") for metric in metrics]
        writer.writerow([r.id, r.label, r.seed, r.status, r.step, *values, round(r.seconds, 1), round(r.gpu_hours, 4)])
    return file.getvalue()


def _published(sweep: SweepConfig) -> PublishedTable | None:
    return published_tables()[sweep.published] if sweep.published else None


def _printed(table: PublishedTable, metric: str) -> dict[str, float]:
    return {str(number.row): number.value for number in table.numbers if number.metric == metric}


def _row(record: Record) -> str | None:
    """The row of the published table that a fixed point stands for: "Table 1, row 3" is row 3."""
    head, _, number = record.label.rpartition(", row ")
    return number if head else None


def _score(record: Record | None, metric: str) -> str:
    if record is None or metric not in record.metrics:
        return "–"
    mark = "" if record.status == "finished" else f" ({record.status})"
    return f"{record.metrics[metric]:.4g}{mark}"


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "preset" if value is None else str(value)


def _block_html(block: Block) -> str:
    table = html.table(block.headings, [[html.text(cell) for cell in row] for row in block.rows]) if block.rows else ""
    return html.notes(block.sentences) + table + block.figure


def _block_markdown(block: Block) -> str:
    lines = [f"## {block.title}", "", *(f"- {sentence}" for sentence in block.sentences), ""]
    if block.rows:
        body = [block.headings, ["---"] * len(block.headings), *block.rows]
        lines += ["| " + " | ".join(row) + " |" for row in body] + [""]
    return "\n".join(lines)
