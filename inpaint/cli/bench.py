"""`inpaint bench …`: ours against the straightforward way, interleaved in one run, CPU time beside wall time."""

from __future__ import annotations

import typer

bench = typer.Typer(help="Measure ours against the straightforward way, interleaved in one run.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(bench, name="bench")
