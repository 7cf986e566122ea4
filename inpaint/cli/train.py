"""`inpaint train`: train a run on this machine, or on the Ray cluster it is given."""

from __future__ import annotations

import json
import os
import sys
from contextlib import redirect_stdout
from typing import Any

import typer


def register(app: typer.Typer) -> None:
    app.command("train")(train)


def train(
    preset: str = typer.Argument(..., help="A preset's name, or a run file (.yaml)."),
    assignments: list[str] = typer.Option([], "--set", metavar="PATH=VALUE", help="Change a setting; may be repeated."),
    workers: int | None = typer.Option(None, "--workers", min=1, help="Number of workers."),
    root: str | None = typer.Option(None, "--root", help="s3://bucket/prefix or a folder. [env: INPAINT_ROOT]"),
    name: str | None = typer.Option(None, "--name", help="Of the run; the preset's name when left out."),
    address: str | None = typer.Option(None, "--address", help="Of a Ray cluster (host:port). [env: RAY_ADDRESS]"),
    dry_run: bool = typer.Option(False, "--dry-run", help="Check everything, print the resolved run, train nothing."),
    as_json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Train a run; started again under its name, it goes on from its last checkpoint.

    inpaint train tiny --name first --set stages.gan.steps=200 --workers 2
    """
    from inpaint.config import load_run, parse_overrides
    from ray_jobs.preflight import preflight

    run = load_run(preset, assignments=assignments, name=name, root=root, num_workers=workers)
    found = preflight(run, local=not (address or os.environ.get("RAY_ADDRESS")))
    if dry_run:
        _print_resolved(run, found, as_json=as_json)
        return
    _require_training()
    from ray_jobs.train import run_training

    with Screen(run) as screen, redirect_stdout(sys.stderr):  # Ray prints of its own accord
        result = run_training(
            run,
            address=address,
            overrides=parse_overrides(assignments),
            on_progress=screen.show,
            on_note=screen.note,
        )
    if as_json:
        print(json.dumps({"run": run.name, "url": run.url, **result}))
    else:
        print(f"{run.name}: {result['reason']} at step {result['step']}; {run.url}")
    if result.get("signal"):
        raise typer.Exit(128 + result["signal"])


def _require_training() -> None:
    """Refuse to train where only the light half is installed."""
    from importlib.util import find_spec

    from inpaint.errors import ConfigError

    missing = [package for package in ("torch", "ray") if find_spec(package) is None]
    if missing:
        raise ConfigError(
            f"{' and '.join(missing)} not installed here; `pip install '.[train]'` in the checkout, or send the run "
            "to a cluster with `inpaint submit`"
        )


def _print_resolved(run: Any, found: dict[str, Any], *, as_json: bool) -> None:
    import yaml

    if as_json:
        print(json.dumps({"run": run.to_dict(), "url": run.url, "found": found}))
        return
    print(yaml.safe_dump(run.to_dict(), sort_keys=False), end="")
    step = found["continues_at"]
    samples = found["samples"]
    lines = [
        f"{run.url}: " + ("a new run" if step is None else f"goes on from step {step}"),
        f"{samples['train']} samples to train on ({found['epochs']:.3g} epochs), {samples['held_out']} held out",
        f"W&B: {found['tracking']}",
        *(f"not checked here: {text}" for text in found["unchecked"]),
    ]
    print("\n".join(lines), file=sys.stderr)


class Screen:
    """A progress bar on stderr, with the newest numbers; plain lines where stderr is no terminal."""

    def __init__(self, run: Any) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = Console(stderr=True)
        self._run = run
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"), console=self._console,
        )  # fmt: skip
        self._task = self._bar.add_task(run.name, total=run.total_steps, numbers="starting Ray")

    def __enter__(self) -> Screen:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def show(self, progress: dict[str, Any]) -> None:
        """A new report of the run."""
        numbers = _numbers(progress)
        step, stage = progress["step"], self._run.stage_at(progress["step"])
        self._bar.update(self._task, description=f"{self._run.name}, {stage}", completed=step, numbers=numbers)
        if not self._console.is_terminal:
            print(f"step {step}/{self._run.total_steps} stage={stage} {numbers}", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """A line about what goes on."""
        self._console.print(text, markup=False, highlight=False)


SHOWN = ("generator/loss", "psnr", "images_per_second")  # where the run reports them


def _numbers(progress: dict[str, Any]) -> str:
    chosen = [key for key in SHOWN if key in progress]
    losses = [key for key in progress if key.endswith("/loss") and key not in chosen]
    return " ".join(f"{key.removesuffix('/loss')} {progress[key]:.4g}" for key in [*chosen, *losses])
