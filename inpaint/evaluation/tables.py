"""The papers' tables with our results beside them, and what differs between the two marked at every row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inpaint.evaluation.collection import Found
from inpaint.evaluation.protocols import PROTOCOLS, Protocol, data_set
from inpaint.evaluation.published import Number, PublishedTable, other_masks
from inpaint.evaluation.results import ALL, Table
from inpaint.evaluation.statistics import Estimate

ONE_SHOT = "one-shot"
MARKS = {
    "P": "another protocol or image size, in scoring or training, than the paper's",
    "M": "other masks than the paper's, or files that may be: no result can tell whether they are the paper's",
    "D": "another data set, in scoring or training, or number of images than the paper's",
    "B": "another training budget than the paper's, or the paper gives none",
    "L": "images of the test set are in the training set",
    "R": "random feature weights",
    "U": "a network that fills was not trained yet",
}


@dataclass(frozen=True)
class OurRow:
    """One of our results beside a published table.

    Attributes:
        label: run, step and way of filling.
        bin: hole ratio in percent, or `all`.
        cells: metric of the table → estimate, where we have it.
        marks: letters of `MARKS`.
        why: a sentence for each mark.
        url: of the result.
    """

    label: str
    bin: str
    cells: Mapping[str, Estimate]
    marks: str
    why: tuple[str, ...]
    url: str


@dataclass(frozen=True)
class Beside:
    """A published table and ours.

    Attributes:
        table: the paper's.
        ours: rows of our results, in the order of the table's bins.
        gains: (result, bin) → metric → progressive less one-shot over the same pairs.
    """

    table: PublishedTable
    ours: tuple[OurRow, ...]
    gains: Mapping[tuple[str, str], Mapping[str, Estimate]]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        table = self.table
        return {
            "table": table.name,
            "source": table.source,
            "title": table.title,
            "dataset": table.dataset,
            "protocol": table.protocol,
            "published": [{**vars(number), "value": number.value} for number in table.numbers],
            "ours": [
                {
                    "label": row.label, "bin": row.bin, "marks": row.marks, "why": list(row.why), "url": row.url,
                    "scores": {metric: cell.to_dict() for metric, cell in row.cells.items()},
                }
                for row in self.ours
            ],
            "progressive - one-shot": [
                {"label": label, "bin": name, "scores": {metric: cell.to_dict() for metric, cell in cells.items()}}
                for (label, name), cells in self.gains.items()
            ],
            "notes": list(table.notes),
        }  # fmt: skip


def beside(table: PublishedTable, results: Sequence[Found], *, leaks: Mapping[str, str] | None = None) -> Beside:
    """A table with the newest result of each of our runs of its method.

    Args:
        table: the paper's.
        results: ours, the oldest first.
        leaks: result's URL → what the leak check found, for results with duplicates.
    """
    chosen: dict[tuple[Any, Any], Found] = {}
    for found in results:
        about = found.about
        if about.get("method") == table.method and _protocol_for(table, found):
            kept = chosen.get((about["run"], about["step"]))
            if kept is None or _closeness(table, found) >= _closeness(table, kept):
                chosen[about["run"], about["step"]] = found
    newest = _last_step_of_each_run(chosen)
    ours, gains = [], {}
    for found in newest:
        name = _protocol_for(table, found)
        marks = _marks(table, found, name, (leaks or {}).get(found.url))
        for subject, tables in found.result.tables.items():
            label = f"{found.about['run']} step {found.about['step']}{'' if subject == ONE_SHOT else ', ' + subject}"
            ours += [_row(table, label, bin_name, tables[name], marks, found.url) for bin_name in _bins(table, name)]
        for title, tables in found.result.differences.items():
            for bin_name in _bins(table, name):
                cells = _cells(table, tables.get(name, {}).get(bin_name, {}))
                if cells:
                    gains[f"{found.about['run']} step {found.about['step']}, {title}", bin_name] = cells
    order = {name: place for place, name in enumerate([*table.bins, ALL])}
    return Beside(table, tuple(sorted(ours, key=lambda row: order[row.bin])), gains)


def doubt_marks(table: PublishedTable, number: Number) -> str:
    """`*`, `**`, ... for a number that is doubted: its place among the table's doubts."""
    return "*" * (table.doubts.index(number.note) + 1) if number.note else ""


def _bins(table: PublishedTable, protocol: str) -> list[str]:
    rows = {b.name for b in (*PROTOCOLS[protocol].bins, *PROTOCOLS[protocol].unions)} | {ALL}
    return [name for name in table.bins if name in rows]


def _protocol_for(table: PublishedTable, found: Found) -> str:
    """The protocol of a result to lay beside the table: its own, else the first whose bins and columns it shares."""
    scored = list(found.result.stamp.protocols)
    if table.protocol in scored:
        return str(table.protocol)
    for name in scored:
        columns = {column.name for column in PROTOCOLS[name].columns}
        if _bins(table, name) == table.bins and any(column in columns for column in table.columns.values()):
            return name
    return ""


def _closeness(table: PublishedTable, found: Found) -> tuple[bool, int]:
    name = _protocol_for(table, found)
    return name == table.protocol, int(found.result.stamp.protocols[name]["n of images"])


def _last_step_of_each_run(chosen: Mapping[tuple[Any, Any], Found]) -> list[Found]:
    newest: dict[Any, tuple[Any, Found]] = {}
    for (run, step), found in chosen.items():
        if run not in newest or step >= newest[run][0]:
            newest[run] = step, found
    return [found for _, found in newest.values()]


def _row(
    table: PublishedTable, label: str, bin_name: str, ours: Table, marks: Mapping[str, str], url: str
) -> OurRow:
    return OurRow(label, bin_name, _cells(table, ours.get(bin_name, {})), "".join(marks), tuple(marks.values()), url)


def _cells(table: PublishedTable, columns: Mapping[str, Estimate]) -> dict[str, Estimate]:
    return {metric: columns[column] for metric, column in table.columns.items() if column in columns}


def _marks(table: PublishedTable, found: Found, name: str, leak: str | None) -> dict[str, str]:
    """Letter → sentence, for everything that differs from the paper."""
    about, conditions = found.about, found.result.stamp.protocols[name]
    papers = PROTOCOLS[table.protocol or name]
    marks = {}
    if protocol := _other_protocol(papers, name, conditions["size"], about.get("size")):
        marks["P"] = protocol
    if masks := other_masks(papers, conditions["mask_kind"], scored_by=PROTOCOLS[name]):
        marks["M"] = masks
    scored_on, count = str(about.get("scored_on", "unknown data")), int(conditions["n of images"])
    if data := _other_data(table, scored_on, count, str(about["dataset"])):
        marks["D"] = data
    if budget := _other_budget(table, about["step"], about.get("global_batch")):
        marks["B"] = budget
    if leak:
        marks["L"] = leak
    if any(digest == "random" for digest in conditions["metrics"].values()):
        marks["R"] = "random feature weights"
    if unready := about.get("untrained"):
        marks["U"] = f"{' and '.join(unready)} not trained yet"
    return marks


def _other_protocol(papers: Protocol, name: str, scored_at: int | str, trained_at: int | None) -> str:
    """In what a result was scored or trained in another way or size; the papers trained at the size they scored at."""
    said = []
    if name != papers.name:
        said.append(f"scored by {name}, not {papers.name}")
    if scored_at not in (papers.size, "own"):
        said.append(f"scored at {scored_at} pixels, not {papers.size}")
    if trained_at not in (papers.size, None):
        said.append(f"trained at {trained_at} pixels, not {papers.size}")
    return "; ".join(said)


def _other_budget(table: PublishedTable, steps: int, batch: int | None) -> str:
    """In what a training was longer or shorter, counted in the images it saw."""
    ours = f"{steps:,} steps of {batch or 'an unknown number of'} images"
    if not table.steps:
        return f"{ours}; the paper gives no number"
    same = batch and table.batch and steps * batch == table.steps * table.batch
    return "" if same else f"{ours}, not {table.steps:,} of {table.batch}"


def _other_data(table: PublishedTable, scored_on: str, count: int, trained_on: str) -> str:
    """In what the images of a result, or those of its training, are not the paper's."""
    said = []
    if scored_on != table.dataset or count != table.images:
        published = f"{table.images:,} of {table.dataset}" if table.images else f"an unknown number of {table.dataset}"
        said.append(f"{count:,} images of {scored_on}, not {published}")
    if data_set(trained_on) != table.dataset:
        said.append(f"trained on {trained_on}, not {table.dataset}")
    return "; ".join(said)
