"""`inpaint report`: a run's page, the papers' tables with ours beside them, two results compared."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from inpaint.evaluation.collection import Found
    from inpaint.evaluation.leaks import Leaks

report = typer.Typer(help="A page about a run; the papers' tables; two results compared.", no_args_is_help=True)

ROOT = typer.Option(None, "--root", help="s3://bucket/prefix or a folder. [env: INPAINT_ROOT]")
AS_JSON = typer.Option(False, "--json", help="Print the result as JSON.")


def register(app: typer.Typer) -> None:
    app.add_typer(report, name="report")


@report.command("tables")
def tables(
    names: list[str] = typer.Argument(None, help="isnet_table5, ...; every published table if left out."),
    leak_check: bool = typer.Option(True, "--leak-check/--no-leak-check", help="Look for test images in training."),
    root: str | None = ROOT,
    as_json: bool = AS_JSON,
) -> None:
    """Print the papers' tables with the results of this root beside them.

    inpaint report tables isnet_table5 --root s3://lab/inpaint
    """
    from rich.console import Console

    from inpaint.evaluation.collection import results_of_root
    from inpaint.evaluation.leaks import sets_of
    from inpaint.evaluation.published import find_tables
    from inpaint.evaluation.showing import published_table
    from inpaint.evaluation.tables import beside

    chosen = find_tables(names or [])
    results = results_of_root(_root(root))
    leaks = look_for_leaks([s for found in results if (s := sets_of(found))] if leak_check else [])
    sentences = {found.url: leaks.found[s] for found in results if (s := sets_of(found)) and s in leaks.found}
    laid = [beside(table, results, leaks=sentences) for table in chosen]
    if as_json:
        print(json.dumps({"tables": [item.to_dict() for item in laid], "unchecked": list(leaks.unknown.values())}))
        return
    console = Console()
    for item in laid:
        console.print(published_table(item, width=console.width))
    for text in leaks.unknown.values():
        console.print(text, style="yellow", highlight=False)


@report.command("compare")
def compare_command(
    first: str = typer.Argument(..., metavar="A", help="A result's folder, or a run (its newest result)."),
    second: str = typer.Argument(..., metavar="B", help="Another."),
    fill: str = typer.Option("one-shot", "--fill", help="one-shot or progressive; A,B for one of each."),
    force: bool = typer.Option(False, "--force", help="Compare although the stamps differ; the table says so."),
    root: str | None = ROOT,
    as_json: bool = AS_JSON,
) -> None:
    """Compare two results pair by pair; refused when they were not scored alike.

    inpaint report compare first second --root s3://lab/inpaint
    """
    from rich.console import Console

    from inpaint.evaluation.comparing import compare
    from inpaint.evaluation.showing import comparison_table

    ours, theirs = _found(first, root), _found(second, root)
    fills = (fill.partition(",")[0], fill.rpartition(",")[2])
    found = compare(ours, theirs, fills=fills, force=force)
    if as_json:
        print(json.dumps({"a": ours.url, "b": theirs.url, "comparisons": [item.to_dict() for item in found]}))
        return
    console = Console()
    console.print(f"A: {ours.url}\nB: {theirs.url}", highlight=False)
    for item in found:
        console.print(comparison_table(item, width=console.width))


def look_for_leaks(pairs: list[tuple[str, str]]) -> Leaks:
    """The leak check, with a bar on stderr while it lasts."""
    from rich.console import Console
    from rich.progress import Progress

    from inpaint.evaluation.leaks import check_leaks

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("looking for test images in the training set", total=None, visible=False)
        return check_leaks(
            pairs,
            planned=lambda images: bar.update(task, total=images, visible=True),
            progress=lambda images: bar.advance(task, images),
        )


def _root(root: str | None) -> str:
    import os

    return root or os.environ.get("INPAINT_ROOT") or "inpaint-root"


def _found(place: str, root: str | None) -> Found:
    from inpaint import storage
    from inpaint.checkpoints.layout import run_url
    from inpaint.errors import EvaluationError
    from inpaint.evaluation.collection import results_of

    url = place.removesuffix("/result.json")
    found = results_of(url if storage.exists(storage.join(url, "result.json")) else run_url(url, root=root))
    if not found:
        raise EvaluationError(f"{place}: no result here; `inpaint evaluate` writes them")
    if len(found) > 1:
        print(f"{place}: the newest of {len(found)} results, {found[-1].url}", file=sys.stderr)
    return found[-1]
