"""`inpaint bench …`: ours against the straightforward way, interleaved in one run, CPU time beside wall time."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

bench = typer.Typer(help="Measure ours against the straightforward way, interleaved in one run.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(bench, name="bench")


@bench.command()
def stream(
    samples: Annotated[int, typer.Option(help="Samples of 256 pixels in the measured set.", min=512)] = 2048,
    rounds: Annotated[int, typer.Option(help="Interleaved repetitions; medians are printed.", min=1)] = 5,
    s3: Annotated[bool, typer.Option(help="Also measure from an S3 server that is started for it.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """The data stream against bare decoding and other loaders: from disk, from caches, from S3, from large sources."""
    from inpaint.bench.stream import measure_stream, report

    results = measure_stream(samples=samples, rounds=rounds, with_s3=s3)
    typer.echo(json.dumps(results, default=asdict, indent=1) if as_json else "\n".join(report(results)))


@bench.command()
def evaluate(
    images: Annotated[int, typer.Option(help="Finished files of 256 pixels.", min=1)] = 48,
    model_images: Annotated[int, typer.Option(help="Photographs for the model, each under six holes.", min=1)] = 1,
    preset: Annotated[str, typer.Option(help="Whose network fills them.")] = "isnet-places2",
    device: Annotated[str | None, typer.Option(help="cpu or cuda; whichever is there if left out.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """What scoring under every protocol of pixel scores costs beside the model and the decoder."""
    from inpaint.bench.evaluate import measure_evaluation, report

    results = measure_evaluation(images=images, model_images=model_images, preset=preset, device=device)
    typer.echo(json.dumps(results) if as_json else "\n".join(report(results)))


@bench.command()
def step(
    method: Annotated[str, typer.Option("--method", "-m", help="Preset or method whose step is measured.")] = "isnet",
    stage: Annotated[str | None, typer.Option(help="Which of its stages; the last if left out.")] = None,
    size: Annotated[int | None, typer.Option(
        min=16, help="Pixels of both sides; 128 on a CPU, the preset's on a GPU."
    )] = None,
    batch: Annotated[int | None, typer.Option(help="Images per step; 2 on a CPU, 8 on a GPU.", min=1)] = None,
    rounds: Annotated[int, typer.Option(help="Interleaved repetitions; medians are printed.", min=1)] = 5,
    workers: Annotated[int, typer.Option(help="Also measure DDP with 1, 2, 4, ... up to this many.", min=1)] = 1,
    compiled: Annotated[bool, typer.Option("--compile", help="Also measure the compiled step.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; whichever is there if left out.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Our training step against the straightforward one: float32 and bf16, shares, memory, equality, scaling."""
    import torch

    from inpaint.bench.step import bench_step, report, step_run

    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    images = batch or (2 if place == "cpu" else 8)
    run = step_run(method, size=size, stage=stage, device=place, batch=images)
    results = bench_step(run, batch=images, rounds=rounds, device=place, workers=workers, compiled=compiled)
    typer.echo(json.dumps(results, indent=1) if as_json else "\n".join(report(results)))


@bench.command()
def fill(
    preset: Annotated[str, typer.Option("--method", "-m", help="Preset whose network fills.")] = "isnet-places2",
    size: Annotated[int, typer.Option(help="Pixels of both sides.", min=16)] = 256,
    masks: Annotated[int, typer.Option(help="Masks per bin of hole ratio.", min=1)] = 8,
    rounds: Annotated[int, typer.Option(help="Interleaved repetitions; medians are printed.", min=1)] = 3,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; whichever is there if left out.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """One-shot and progressive filling by bins of hole ratio, beside the paper's 1.62."""
    import torch

    from inpaint.bench.fill import bench_fill, report
    from inpaint.config import load_run

    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    results = bench_fill(load_run(preset), size=size, masks=masks, rounds=rounds, device=place)
    typer.echo(json.dumps(results, indent=1) if as_json else "\n".join(report(results)))


@bench.command()
def checkpoint(
    preset: Annotated[str, typer.Option(help="Whose networks are written and read back.")] = "isnet-places2",
    rounds: Annotated[int, typer.Option(help="Interleaved repetitions; medians are printed.", min=1)] = 7,
    device: Annotated[str, typer.Option(help="Where the state lives: cpu or cuda.")] = "cpu",
    folder: Annotated[str | None, typer.Option(help="On the disk to measure; a temporary one if left out.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """What a checkpoint stalls training and a resume costs, against plain torch.save and torch.load."""
    from inpaint.bench.checkpoint import measure_checkpoint, report

    results = measure_checkpoint(preset=preset, rounds=rounds, device=device, folder=folder)
    typer.echo(json.dumps(results, default=asdict) if as_json else "\n".join(report(results)))


@bench.command()
def soak(
    kills: Annotated[int, typer.Option(help="How often something of the run is killed.", min=1)] = 10,
    seed: Annotated[int, typer.Option(help="Of what is killed, and when.")] = 0,
    steps: Annotated[int, typer.Option(help="Length of the toy run.", min=20)] = 200,
    root: Annotated[str | None, typer.Option(help="Where the runs lie; a temporary folder if left out.")] = None,
    s3: Annotated[bool, typer.Option("--s3", help="In a slow S3 server that is started for it.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Kill a toy run's worker, driver, raylet or everything at random; it must end byte for byte as one left alone."""
    import sys
    import tempfile
    from contextlib import ExitStack

    from ray_jobs.soak import slow_s3
    from ray_jobs.soak import soak as disturb

    with ExitStack() as stack:
        if s3:
            root = stack.enter_context(slow_s3())
        place = root or stack.enter_context(tempfile.TemporaryDirectory(prefix="inpaint-soak-"))
        found = disturb(place, kills=kills, seed=seed, steps=steps, say=lambda text: print(text, file=sys.stderr))
    if as_json:
        typer.echo(json.dumps(found))
        return
    listed = ", ".join(f"{count} × {what}" for what, count in sorted(found["kills"].items()))
    typer.echo(f"survived {sum(found['kills'].values())} kills ({listed}), {found['in_uploads']} of them while a")
    typer.echo(f"checkpoint was half written, in {found['seconds']:.0f} s")
    typer.echo("history and weights are byte for byte those of the undisturbed run:")
    for name, sha256 in found["weights"].items():
        typer.echo(f"  {sha256}  {name}")


@bench.command()
def sweep(
    trials: Annotated[int, typer.Option(help="Trials of the sweep.", min=1)] = 20,
    alone: Annotated[int, typer.Option(help="Trials made by a fresh process each.", min=2)] = 4,
    concurrent: Annotated[int, typer.Option(help="Trials at a time, in both ways.", min=1)] = 2,
    steps: Annotated[int | None, typer.Option(help="Of a trial; those of the tiny budget if left out.", min=1)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Trials per hour of a tiny sweep against one `inpaint train` process per trial, and the share spent training."""
    from inpaint.bench.sweep import measure_sweep, report
    from ray_jobs.toy import write_toy_shards

    results = measure_sweep(
        trials=trials, alone=alone, concurrent=concurrent, steps=steps, write_shards=write_toy_shards
    )
    typer.echo(json.dumps(results) if as_json else "\n".join(report(results)))
