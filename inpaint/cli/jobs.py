"""`inpaint jobs`, `inpaint logs`, `inpaint stop`: follow runs on a cluster and end them."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from inpaint.cluster.ray_client import RayCluster
    from inpaint.cluster.status import Summary

jobs = typer.Typer(help="What runs on the cluster: a table that keeps up, or one run in full.")

NAMESPACE = typer.Option(None, "--namespace", "-n", help="Kubernetes namespace; the kubeconfig's when left out.")
CONTEXT = typer.Option(None, "--context", help="Context of the kubeconfig.")
ADDRESS = typer.Option(None, "--address", help="http://host:8265 of a standing Ray cluster, instead of Kubernetes.")
AS_JSON = typer.Option(False, "--json", help="Print the result as JSON, once.")
RUN = typer.Argument(..., help="Name of a run, sweep or job.")
COLUMNS = ("run", "kind", "state", "workers", "step", "images/s", "checkpoint", "preempted", "GPU-hours", "")
REFRESH_SECONDS = 5.0
WIDE = 240  # characters of a table that goes into a file or a pipe
TERMINAL_CODE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")  # of colours and the cursor; ECMA-48, 5.4


def register(app: typer.Typer) -> None:
    app.add_typer(jobs, name="jobs")
    app.command("logs")(logs)
    app.command("stop")(stop)


@jobs.callback(invoke_without_command=True)
def table(
    context: typer.Context,
    namespace: str | None = NAMESPACE,
    kube_context: str | None = CONTEXT,
    address: str | None = ADDRESS,
    once: bool = typer.Option(False, "--once", help="Print the table once, also on a terminal."),
    as_json: bool = AS_JSON,
) -> None:
    """Show all runs; on a terminal the table keeps up until Ctrl-C.

    inpaint jobs -n training
    """
    if context.invoked_subcommand is None:
        _list(namespace, kube_context, address, once=once, as_json=as_json)
        return
    given = {"namespace": namespace, "context": kube_context, "address": address, "as_json": as_json or None}
    place = {name: value for name, value in given.items() if value is not None}
    context.default_map = dict.fromkeys(("list", "show", "expire"), place)  # `jobs -n X show` is `jobs show -n X`


@jobs.command("list")
def list_command(
    namespace: str | None = NAMESPACE,
    context: str | None = CONTEXT,
    address: str | None = ADDRESS,
    as_json: bool = AS_JSON,
) -> None:
    """Show all runs once.

    inpaint jobs list -n training --json
    """
    _list(namespace, context, address, once=True, as_json=as_json)


@jobs.command("show")
def show(
    run: str = RUN,
    namespace: str | None = NAMESPACE,
    context: str | None = CONTEXT,
    address: str | None = ADDRESS,
    as_json: bool = AS_JSON,
) -> None:
    """Show one run: its state in plain words, what holds it up, its pods and events.

    inpaint jobs show paris-1 -n training
    """
    if address is not None:
        found = _ray(address).newest(run)
        print(json.dumps(found, indent=None if as_json else 2))
        return
    from inpaint.cluster.client import connect
    from inpaint.cluster.following import StoreReader, look, resolve, summary
    from inpaint.cluster.stuck import event_time

    cluster = connect(context=context, namespace=namespace)
    job = resolve(cluster, run)
    about, seen = summary(cluster, job, StoreReader()), look(cluster, job)
    events = sorted(seen.events, key=event_time)[-20:]
    if as_json:
        said = [{"time": event_time(e), "type": e.get("type"), "message": e.get("message")} for e in events]
        pods = [{"name": p["metadata"]["name"], "phase": p["status"].get("phase")} for p in seen.pods]
        print(json.dumps({**_row(about), "holds": about.holds, "pods": pods, "events": said}))
        return
    print(f"{about.name} ({about.kind}): {about.state}" + (f": {about.detail}" if about.detail else ""))
    for hold in about.holds:
        print(f"  held up   {hold}")
    for name, value in zip(COLUMNS[3:-1], _cells(about)[3:-1], strict=True):
        print(f"  {name:12}{value}")
    print(f"  store     {about.url}")
    for pod in seen.pods:
        print(f"  pod       {pod['metadata']['name']}: {pod['status'].get('phase', '?')}")
    for event in events:
        said = f"{event.get('type', '')}  {event.get('reason', '')}: {event.get('message', '')}"
        print(f"  {event_time(event)[:19]}  {said}")


@jobs.command("expire")
def expire(
    namespace: str | None = NAMESPACE,
    context: str | None = CONTEXT,
    dry_run: bool = typer.Option(False, "--dry-run", help="Only say which."),
    as_json: bool = AS_JSON,
) -> None:
    """Remove runs that a queue has not admitted within their runtime's timeouts.queueSeconds.

    inpaint jobs expire -n training --dry-run
    """
    from datetime import UTC, datetime

    from inpaint.cluster.client import connect
    from inpaint.cluster.status import is_overdue

    cluster = connect(context=context, namespace=namespace)
    overdue = [job["metadata"] for job in cluster.list_jobs()[0] if is_overdue(job, now=datetime.now(UTC))]
    for metadata in overdue if not dry_run else []:
        cluster.delete_job(metadata["name"], uid=metadata.get("uid"))
    names = [metadata["name"] for metadata in overdue]
    if as_json:
        print(json.dumps({"overdue": names, "removed": not dry_run}))
        return
    for name in names:
        print(f"{name}: not admitted in time" + ("" if dry_run else "; removed"))


def logs(
    run: str = RUN,
    follow: bool = typer.Option(False, "--follow", "-f", help="Keep printing until the run has ended."),
    tail: int | None = typer.Option(None, "--tail", min=1, help="Only the last lines."),
    namespace: str | None = NAMESPACE,
    context: str | None = CONTEXT,
    address: str | None = ADDRESS,
) -> None:
    """Print a run's log: from the submitter, else from the head, else from what the run copied to its store.

    The colours that Ray writes are kept on a terminal only.

    inpaint logs paris-1 --follow -n training
    """
    coloured = sys.stdout.isatty()
    for line in _lines(run, follow=follow, tail=tail, namespace=namespace, context=context, address=address):
        print(line if coloured else TERMINAL_CODE.sub("", line), flush=follow)


def stop(
    run: str = RUN,
    now: bool = typer.Option(False, "--now", help="Do not wait: pods go, workers have their grace period to save."),
    delete: bool = typer.Option(False, "--delete", help="Also remove the RayJob, so that its name is free."),
    wait: float = typer.Option(300.0, "--wait", min=0, help="Seconds to wait for a checkpoint before ending it hard."),
    namespace: str | None = NAMESPACE,
    context: str | None = CONTEXT,
    address: str | None = ADDRESS,
    as_json: bool = AS_JSON,
) -> None:
    """Stop a run: it writes a checkpoint and ends; one that does not within the time is ended hard.

    inpaint stop paris-1 -n training
    """
    if address is not None:
        if delete:
            from inpaint.errors import ConfigError

            raise ConfigError("--delete has no effect with --address: Ray keeps its list of jobs; leave it out")
        result = _stop_on_ray(_ray(address), run, now=now, wait=wait)
    else:
        from inpaint.cluster.client import connect

        cluster = connect(context=context, namespace=namespace)
        result = _stop_on_kubernetes(cluster, run, now=now, delete=delete, wait=wait)
    print(json.dumps({"run": run, "result": result}) if as_json else f"{run}: {result}")


def _list(namespace: str | None, context: str | None, address: str | None, *, once: bool, as_json: bool) -> None:
    from rich.console import Console

    if address is not None:
        _print_ray_jobs(_ray(address), as_json=as_json)
        return
    from inpaint.cluster.client import connect
    from inpaint.cluster.following import StoreReader, summary
    from inpaint.cluster.refusals import insist

    cluster, store = connect(context=context, namespace=namespace), StoreReader()
    console = Console()
    if not console.is_terminal:
        console.width = WIDE
    if as_json or once or not console.is_terminal:
        rows = [summary(cluster, job, store) for job in cluster.list_jobs()[0]]
        if as_json:
            print(json.dumps([_row(row) for row in rows]))
        else:
            console.print(_table(rows) if rows else f"no runs in namespace {cluster.namespace}")
        return
    from rich.live import Live

    try:
        with Live(console=console, auto_refresh=False) as live:
            for listed in cluster.watch_jobs(every_seconds=REFRESH_SECONDS):
                rows = insist(lambda jobs=listed: [summary(cluster, job, store) for job in jobs])
                live.update(_table(rows), refresh=True)
    except KeyboardInterrupt:
        return


def _lines(
    run: str, *, follow: bool, tail: int | None, namespace: str | None, context: str | None, address: str | None
) -> Iterator[str]:
    from inpaint.errors import ConfigError

    if follow and tail:
        raise ConfigError("--tail has no effect with --follow; leave one out")
    if address is not None:
        ray = _ray(address)
        name = ray.newest(run)["submission_id"]
        yield from ray.follow(name) if follow else ray.log(name).splitlines()[-(tail or 0) :]
        return
    from inpaint.cluster.client import connect
    from inpaint.cluster.following import follow_logs, read_logs, resolve

    cluster = connect(context=context, namespace=namespace)
    job = resolve(cluster, run)
    if follow:
        yield from follow_logs(cluster, job, tell=lambda text: print(text, file=sys.stderr))
    else:
        yield from read_logs(cluster, job, tail_lines=tail)


def _stop_on_kubernetes(cluster: Any, run: str, *, now: bool, delete: bool, wait: float) -> str:
    from inpaint.cluster.following import ask_to_stop, can_be_asked_to_stop, resolve, wait_until_ended
    from inpaint.cluster.refusals import insist
    from inpaint.cluster.status import is_finished

    job = resolve(cluster, run)
    name, uid = job["metadata"]["name"], job["metadata"].get("uid")
    if is_finished(job):
        if not delete and not now:
            return "has already ended; --delete removes its RayJob and pods"
        cluster.delete_job(name, uid=uid)
        return "had ended; its RayJob and pods are removed"
    if now or not can_be_asked_to_stop(job):
        cluster.delete_job(name, uid=uid)
        return "ended; its workers have their grace period to write a checkpoint" if now else "removed; nothing to save"
    how = ask_to_stop(cluster, job)
    print(f"{name}: asked {how} to write a checkpoint and end; waiting up to {wait:.0f} s", file=sys.stderr)
    ended = wait_until_ended(cluster, name, seconds=wait)
    if delete or not ended:
        insist(lambda: cluster.delete_job(name, uid=uid))
    if not ended:
        return f"did not end within {wait:.0f} s and was ended hard; whatever it had saved is whole"
    return ended


def _stop_on_ray(ray: RayCluster, run: str, *, now: bool, wait: float) -> str:
    from inpaint import storage
    from inpaint.cluster.ray_client import ENDED
    from inpaint.cluster.refusals import Unavailable, insist
    from inpaint.errors import StorageError

    job = ray.newest(run)
    name, url = job["submission_id"], job["metadata"].get("url", "")
    if job["status"] in ENDED:
        return "has already ended"
    if not now and job["status"] == "RUNNING" and url:
        try:
            storage.write_bytes(storage.join(url, "stop"), b"")
        except StorageError as error:
            print(f"{run}: cannot write {url}/stop from here ({error}); telling Ray instead", file=sys.stderr)
        else:
            until = time.monotonic() + wait
            while time.monotonic() < until:
                with suppress(Unavailable):
                    if ray.status(name) in ENDED:
                        return _end_on_ray(ray, name, run)
                time.sleep(1.0)
    insist(lambda: ray.stop(name))
    return "ended by Ray"


def _end_on_ray(ray: RayCluster, name: str, run: str) -> str:
    from inpaint.cluster.following import describe_end
    from inpaint.cluster.status import last_line

    job = ray.newest(run)
    why = last_line(job.get("message") or "")
    return describe_end(job["status"], why=why, log=ray.log(name), url=job["metadata"].get("url", ""))


def _ray(address: str) -> RayCluster:
    from inpaint.cluster.ray_client import RayCluster, find_token

    return RayCluster(address, token=find_token())


def _print_ray_jobs(ray: RayCluster, *, as_json: bool) -> None:
    from inpaint.cluster.status import last_line

    rows = [
        {"run": job["metadata"]["run"], "job": job["submission_id"], "state": job["status"].lower(),
         "detail": last_line(job.get("message") or "")}
        for job in ray.jobs()
    ]  # fmt: skip
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(f"{row['job']:40} {row['state']:10} {row['detail']}")


def _table(rows: list[Summary]) -> Any:
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False)
    for name in COLUMNS:
        drawn.add_column(name, no_wrap=bool(name))
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in _cells(row)))
    return drawn


def _cells(row: Summary) -> tuple[str, ...]:
    """One run as text, in the order of COLUMNS; a dash where nothing is known."""
    seen = row.progress
    step = "-" if seen.step is None else f"{seen.step:,}" + (f" / {seen.total_steps:,}" if seen.total_steps else "")
    step += f", {seen.stage}" if seen.stage else ""
    age = "-" if seen.checkpoint_time is None else f"{_age(time.time() - seen.checkpoint_time)} ago"
    checkpoint = age if seen.checkpoint_step is None else f"{seen.checkpoint_step:,}, {age}"
    return (
        row.name, row.kind, row.state, f"{row.workers_ready}/{row.workers_wanted}", step,
        "-" if seen.images_per_second is None else f"{seen.images_per_second:.3g}", checkpoint,
        "-" if seen.preemptions is None else str(seen.preemptions), f"{row.gpu_hours:.1f}", row.detail,
    )  # fmt: skip


def _row(row: Summary) -> dict[str, Any]:
    return asdict(row)


def _age(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"
