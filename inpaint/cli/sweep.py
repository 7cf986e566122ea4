"""`inpaint sweep`: search over settings; what became of it; its report; a trial made into a preset."""

from __future__ import annotations

import json
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import typer

from inpaint.cli.submit import sweep as submit_sweep

sweep = typer.Typer(help="Search over settings: run, submit, status, report, promote.", no_args_is_help=True)

ROOT = typer.Option(None, "--root", help="s3://bucket/prefix or a folder. [env: INPAINT_ROOT]")
AS_JSON = typer.Option(False, "--json", help="Print the result as JSON.")
NAME = typer.Argument(..., help="The sweep's name.")


def register(app: typer.Typer) -> None:
    app.add_typer(sweep, name="sweep")


@sweep.command("run")
def run(
    definition: str = typer.Argument(..., help="A definition in sweeps/, or a file (.yaml)."),
    budget: str | None = typer.Option(None, "--budget", help="One of the definition's budgets; its first if left out."),
    assignments: list[str] = typer.Option(
        [], "--set", metavar="PATH=VALUE", help="Change the definition, or with settings.PATH every trial's run."
    ),
    name: str | None = typer.Option(None, "--name", help="Of the sweep; the definition's if left out."),
    root: str | None = ROOT,
    address: str | None = typer.Option(None, "--address", help="Of a Ray cluster (host:port). [env: RAY_ADDRESS]"),
    dry_run: bool = typer.Option(False, "--dry-run", help="Check everything, print the first trials, train nothing."),
    as_json: bool = AS_JSON,
) -> None:
    """Make every trial that is still to be made; started again under its name, a sweep goes on where it was.

    It ends with an error while trials are missing or have failed, unless `inpaint stop` ended it.

    inpaint sweep run isnet-loss-weights --budget tiny --set settings.data.dataset=demo --dry-run
    """
    from inpaint.config.sweep import load_sweep

    config = load_sweep(definition, budget=budget, name=name, assignments=assignments)
    place = _root(root)
    if dry_run:
        _print_first(config, place, local=not (address or os.environ.get("RAY_ADDRESS")), as_json=as_json)
        return
    from inpaint.sweep.trials import sweep_url
    from ray_jobs.stopping import stop_is_asked
    from ray_jobs.tune import check_all_made, run_sweep

    def told(record: Any, done: int, total: int) -> None:
        score = record.metrics.get(config.metric)
        shown = "" if score is None else f" {config.metric} {score:.4g}"
        print(f"[{done}/{total}] {record.id} {record.label}: {record.status}{shown} ({record.seconds:.0f} s)",
              file=sys.stderr, flush=True)  # fmt: skip

    with redirect_stdout(sys.stderr):  # Ray prints of its own accord
        records = run_sweep(
            config, root=place, address=address, on_record=told, on_note=lambda text: print(text, file=sys.stderr)
        )
    _print_states(config.name, records, as_json=as_json)
    if stop_is_asked(sweep_url(config.name, root=place)):
        print(f"{config.name}: stopped as asked; run it again to go on", file=sys.stderr)
        return
    check_all_made(config, records, root=place)


sweep.command("submit")(submit_sweep)  # the same command as `inpaint submit sweep`


@sweep.command("status")
def status(name: str = NAME, root: str | None = ROOT, as_json: bool = AS_JSON) -> None:
    """How far a sweep has come, and which trials are under way.

    inpaint sweep status isnet-loss-weights --root s3://lab/inpaint
    """
    from inpaint.checkpoints import latest
    from inpaint.sweep.trials import known_trials, read_records, recorded, run_of

    place = _root(root)
    config, records = recorded(name, root=place), read_records(name, root=place)
    begun = {}
    for trial in known_trials(config, root=place):
        if trial.id not in records:
            newest = latest(run_of(config, trial, root=place).url)
            if newest:
                begun[trial.id] = newest.step
    _print_states(name, records, as_json=as_json, begun=begun, total=config.trials * len(config.seeds))


@sweep.command("report")
def report(
    name: str = NAME,
    out: str | None = typer.Option(None, "--out", "-o", help="Folder or s3:// URL to write to; here if left out."),
    pictures: bool = typer.Option(True, "--pictures/--no-pictures", help="Fill held-out images with the best trials."),
    root: str | None = ROOT,
    as_json: bool = AS_JSON,
) -> None:
    """Write the published table with ours beside it and what the trials say, as HTML, Markdown and CSV.

    inpaint sweep report isnet-loss-weights --root s3://lab/inpaint
    """
    places = write_report(name, root=_root(root), out=out, pictures=pictures)
    print(json.dumps({"sweep": name, **places}) if as_json else places["html"])


@sweep.command("promote")
def promote(
    name: str = NAME,
    trial: str | None = typer.Argument(
        None, help="The trial's id, or its point's (without the seed); the best on average over seeds if left out."
    ),
    preset: str = typer.Option(..., "--as", help="Name of the preset; written to PRESET.yaml here."),
    root: str | None = ROOT,
    as_json: bool = AS_JSON,
) -> None:
    """Write a preset with a trial's values and where they came from; the best point's if no trial is named.

    inpaint sweep promote isnet-loss-weights 007 --as my-weights --root s3://lab/inpaint
    """
    from inpaint.errors import ConfigError
    from inpaint.sweep.promote import promoted

    path = Path(f"{preset}.yaml")
    text = promoted(name, trial, preset=preset, root=_root(root))
    if path.exists() and path.read_text() != text:
        raise ConfigError(f"{path}: another file is here; choose another name with --as, or move it away")
    path.write_text(text)
    print(json.dumps({"preset": str(path)}) if as_json else f"{path}: train it with `inpaint train {path}`")


def write_report(name: str, *, root: str, out: str | None, pictures: bool) -> dict[str, str]:
    """Write a sweep's report into a folder, this one when None; the places by kind."""
    from inpaint import storage
    from inpaint.sweep.report import report_sweep

    grid = None
    if pictures:
        from inpaint.sweep.pictures import front_pictures

        grid = front_pictures(name, root=root)
    made = report_sweep(name, root=root, pictures=grid)
    places = {kind: storage.join(out or ".", f"{name}.{kind}") for kind in ("html", "md", "csv")}
    for kind, text in (("csv", made.csv), ("md", made.markdown), ("html", made.html)):
        storage.write_bytes(places[kind], text.encode())
    return places


def _root(root: str | None) -> str:
    return root or os.environ.get("INPAINT_ROOT") or "inpaint-root"


def _print_first(config: Any, root: str, *, local: bool, as_json: bool) -> None:
    from dataclasses import asdict

    from inpaint.errors import ClusterError
    from inpaint.sweep.capacity import check_capacity
    from inpaint.sweep.scores import check_metrics
    from inpaint.sweep.trials import check_unchanged, foreseen, planned, run_of
    from ray_jobs.tune import here

    check_unchanged(config, root=root)
    for text in check_metrics(config, root=root):
        print(f"not checked here: {text}", file=sys.stderr)
    if local:
        try:
            check_capacity(config, foreseen(config, root=root), root=root, nodes=here())
        except ClusterError as error:  # the definition may be meant for another place than this
            print(f"not on this machine: {error}", file=sys.stderr)
    trials = planned(config)[:12]
    if as_json:
        print(json.dumps({"sweep": config.model_dump(mode="json"), "trials": [asdict(trial) for trial in trials]}))
        return
    first = run_of(config, foreseen(config, root=root)[0], root=root)
    each = first.resources
    print(f"{config.name}: {config.trials} trials × {len(config.seeds)} seeds, budget {config.budget or '–'}, "
          f"{first.total_steps} steps of {first.training.global_batch}; a trial holds {each.num_workers} × "
          f"({each.cpus_per_worker:g} CPUs, {each.gpus_per_worker:g} GPUs)")  # fmt: skip
    for trial in trials:
        values = " ".join(f"{path.rpartition('.')[2]}={_number(value)}" for path, value in trial.values.items())
        print(f"  {trial.id} {trial.label}: {values}")


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _print_states(
    name: str, records: Any, *, as_json: bool, begun: dict[str, int] | None = None, total: int | None = None
) -> None:
    from dataclasses import asdict

    states = {r.id: r.status for r in records.values()}
    if as_json:
        plain = {key: asdict(record) for key, record in records.items()}
        print(json.dumps({"sweep": name, "records": plain, "begun": begun or {}, "trials": total or len(records)}))
        return
    counts = {state: list(states.values()).count(state) for state in dict.fromkeys(states.values())}
    told = ", ".join(f"{count} {state}" for state, count in counts.items()) or "none is over"
    print(f"{name}: {len(records)} of {total or len(records)} trials over ({told})")
    for trial, step in (begun or {}).items():
        print(f"  {trial}: under way, checkpoint at step {step}")
