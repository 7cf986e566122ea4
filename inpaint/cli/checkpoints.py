"""`inpaint checkpoints` and `inpaint pull`: what a run has kept, and a copy of one of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import typer

ROOT = typer.Option(None, "--root", help="s3://bucket/prefix or a folder. [env: INPAINT_ROOT]")


def register(app: typer.Typer) -> None:
    app.command("checkpoints")(list_command)
    app.command("pull")(pull_command)


def list_command(
    run: str = typer.Argument(..., help="A run's name under the root, or its URL."),
    root: str | None = ROOT,
    as_json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """List the whole checkpoints of a run with their scores.

    inpaint checkpoints tiny --root s3://lab/inpaint
    """
    from inpaint.checkpoints import list_checkpoints, run_url
    from inpaint.checkpoints.layout import require_run
    from inpaint.checkpoints.records import read_run

    url = run_url(run, root=root)
    require_run(url)
    found, settings = list_checkpoints(url), read_run(url)
    stages = [settings.stage_at(info.step) if settings else "" for info in found]
    if as_json:
        rows = [
            {"step": i.step, "stage": stage, "url": i.url, "bytes": i.bytes, "metrics": i.metrics}
            for i, stage in zip(found, stages, strict=True)
        ]
        print(json.dumps({"run": url, "checkpoints": rows}))
        return
    if not found:
        print(f"{url}: no checkpoint yet", file=sys.stderr)
        return
    _print_table(url, found, stages)


def pull_command(
    run: str = typer.Argument(..., help="A run's name under the root, its URL, or a checkpoint's URL."),
    to: Path | None = typer.Option(None, "--to", "-o", help="Folder to write; ./<run>-<step> when left out."),
    best: str | None = typer.Option(None, "--best", metavar="METRIC", help="The best by this score, not the newest."),
    hole_bin: str | None = typer.Option(None, "--bin", metavar="30-40", help="With --best: in this bin, in %."),
    everything: bool = typer.Option(False, "--all", help="Also what only training needs."),
    root: str | None = ROOT,
    as_json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Download a checkpoint: verified, and continued where an earlier try was cut off.

    inpaint pull tiny --best psnr --bin 30-40 -o model
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from inpaint.checkpoints import pull
    from inpaint.errors import ConfigError

    info, name = _choose(run, root=root, best=best, hole_bin=hole_bin)
    folder = to or Path(f"{name}-{info.step}")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--to {folder} is a file; a checkpoint needs a folder to go to")
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(f"step {info.step}")
        pull(
            info,
            folder,
            everything=everything,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if as_json:
        print(json.dumps({"folder": str(folder), "step": info.step, "url": info.url, "metrics": info.metrics}))
    else:
        print(folder)


def _choose(run: str, *, root: str | None, best: str | None, hole_bin: str | None) -> tuple[Any, str]:
    """The checkpoint that is meant, and its run's name."""
    from inpaint import storage
    from inpaint.checkpoints import best as best_of
    from inpaint.checkpoints import run_url
    from inpaint.checkpoints.layout import find, require_run
    from inpaint.checkpoints.records import read_run
    from inpaint.errors import ConfigError

    if hole_bin and not best:
        raise ConfigError(f"--bin {hole_bin} chooses among scores; say which with --best psnr")
    url = run_url(run, root=root)
    if "/checkpoints/" in url:
        if best:
            raise ConfigError(f"{url} is one checkpoint; give its run to choose by --best {best}")
        return find(url), storage.name_of(url.rpartition("/checkpoints/")[0])
    require_run(url)
    if not best:
        return find(url), storage.name_of(url)
    settings = read_run(url)
    metric = f"{best}@{hole_bin}" if hole_bin else best
    mode = settings.checkpoints.mode if settings and settings.checkpoints.metric == best else None
    return best_of(url, metric, mode), storage.name_of(url)


def _print_table(url: str, found: list[Any], stages: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    metrics = sorted({name for info in found for name in info.metrics if "/" not in name and "@" not in name})
    table = Table(title=url, box=None, padding=(0, 1))
    for column in ("step", "stage", "MB"):
        table.add_column(column, justify="right", no_wrap=True)
    for metric in metrics:
        table.add_column(metric.replace("_", " "), justify="right", min_width=6, overflow="fold")
    for info, stage in zip(found, stages, strict=True):
        scores = (f"{info.metrics[name]:.4g}" if name in info.metrics else "" for name in metrics)
        table.add_row(str(info.step), stage, f"{info.bytes / 1e6:.1f}", *scores)
    Console().print(table)
