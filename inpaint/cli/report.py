"""`inpaint report`: a run's page, the papers' tables with ours beside them, two results compared."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from inpaint.evaluation.collection import Found
    from inpaint.evaluation.leaks import Leaks


class PageOrCommand(TyperGroup):
    """`report NAME` is `report page NAME`: what is not the name of a command is the name of a run."""

    def parse_args(self, context: Any, arguments: list[str]) -> list[str]:
        if arguments and not arguments[0].startswith("-") and arguments[0] not in self.commands:
            arguments = ["page", *arguments]
        return super().parse_args(context, arguments)


report = typer.Typer(
    cls=PageOrCommand,
    help="A page about a run (`inpaint report RUN`); the papers' tables; two results compared.",
    no_args_is_help=True,
)

ROOT = typer.Option(None, "--root", help="s3://bucket/prefix or a folder. [env: INPAINT_ROOT]")
AS_JSON = typer.Option(False, "--json", help="Print the result as JSON.")


def register(app: typer.Typer) -> None:
    app.add_typer(report, name="report")


@report.command("page")
def page(
    run: str = typer.Argument(..., help="Name under the root of a run or a sweep, or a run's URL."),
    out: str | None = typer.Option(None, "--out", "-o", help="Folder or s3:// URL to write to; here if left out."),
    leak_check: bool = typer.Option(True, "--leak-check/--no-leak-check", help="Look for test images in training."),
    root: str | None = ROOT,
    as_json: bool = AS_JSON,
) -> None:
    """Write one HTML page that needs no network, and the same as Markdown; of a sweep, its report with a CSV.

    inpaint report tiny --root s3://lab/inpaint
    """
    from inpaint import storage
    from inpaint.checkpoints.layout import run_url
    from inpaint.evaluation.collection import results_of
    from inpaint.evaluation.leaks import sets_of
    from inpaint.evaluation.report import report_run

    url = run_url(run, root=root)
    if not storage.exists(storage.join(url, "run.yaml")) and _is_sweep(run, root):
        from inpaint.cli.sweep import write_report

        places = write_report(run, root=_root(root), out=out, pictures=True)
        print(json.dumps({"sweep": run, **places}) if as_json else places["html"])
        return
    pairs = [s for found in results_of(url) if (s := sets_of(found))] if leak_check else []
    leaks = look_for_leaks(pairs)
    made = report_run(url, leaks=[*leaks.found.values(), *leaks.unknown.values()])
    places = {kind: storage.join(out or ".", f"{storage.name_of(url)}.{kind}") for kind in ("html", "md")}
    storage.write_bytes(places["md"], made.markdown.encode())
    storage.write_bytes(places["html"], made.html.encode())
    print(json.dumps({"run": url, **places}) if as_json else places["html"])


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


def _is_sweep(name: str, root: str | None) -> bool:
    """Whether a sweep of this name was started under the root."""
    from inpaint import storage
    from inpaint.sweep.trials import DEFINITION, sweep_url

    return "/" not in name and storage.exists(storage.join(sweep_url(name, root=_root(root)), DEFINITION))


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
