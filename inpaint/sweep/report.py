"""The report of a sweep as HTML, Markdown and CSV: the published table, ours beside it, and what the trials say."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass

from inpaint.config.sweep import SweepConfig
from inpaint.evaluation import html
from inpaint.evaluation.html import Section
from inpaint.evaluation.report import markdown_table
from inpaint.sweep import blocks
from inpaint.sweep.blocks import Block, Pictures
from inpaint.sweep.trials import Record, read_records, recorded


@dataclass(frozen=True)
class SweepReport:
    """The same report in three forms."""

    html: str
    markdown: str
    csv: str


def report_sweep(name: str, *, root: str, pictures: Pictures | None = None) -> SweepReport:
    """The report of a sweep as far as it has come.

    Args:
        name: of the sweep.
        root: of the storage layout.
        pictures: for the picture grid of the front.

    Raises:
        ConfigError: no such sweep.
    """
    sweep, records = recorded(name, root=root), read_records(name, root=root)
    parts = [
        blocks.summary(sweep, records, root),
        *blocks.beside_published(sweep, records),
        blocks.best(sweep, records),
        blocks.importance_block(sweep, records),
        blocks.front(sweep, records),
        *([blocks.grid(pictures)] if pictures else []),
        blocks.looks(sweep, records),
        blocks.coordinates_block(sweep, records),
        blocks.terms(records),
        blocks.spread_block(sweep, records),
        blocks.unfinished(records),
    ]
    shown = [part for part in parts if part.sentences or part.rows or part.figure]
    told = [_markdown(part) for part in shown if part.sentences or part.rows]
    return SweepReport(
        html=html.page(f"Sweep {sweep.name}", sweep.about, [Section(b.title, _html(b)) for b in shown]),
        markdown="\n".join([f"# Sweep {sweep.name}", "", sweep.about, "", *told]),
        csv=_csv(sweep, records),
    )


def _html(block: Block) -> str:
    table = html.table(block.headings, [[html.text(cell) for cell in row] for row in block.rows]) if block.rows else ""
    return html.notes(block.sentences) + table + block.figure


def _markdown(block: Block) -> str:
    lines = [f"## {block.title}", "", *(f"- {sentence}" for sentence in block.sentences), ""]
    if block.rows:
        lines += [*markdown_table(block.headings, block.rows), ""]
    return "\n".join(lines)


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
