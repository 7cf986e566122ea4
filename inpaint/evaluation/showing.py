"""Results as tables on a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from inpaint.evaluation.comparing import Comparison
from inpaint.evaluation.metrics import METRICS, NETWORK_METRICS
from inpaint.evaluation.protocols import PROTOCOLS, Protocol
from inpaint.evaluation.published import Number, PublishedTable
from inpaint.evaluation.results import ALL, Result, Table
from inpaint.evaluation.statistics import Estimate
from inpaint.evaluation.tables import Beside, doubt_marks

LABELS = {
    "psnr": "PSNR dB", "ssim": "SSIM", "l1": "L1 / MAE", "lpips_alex": "LPIPS alex", "parameters_mi": "parameters Mi",
    "milliseconds": "ms",
}  # fmt: skip


def result_tables(result: Result, *, width: int) -> Group:
    """Every protocol of a result: one row per bin and subject, mean with its 95 % interval.

    Args:
        result: of an evaluation.
        width: of the terminal in characters; scores that do not fit beside the others go into a table of their own.
    """
    shown: list[RenderableType] = []
    for name, conditions in result.stamp.protocols.items():
        tables = {subject: found[name] for subject, found in result.tables.items() if name in found}
        shown += _grids(f"{name} ({conditions['mask_kind']})", PROTOCOLS[name], tables, width)
        shown += [Text(f"  {line}") for line in set_lines(result, name)]
        shown += [Text(f"  {note}", style="yellow") for note in notes_of(result, name)]
    for title, differences in result.differences.items():
        for name, table in differences.items():
            shown += _grids(f"{title}, paired ({name})", PROTOCOLS[name], {"": table}, width, paired="")
    shown += [Text(f"{name}: left out, {why}", style="yellow") for name, why in result.skipped.items()]
    if len(result.stamp.protocols) > 2:
        shown += spread_tables(result)
    return Group(*shown)


FINER = 1  # digits more in a paired difference, which is far surer than either mean
SPREAD_BINS = ("10-20", "20-30", "30-40", "40-50")
SPREAD = {"PSNR dB": ("psnr",), "SSIM": ("ssim",), "L1 or MAE": ("l1", "mae")}


def spread_tables(result: Result) -> list[RichTable]:
    """The same fills under every protocol, side by side: how far apart the published ways of scoring lie.

    `all` is the mean over the pairs of each protocol; those of one mask for each image have no like bins.
    """
    tables = next(iter(result.tables.values()))
    shown = []
    for title, names in SPREAD.items():
        grid = RichTable(title=f"{title} of one filler under every protocol, by hole %", title_justify="left")
        for heading in ("protocol", "score", *SPREAD_BINS, ALL):
            left = heading in ("protocol", "score")
            grid.add_column(heading, justify="left" if left else "right", no_wrap=left)
        for protocol, rules in PROTOCOLS.items():
            table = tables.get(protocol, {})
            column = next((name for name in names if name in table.get(ALL, {})), None)
            if column is None:
                continue
            bins = SPREAD_BINS if rules.pairing == "each_bin" else ("",) * len(SPREAD_BINS)
            cells = [table.get(row, {}).get(column) for row in (*bins, ALL)]
            texts = ["-" if cell is None else mean_text(rules, column, cell) for cell in cells]
            grid.add_row(protocol, label_of(rules, column), *texts)
        shown.append(grid)
    return shown


def bins_tables(result: Result, *, columns: Sequence[str], protocol: str = "inp-v1", title: str = "") -> Group:
    """Several fillers beside each other, a table per score: a row per bin; the best mean of a row in bold.

    Args:
        result: of `evaluate_fillers`.
        columns: of the protocol (`psnr`, `ssim`); those a result has not are left out.
        protocol: which tables of the result.
        title: above each table, after the score's name.
    """
    rules = PROTOCOLS[protocol]
    tables = {subject: found[protocol] for subject, found in result.tables.items()}
    first = next(iter(tables.values()))
    return Group(*(_bins_table(rules, tables, column, title) for column in columns if column in first[ALL]))


def _bins_table(rules: Protocol, tables: Mapping[str, Table], column: str, title: str) -> RichTable:
    shown = RichTable(title=f"{label_of(rules, column)}, {title or rules.name}", title_justify="left")
    for heading in ("hole %", "n", *tables):
        shown.add_column(heading, justify="left" if heading == "hole %" else "right", no_wrap=True)
    first = next(iter(tables.values()))
    for row in first:
        means = {subject: table[row][column] for subject, table in tables.items()}
        best = _best(rules, column, means)
        cells = [_bold(mean_text(rules, column, cell), subject in best) for subject, cell in means.items()]
        shown.add_row(row, str(first[row][column].n), *cells, end_section=row == list(first)[-2])
    return shown


def published_table(item: Beside, *, width: int) -> Group:
    """A paper's table, row by row as printed, and under each bin our results with the marks of what differs."""
    table, rules = item.table, PROTOCOLS.get(item.table.protocol or "")
    shown = RichTable(title=f"{table.source}: {table.title}", title_justify="left", caption_justify="left")
    shown.add_column("hole %", no_wrap=True)
    shown.add_column("", overflow="fold", min_width=18)
    for metric in table.metrics:
        shown.add_column(LABELS.get(metric, metric), justify="right", no_wrap=True)
    shown.add_column("n", justify="right")
    shown.add_column("differs")
    for bin_name in table.bins:
        for label, numbers in table.rows(bin_name).items():
            cells = [_printed(table, numbers.get(metric)) for metric in table.metrics]
            shown.add_row(bin_name, label, *cells, f"{table.images:,}" if table.images else "?", "")
        for row in (row for row in item.ours if row.bin == bin_name and rules):
            cells = [_cell(rules, table.columns.get(m, m), row.cells.get(m), brief=width < 110) for m in table.metrics]
            n = str(next(iter(row.cells.values())).n) if row.cells else "-"
            shown.add_row(bin_name, f"ours: {row.label}", *cells, n, row.marks, style="bold")
        for (label, name), gain in item.gains.items():
            if name == bin_name and rules:
                brief = width < 110
                cells = [
                    _cell(rules, table.columns.get(m, m), gain.get(m), brief=brief, paired=True) for m in table.metrics
                ]
                shown.add_row(bin_name, label, *cells, str(next(iter(gain.values())).n), "paired", style="bold")
        shown.add_section()
    notes = [f"{'*' * (i + 1)} {doubt}" for i, doubt in enumerate(table.doubts)] + [f"- {note}" for note in table.notes]
    if not table.numbers:
        notes.insert(0, "- the printed table is lost")
    if not item.ours:
        notes.append(f"- no result of ours: nothing trained by {table.method} was evaluated under this root")
    why = dict.fromkeys(f"{mark} {text}" for row in item.ours for mark, text in zip(row.marks, row.why, strict=True))
    said = [Text(f"  {note}") for note in notes] + [Text(f"  {text}", style="yellow") for text in why]
    return Group(shown, *said, "")


def comparison_table(item: Comparison, *, width: int) -> Group:
    """Two results by one protocol: both means, and their paired difference where the stamps agree."""
    rules = PROTOCOLS[item.protocol]
    tables = {"A": item.ours, "B": item.theirs} | ({"A - B": item.difference} if item.difference else {})
    shown: list[RenderableType] = [*_grids(item.protocol, rules, tables, width, paired="A - B")]
    if item.marks:
        shown.append(Text("  FORCED: not scored alike, so no number here says which is better", style="bold red"))
        shown += [Text(f"  {mark}", style="red") for mark in item.marks]
    return Group(*shown)


def notes_of(result: Result, protocol: str) -> list[str]:
    """What a reader has to know before quoting a number: marks, and columns that are not there."""
    absent = result.absent.get(protocol, {})
    return [*result.marks.get(protocol, ()), *(f"{column}: absent, {why}" for column, why in absent.items())]


def set_lines(result: Result, protocol: str) -> list[str]:
    """FID and its kin of each subject, one line each; below the protocol's number of images under the name `fid@N`."""
    lines = []
    for subject, protocols in result.sets.items():
        for name, score in protocols.get(protocol, {}).items():
            spread = f" ± {score.deviation:.3f}" if score.deviation is not None else ""
            unit = {"kid": " × 10⁻³", "pids": " %", "uids": " %"}.get(name, "")
            lines.append(f"{subject} {score.mark or name}: {score.value:.3f}{spread}{unit}")
    return lines


def label_of(protocol: Protocol, column: str) -> str:
    """A column's heading."""
    found = next((c for c in protocol.columns if c.name == column), None)
    if found is None:
        return column
    label = (METRICS.get(found.metric) or NETWORK_METRICS[found.metric]).label
    return f"{label} raw" if found.image == "raw" else label


def digits_of(protocol: Protocol, column: str) -> int:
    """Places after the point."""
    found = next((c for c in protocol.columns if c.name == column), None)
    return (METRICS.get(found.metric) or NETWORK_METRICS[found.metric]).digits if found else 4


def better_of(protocol: Protocol, column: str) -> str:
    """`higher` or `lower`."""
    found = next((c for c in protocol.columns if c.name == column), None)
    return (METRICS.get(found.metric) or NETWORK_METRICS[found.metric]).better if found else "lower"


def mean_text(protocol: Protocol, column: str, cell: Estimate, *, paired: bool = False) -> str:
    """The mean as printed, a paired difference with its sign; perfect images are counted beside it."""
    text = "inf" if math.isinf(cell.mean) else _number(protocol, column, cell.mean, paired)
    return f"{text} ({cell.perfect} perfect)" if cell.perfect else text


def interval_text(protocol: Protocol, column: str, cell: Estimate, *, paired: bool = False) -> str:
    """The 95 % interval as printed; empty where the mean is infinite."""
    if math.isinf(cell.mean):
        return ""
    return f"[{', '.join(_number(protocol, column, end, paired) for end in (cell.low, cell.high))}]"


def _number(protocol: Protocol, column: str, value: float, paired: bool) -> str:
    digits = digits_of(protocol, column)
    return f"{value:+z.{digits + FINER}f}" if paired else f"{value:.{digits}f}"


def _grids(
    title: str, protocol: Protocol, tables: Mapping[str, Table], width: int, *, paired: str | None = None
) -> list[RichTable]:
    """The table, cut into as many as its columns need; the rows of the subject `paired` are paired differences."""
    columns = list(dict.fromkeys(column for table in tables.values() for column in table[ALL]))
    room = width - 15 - (max(map(len, tables)) + 3 if len(tables) > 1 else 0)
    groups: list[list[str]] = [[]]
    used = 0
    for column in columns:
        widths = [
            len(interval_text(protocol, column, row[column], paired=subject == paired))
            for subject, table in tables.items()
            for row in table.values()
            if column in row
        ]
        needs = max(len(label_of(protocol, column)), *widths) + 3
        if groups[-1] and used + needs > room:
            groups.append([])
            used = 0
        groups[-1].append(column)
        used += needs
    titles = [title, *["" for _ in groups[1:]]]
    return [_grid(title, protocol, tables, group, paired) for title, group in zip(titles, groups, strict=True)]


def _grid(
    title: str, protocol: Protocol, tables: Mapping[str, Table], columns: Sequence[str], paired: str | None
) -> RichTable:
    shown = RichTable(title=title or None, title_justify="left")
    for heading in ("hole %", "n"):
        shown.add_column(heading)
    several = len(tables) > 1
    if several:
        shown.add_column("filled by")
    first = next(iter(tables.values()))
    for column in columns:
        shown.add_column(label_of(protocol, column), justify="right", no_wrap=True)
    for row in first:
        for subject, table in tables.items():
            cells = table[row]
            n = next(iter(cells.values())).n
            texts = [_cell(protocol, column, cells.get(column), paired=subject == paired) for column in columns]
            shown.add_row(row, str(n), *([subject] if several else []), *texts)
    return shown


def _cell(
    protocol: Protocol, column: str, cell: Estimate | None, *, brief: bool = False, paired: bool = False
) -> str:
    """Mean over interval; `brief` gives half the interval's width instead."""
    if cell is None:
        return "-"
    mean = mean_text(protocol, column, cell, paired=paired)
    if brief and math.isfinite(cell.mean):
        digits = digits_of(protocol, column) + FINER * paired
        return f"{mean}\n±{(cell.high - cell.low) / 2:.{digits}f}"
    return f"{mean}\n{interval_text(protocol, column, cell, paired=paired)}"


def _printed(table: PublishedTable, number: Number | None) -> str:
    return "-" if number is None else f"{number.printed}{doubt_marks(table, number)}"


def _best(protocol: Protocol, column: str, means: Mapping[str, Estimate]) -> set[str]:
    pick = max if better_of(protocol, column) == "higher" else min
    best = pick(cell.mean for cell in means.values())
    return {subject for subject, cell in means.items() if cell.mean == best}


def _bold(text: str, best: bool) -> str:
    return f"[bold]{text}[/bold]" if best else text
