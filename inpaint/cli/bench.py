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
    images: Annotated[int, typer.Option(help="Photographs of 256 pixels, each under a hole of every bin.", min=1)] = 4,
    preset: Annotated[str, typer.Option(help="Whose network fills them.")] = "isnet-places2",
    device: Annotated[str | None, typer.Option(help="cpu or cuda; whichever is there if left out.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """What scoring under every protocol of pixel scores costs beside the model and the decoder."""
    from inpaint.bench.evaluate import measure_evaluation, report

    results = measure_evaluation(images=images, preset=preset, device=device)
    typer.echo(json.dumps(results) if as_json else "\n".join(report(results)))
