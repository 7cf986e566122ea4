"""`inpaint demo`: the main job end to end on the photographs that come with scikit-image."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import typer


def register(app: typer.Typer) -> None:
    app.command("demo")(demo)


def demo(
    root: str | None = typer.Option(
        None, "--root", help="s3://bucket/prefix or a folder; an S3 server of its own when neither. [env: INPAINT_ROOT]"
    ),
    output: Path = typer.Option(Path("demo-output"), "--output", "-o", help="Folder for the pictures."),
    assignments: list[str] = typer.Option([], "--set", metavar="PATH=VALUE", help="Change a setting; may be repeated."),
    as_json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Photos → shards → object store → Ray Train (two DDP workers) → scores → pulled checkpoint → filled holes.

    inpaint demo --set stages.gan.steps=200
    """
    from inpaint import demo as road

    began = time.monotonic()
    folder = road.prepare_output(output)

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:5.0f} s] {text}", file=sys.stderr, flush=True)

    with road.object_store(root or os.environ.get("INPAINT_ROOT")) as place:
        run = road.demo_run(place, assignments=assignments)
        say(f"object store: {place}")
        road.write_photos(run, say)
        _train(run, say)
        method = _pull(run, folder / "checkpoint", say)
        result = road.score(run, method, images=run.evaluation.images)
        rows = road.fill_photos(method, folder)
        road.draw_grid(rows, folder / "grid.png")
        road.draw_curves(run, folder / "curves.png")
    _show(result, folder, as_json=as_json, seconds=time.monotonic() - began)


def _train(run: Any, say: Any) -> None:
    from inpaint.cli.train import Screen
    from ray_jobs.preflight import preflight
    from ray_jobs.train import run_training

    preflight(run, local=True)
    say(f"training {run.preset}: {run.total_steps} steps with {run.resources.num_workers} DDP workers")
    with Screen(run) as screen:
        result = run_training(run, on_progress=screen.show, on_note=screen.note)
    if result["reason"] != "finished":
        say(f"stopped at step {result['step']}; with a --root of your own the same command goes on from there")
        raise typer.Exit(128 + result["signal"] if result.get("signal") else 1)


def _pull(run: Any, folder: Path, say: Any) -> Any:
    from inpaint.checkpoints import best, load_method, pull

    chosen = best(run.url, run.checkpoints.metric, run.checkpoints.mode)
    say(f"pulling the best checkpoint by {run.checkpoints.metric}: step {chosen.step}")
    return load_method(pull(chosen, folder))


def _show(result: Any, folder: Path, *, as_json: bool, seconds: float) -> None:
    from rich.console import Console

    from inpaint.demo import MODEL
    from inpaint.evaluation.results import ALL
    from inpaint.evaluation.showing import bins_tables

    means = {name: tables["inp-v1"][ALL]["psnr"].mean for name, tables in result.tables.items()}
    model, colour = means[MODEL], means["mean colour"]
    pictures = {name: str(folder / name) for name in ("grid.png", "curves.png", "checkpoint")}
    if as_json:
        print(json.dumps({"psnr": means, "seconds": round(seconds, 1), **pictures}))
        return
    console = Console()
    console.print(bins_tables(result, columns=("psnr", "ssim"), title="mean over composites of held-out crops"))
    verdict = "beats" if model > colour else "does not beat"
    print(f"The model {verdict} the mean colour on photographs it has never seen: {model - colour:+.2f} dB PSNR.")
    print(f"Pictures: {folder / 'grid.png'} (truth, masked, one-shot, progressive) and {folder / 'curves.png'}")
    print(f"Checkpoint: {folder / 'checkpoint'}; whole road: {seconds:.0f} s. Try it on a photo of your own:")
    print(f"  inpaint fill PHOTO MASK -o filled.png --checkpoint {folder / 'checkpoint'} --progressive")
