"""A run on one page: what it was, how it went, what it scores, what it draws. HTML without a network, and Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inpaint import checkpoints, storage
from inpaint.config.base import load_yaml
from inpaint.errors import EvaluationError, InpaintError
from inpaint.evaluation import html
from inpaint.evaluation.collection import Found, results_of
from inpaint.evaluation.gallery import Shown, gallery
from inpaint.evaluation.health import Health, read_health, series_of
from inpaint.evaluation.html import Section
from inpaint.evaluation.protocols import PROTOCOLS
from inpaint.evaluation.results import Table
from inpaint.evaluation.showing import interval_text, label_of, mean_text, notes_of, set_lines
from inpaint.evaluation.statistics import Estimate

NO_LOSSES = ("learning_rate", "gradient_norm", "_weight")  # ends of names that stand beside an update's losses


@dataclass(frozen=True)
class Report:
    """A page in both forms."""

    html: str
    markdown: str


@dataclass(frozen=True)
class Facts:
    """What a run left behind.

    Attributes:
        url: the run's folder.
        settings: `run.yaml`, as text.
        provenance: `provenance.json`.
        history: logged rows.
        checkpoints: whole ones.
        results: evaluations, the oldest first.
        pictures: of the newest result.
        remarks: what could not be shown, and why.
    """

    url: str
    settings: str
    provenance: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    checkpoints: Sequence[checkpoints.CheckpointInfo]
    results: Sequence[Found]
    pictures: Sequence[Shown]
    remarks: Sequence[str]


def report_run(url: str, *, leaks: Sequence[str] = ()) -> Report:
    """The page of the run at `url`, local or in S3.

    Args:
        url: the run's folder.
        leaks: what the leak check said of its test sets.

    Raises:
        EvaluationError: there is no run.
    """
    facts = gather(url)
    health = read_health(facts.history)
    return Report(_html(facts, health, leaks), _markdown(facts, health, leaks))


def gather(url: str) -> Facts:
    """Everything the page shows.

    Raises:
        EvaluationError: there is no run at `url`.
    """
    place = storage.join(url, "run.yaml")
    if not storage.exists(place):
        raise EvaluationError(f"{url}: no run here (run.yaml is missing); give a run's name and --root")
    settings = storage.read_bytes(place).decode()
    provenance = storage.join(url, "provenance.json")
    results, remarks, pictures = results_of(url), [], []
    if results:
        try:
            pictures = gallery(results[-1], subject=list(results[-1].result.subjects)[-1])
        except InpaintError as error:
            remarks.append(f"no pictures: {error}")
    else:
        remarks.append("not evaluated yet; after `inpaint evaluate` this page shows tables and pictures too")
    return Facts(
        url,
        settings,
        json.loads(storage.read_bytes(provenance)) if storage.exists(provenance) else {},
        checkpoints.read_history(url),
        checkpoints.list_checkpoints(url),
        results,
        pictures,
        remarks,
    )


def curves(history: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Title → label → points: losses of each update, learning rates, ramped weights, scores."""
    names = sorted({name for row in history for name in row if name != "step"})
    updates = sorted({name.split("/")[0] for name in names if "/" in name})
    found = {}
    for update in updates:
        terms = [n for n in names if n.startswith(update + "/") and not n.endswith(NO_LOSSES)]
        found[f"{update}: loss and its terms"] = series_of(history, terms)
    found["learning rates"] = series_of(history, [n for n in names if n.endswith("learning_rate")])
    found["weights of terms that are ramped"] = series_of(history, [n for n in names if n.endswith("_weight")])
    scores = [name for name in names if "/" not in name]
    for score in [name for name in scores if "@" not in name]:
        found[f"held-out {score}"] = series_of(history, [n for n in scores if n == score or n.startswith(score + "@")])
    return {title: series for title, series in found.items() if series}


def _html(facts: Facts, health: Health, leaks: Sequence[str]) -> str:
    sections = [
        Section("Summary", html.facts(_summary(facts)) + html.notes([*facts.remarks, *leaks])),
        Section("Curves", html.plots([html.line_plot(*curve) for curve in curves(facts.history).items()])),
        Section("Health of the GAN", _health_html(health)),
        Section("Scores", "".join(_result_html(found) for found in reversed(facts.results))),
        Section("Pictures", _pictures_html(facts)),
        Section("Checkpoints", _checkpoints_html(facts)),
        Section("Settings and provenance", _settings_html(facts)),
    ]
    return html.page(storage.name_of(facts.url), facts.url, [section for section in sections if section.body])


def _summary(facts: Facts) -> dict[str, object]:
    run = load_yaml(facts.settings, place=facts.url)
    last = facts.history[-1]["step"] if facts.history else 0
    total = sum(stage["steps"] for stage in run["stages"].values())
    return {
        "method": run["method"]["name"],
        "preset": run.get("preset") or "none",
        "data": f"{run['data']['dataset']} at {run['data']['image_size']} pixels",
        "logged up to": f"step {last:,} of {total:,}",
        "stages": ", ".join(f"{name} {stage['steps']:,}" for name, stage in run["stages"].items() if stage["steps"]),
        "checkpoints kept": len(facts.checkpoints),
        "evaluations": len(facts.results),
    }


def _health_html(health: Health) -> str:
    if not health.plots and not health.alarms:
        return ""
    drawn = html.plots([html.line_plot(title, series) for title, series in health.plots.items()])
    verdict = html.notes(health.alarms) or "<p>Nothing stands out.</p>"
    return verdict + drawn + (html.facts(health.readings) if health.readings else "")


def _result_html(found: Found) -> str:
    parts = [f"<h3>{html.text(storage.name_of(found.url))}</h3>"]
    for subject, tables in found.result.tables.items():
        for name, table in tables.items():
            title = f"{name}, {subject}, {found.result.stamp.protocols[name]['mask_kind']}"
            parts.append(f"<h3>{html.text(title)}</h3>{_table_html(name, table)}")
            sets = [line for line in set_lines(found.result, name) if line.startswith(subject + " ")]
            parts.append("".join(f"<p>{html.text(line)}</p>" for line in sets))
            parts.append(html.notes(notes_of(found.result, name)))
    for title, tables in found.result.differences.items():
        for name, table in tables.items():
            parts.append(f"<h3>{html.text(f'{title}, paired, {name}')}</h3>{_table_html(name, table, paired=True)}")
    return "".join(parts) + html.folded("stamp", json.dumps(found.result.stamp.to_dict(), indent=1))


def _table_html(name: str, table: Table, *, paired: bool = False) -> str:
    rules = PROTOCOLS[name]
    columns = list(dict.fromkeys(column for cells in table.values() for column in cells))

    def cell(estimate: Estimate | None, column: str) -> str:
        if estimate is None:
            return "–"
        mean = html.text(mean_text(rules, column, estimate, paired=paired))
        return f"{mean}<small>{html.text(interval_text(rules, column, estimate, paired=paired))}</small>"

    rows = [
        [html.text(row), str(next(iter(cells.values())).n), *(cell(cells.get(column), column) for column in columns)]
        for row, cells in table.items()
    ]
    return html.table(["hole %", "n", *(label_of(rules, column) for column in columns)], rows)


def _pictures_html(facts: Facts) -> str:
    bins = list(dict.fromkeys(shown.bin for shown in facts.pictures))
    parts = []
    for name in bins:
        pieces = [
            html.slider(
                {"masked": shown.masked, "filled": shown.filled, "truth": shown.truth},
                f"{shown.rank}: {shown.image}, {shown.psnr:.2f} dB, hole {shown.ratio:.1%}",
            )
            for shown in facts.pictures
            if shown.bin == name
        ]
        parts.append(f"<h3>hole {html.text(name)} %</h3>{html.cards(pieces)}")
    return "".join(parts)


def _checkpoints_html(facts: Facts) -> str:
    if not facts.checkpoints:
        return ""
    names = sorted({name for info in facts.checkpoints for name in info.metrics if "/" not in name and "@" not in name})
    rows = [
        [f"{info.step:,}", f"{info.bytes / 2**20:.1f}", *(f"{info.metrics.get(n, float('nan')):.4g}" for n in names)]
        for info in facts.checkpoints
    ]
    return html.table(["step", "MiB", *names], rows)


def _settings_html(facts: Facts) -> str:
    provenance = json.dumps(facts.provenance, indent=1)
    return html.folded("run.yaml", facts.settings) + html.folded("provenance.json", provenance)


def _markdown(facts: Facts, health: Health, leaks: Sequence[str]) -> str:
    lines = [f"# {storage.name_of(facts.url)}", "", f"`{facts.url}`", ""]
    lines += [f"- {name}: {value}" for name, value in _summary(facts).items()]
    lines += [f"- **{remark}**" for remark in (*facts.remarks, *leaks)]
    lines += ["", "## Health of the GAN", "", *(f"- **{alarm}**" for alarm in health.alarms)]
    lines += [f"- {name}: {value}" for name, value in health.readings.items()] or ["- nothing was logged"]
    lines += ["", "## Last values", "", *markdown_table(["series", "step", "value"], _last_values(facts.history))]
    for found in reversed(facts.results):
        lines += ["", f"## Scores: {storage.name_of(found.url)}"]
        for subject, tables in found.result.tables.items():
            for name, table in tables.items():
                lines += ["", f"### {name}, {subject}", "", *_markdown_table(name, table), ""]
                lines += [f"- {line}" for line in set_lines(found.result, name) if line.startswith(subject + " ")]
                lines += [f"- {note}" for note in notes_of(found.result, name)]
        for title, tables in found.result.differences.items():
            for name, table in tables.items():
                lines += ["", f"### {title}, paired, {name}", "", *_markdown_table(name, table, paired=True)]
    if facts.pictures:
        rows = [[s.bin, s.rank, s.image, f"{s.psnr:.2f}", f"{s.ratio:.1%}"] for s in facts.pictures]
        lines += ["", "## Pictures (on the HTML page)", ""]
        lines += markdown_table(["hole %", "rank", "image", "PSNR dB", "hole"], rows)
    lines += ["", "## Settings", "", "```yaml", facts.settings.rstrip(), "```", "", "## Provenance", "", "```json"]
    return "\n".join([*lines, json.dumps(facts.provenance, indent=1), "```", ""])


def _last_values(history: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    return [
        [label, f"{points[-1][0]:g}", f"{points[-1][1]:.4g}"]
        for series in curves(history).values()
        for label, points in series.items()
    ]


def _markdown_table(name: str, table: Table, *, paired: bool = False) -> list[str]:
    rules = PROTOCOLS[name]
    columns = list(dict.fromkeys(column for cells in table.values() for column in cells))
    rows = [
        [row, str(next(iter(cells.values())).n), *(_markdown_cell(name, c, cells.get(c), paired) for c in columns)]
        for row, cells in table.items()
    ]
    return markdown_table(["hole %", "n", *(label_of(rules, column) for column in columns)], rows)


def _markdown_cell(name: str, column: str, cell: Estimate | None, paired: bool) -> str:
    if cell is None:
        return "–"
    rules = PROTOCOLS[name]
    return f"{mean_text(rules, column, cell, paired=paired)} {interval_text(rules, column, cell, paired=paired)}"


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table; what would end a cell or a row early is escaped."""
    body = [headings, ["---"] * len(headings), *rows]
    return ["| " + " | ".join(" ".join(cell.split()).replace("|", r"\|") for cell in row) + " |" for row in body]
