"""The command line: a verb and its noun, one library call, one printed result.

Modules of this package import torch, ray and numpy only inside their commands, so that a laptop without them can check
and submit a run.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec

import typer

from inpaint import __version__
from inpaint.errors import InpaintError

COMMANDS = ("demo", "shards", "train", "submit", "jobs", "sweep", "evaluate", "checkpoints", "fill", "report", "bench")

app = typer.Typer(
    name="inpaint",
    help="Train, search, score and use image-inpainting GANs: on this machine, or on Kubernetes through Ray.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


for _name in COMMANDS:
    if find_spec(f"inpaint.cli.{_name}"):
        import_module(f"inpaint.cli.{_name}").register(app)


def main() -> None:
    """Entry point: an InpaintError is one line on stderr and exit code 1; anything else keeps its traceback."""
    try:
        app()
    except InpaintError as error:
        print(f"inpaint: {error}", file=sys.stderr)
        sys.exit(1)
