"""`inpaint submit …`: send a run to Kubernetes as one RayJob, or with `--address` to a standing Ray cluster."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from inpaint.cluster.manifest import Manifests
    from inpaint.cluster.runtime import Runtime
    from inpaint.cluster.task import Task

submit = typer.Typer(help="Send work to a cluster: train, sweep, evaluate, shards.", no_args_is_help=True)

ASSIGN = typer.Option([], "--set", metavar="PATH=VALUE", help="Change a setting; may be repeated.")
NAME = typer.Option(None, "--name", help="The same name again resumes; the preset's name when left out.")
ROOT = typer.Option(None, "--root", help="s3://bucket/prefix; the runtime's store when left out. [env: INPAINT_ROOT]")
WORKERS = typer.Option(None, "--workers", min=1, help="Number of Ray workers.")
SPOT = typer.Option(False, "--spot", help="Use worker groups that may be taken away; the run goes on elsewhere.")
GROUP = typer.Option(None, "--group", help="Use this worker group of the runtime.")
RUNTIME = typer.Option(None, "--runtime", help="Name of the runtime's ConfigMap, or a file (.yaml) with its text.")
NAMESPACE = typer.Option(None, "--namespace", "-n", help="Kubernetes namespace; the kubeconfig's when left out.")
CONTEXT = typer.Option(None, "--context", help="Context of the kubeconfig.")
ADDRESS = typer.Option(None, "--address", help="http://host:8265 of a standing Ray cluster, instead of Kubernetes.")
DRY_RUN = typer.Option(False, "--dry-run", help="Check and print what would be created; nothing is sent.")
OUTPUT = typer.Option("yaml", "--output", "-o", help="With --dry-run: yaml or json.")
AS_JSON = typer.Option(False, "--json", help="Print the result as JSON.")


def register(app: typer.Typer) -> None:
    app.add_typer(submit, name="submit")


@submit.command("train")
def train(
    preset: str = typer.Argument(..., help="A preset's name, or a run file (.yaml)."),
    assignments: list[str] = ASSIGN, name: str | None = NAME, root: str | None = ROOT, workers: int | None = WORKERS,
    spot: bool = SPOT, group: str | None = GROUP, runtime: str | None = RUNTIME, namespace: str | None = NAMESPACE,
    context: str | None = CONTEXT, address: str | None = ADDRESS, dry_run: bool = DRY_RUN, output: str = OUTPUT,
    as_json: bool = AS_JSON,
) -> None:  # fmt: skip
    """Train a run on the cluster; submitted again under its name, it goes on from its last checkpoint.

    inpaint submit train isnet-paris --root s3://lab/inpaint --name paris-1 --workers 4 --spot
    """
    from inpaint.cluster.secrets import refuse_secret_arguments
    from inpaint.cluster.task import train_task
    from inpaint.config import load_run
    from inpaint.sweep.scores import check_scores

    refuse_secret_arguments([*assignments, root or ""])
    door = Door(runtime, namespace, context, address, dry_run)
    run = load_run(
        preset, assignments=assignments, name=name, root=root, default_root=door.root(), num_workers=workers
    )
    check_scores(run)
    door.send(train_task(run), spot=spot, group=group, output=output, as_json=as_json)


@submit.command("sweep")
def sweep(
    definition: str = typer.Argument(..., help="A definition in sweeps/, or a file (.yaml)."),
    assignments: list[str] = ASSIGN, name: str | None = NAME, root: str | None = ROOT,
    budget: str | None = typer.Option(None, "--budget", help="One of the definition's budgets; its first if left out."),
    concurrent: int | None = typer.Option(None, "--concurrent", min=1, help="Trials at a time [default: 2]."),
    spot: bool = SPOT, group: str | None = GROUP, runtime: str | None = RUNTIME, namespace: str | None = NAMESPACE,
    context: str | None = CONTEXT, address: str | None = ADDRESS, dry_run: bool = DRY_RUN, output: str = OUTPUT,
    as_json: bool = AS_JSON,
) -> None:  # fmt: skip
    """Run a search on the cluster; submitted again under its name, it goes on where it was.

    inpaint submit sweep isnet-loss-weights --budget tiny --concurrent 4 --root s3://lab/inpaint
    """
    from inpaint.cluster.secrets import refuse_secret_arguments
    from inpaint.cluster.task import sweep_task
    from inpaint.config.sweep import load_sweep
    from inpaint.errors import ConfigError
    from inpaint.sweep.scores import check_metrics

    refuse_secret_arguments([*assignments, root or ""])
    door = Door(runtime, namespace, context, address, dry_run)
    config = load_sweep(definition, budget=budget, name=name, assignments=assignments)
    place = root or door.root()
    if not place:
        raise ConfigError("no store: give --root s3://bucket/prefix, or set INPAINT_ROOT or the runtime's store.root")
    check_metrics(config, root=place)
    task = sweep_task(config, root=place, concurrent=concurrent or config.concurrent or 2)
    door.send(task, spot=spot, group=group, output=output, as_json=as_json)


@submit.command("evaluate")
def evaluate(
    subject: str = typer.Argument(..., help="Run or checkpoint (name or URL), or baseline:NAME."),
    assignments: list[str] = typer.Option([], "--set", metavar="PATH=VALUE", help="A field of the evaluation request: "
                                          "data, best, progressive, limit, masks.url, masks.hole, lpips.alex, ..."),
    protocols: list[str] = typer.Option(["inp-v1"], "--protocol", help="Name, or all; may be repeated."),
    name: str | None = typer.Option(None, "--name", help="Of the job; the subject's name when left out."),
    root: str | None = ROOT,
    workers: int = typer.Option(1, "--workers", min=1, help="Number of Ray workers."),
    gpus: float = typer.Option(0, "--gpus", min=0, help="GPUs of one worker."),
    cpus: float = typer.Option(1, "--cpus", min=0.1, help="Cores of one worker."),
    spot: bool = SPOT, group: str | None = GROUP, runtime: str | None = RUNTIME, namespace: str | None = NAMESPACE,
    context: str | None = CONTEXT, address: str | None = ADDRESS, dry_run: bool = DRY_RUN, output: str = OUTPUT,
    as_json: bool = AS_JSON,
) -> None:  # fmt: skip
    """Score a run, checkpoint or baseline on the cluster; the numbers are the same on any number of workers.

    inpaint submit evaluate paris-1 --protocol inp-v1 --set best=psnr --workers 4 --gpus 1 --root s3://lab/inpaint
    """
    from inpaint.cluster.secrets import refuse_secret_arguments
    from inpaint.cluster.task import evaluation_task
    from inpaint.config.base import apply_overrides, parse_overrides, validate
    from inpaint.config.evaluation import EvaluationRequest
    from inpaint.config.run import ResourcesConfig
    from inpaint.evaluation.protocols import find_protocols

    refuse_secret_arguments([*assignments, root or "", subject])
    door = Door(runtime, namespace, context, address, dry_run)
    values: dict[str, Any] = {"subject": subject, "protocols": tuple(protocols)}
    if store := door.root():
        values["root"] = store
    overrides = parse_overrides(assignments) | ({"root": root} if root else {})
    find_protocols(protocols)
    request = validate(EvaluationRequest, apply_overrides(values, overrides), place="evaluate")
    sizes = {"num_workers": workers, "gpus_per_worker": gpus, "cpus_per_worker": cpus}
    resources = validate(ResourcesConfig, sizes, place="submit evaluate")
    door.send(
        evaluation_task(request, resources, name=name), spot=spot, group=group, output=output, as_json=as_json
    )


@submit.command("shards", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def shards(
    context: typer.Context,
    source: str = typer.Argument(..., help="Folder, tar or zip of images that all pods can read."),
    url: str = typer.Argument(..., help="Folder for the set."),
    name: str | None = typer.Option(None, "--name", help="Of the job; the destination's last folders when left out."),
    workers: int = typer.Option(4, "--workers", min=1, help="Shards written at a time."),
    group: str | None = GROUP, spot: bool = SPOT, runtime: str | None = RUNTIME, namespace: str | None = NAMESPACE,
    kube_context: str | None = CONTEXT, address: str | None = ADDRESS, dry_run: bool = DRY_RUN, output: str = OUTPUT,
    as_json: bool = AS_JSON,
) -> None:  # fmt: skip
    """Write a shard set on the cluster; all further options are those of `inpaint shards write`.

    inpaint submit shards s3://lab/raw/places.tar s3://lab/inpaint/shards/places2/train --dataset places2 --split train
    """
    from inpaint.cluster.secrets import refuse_secret_arguments
    from inpaint.cluster.task import shards_task

    words = (source, url, *context.args)
    refuse_secret_arguments(words)
    list_file = _read_shard_words(words)["list_file"]
    door = Door(runtime, namespace, kube_context, address, dry_run)
    task = shards_task(words, name=name, root=url, workers=workers, list_file=list_file)
    door.send(task, spot=spot, group=group, output=output, as_json=as_json)


def _read_shard_words(words: tuple[str, ...]) -> dict[str, Any]:
    """What the words say; what `inpaint shards write` would refuse fails before a cluster is asked for anything."""
    from typer.main import get_command

    from inpaint.cli.shards import write

    app = typer.Typer(add_completion=False)
    app.command()(write)
    return get_command(app).make_context("inpaint shards write", [*words, "--workers", "1"]).params


class Door:
    """Where a task goes: Kubernetes with a runtime, or a standing Ray cluster.

    Args:
        runtime: name of a ConfigMap or path of a file; found by its label when None.
        namespace: of Kubernetes.
        context: of the kubeconfig.
        address: of a Ray dashboard; then there is no runtime.
        dry_run: without a cluster and without a named runtime, the chart's own values stand in for one.
    """

    def __init__(
        self, runtime: str | None, namespace: str | None, context: str | None, address: str | None, dry_run: bool
    ) -> None:
        from inpaint.errors import ConfigError

        self.address, self.dry_run = address, dry_run
        self.cluster: Any = None
        self.runtime: Runtime | None = None
        self.namespace = namespace or "default"
        if address is not None:
            for option, value in (("--runtime", runtime), ("--namespace", namespace), ("--context", context)):
                if value is not None:
                    raise ConfigError(f"{option} is for Kubernetes and has no effect with --address; leave one out")
            return
        self._find(runtime, namespace, context)

    def root(self) -> str | None:
        """The store where a task names none: from the environment, else the runtime's."""
        import os

        return os.environ.get("INPAINT_ROOT") or (self.runtime.store.root if self.runtime else None) or None

    def send(self, task: Task, *, spot: bool, group: str | None, output: str, as_json: bool) -> None:
        """Submit a task and say how to follow it, or print what would be sent.

        Raises:
            InpaintError: a setting, the runtime or the cluster stands against it.
        """
        from inpaint.cluster.secrets import refuse_secrets
        from inpaint.errors import ConfigError

        if output not in ("yaml", "json"):
            raise ConfigError(f"-o {output} is not a form of output; yaml or json")
        refuse_secrets(dict(task.file), place=f"{task.kind} {task.name}")
        if self.address is None:
            self._to_kubernetes(task, spot=spot, group=group, output=output, as_json=as_json)
            return
        if spot or group:
            raise ConfigError("--spot and --group choose worker pods and have no effect with --address; leave them out")
        self._to_ray(task, output=output, as_json=as_json)

    def _find(self, runtime: str | None, namespace: str | None, context: str | None) -> None:
        from inpaint.cluster.client import connect
        from inpaint.cluster.runtime import Runtime, parse_runtime
        from inpaint.errors import ClusterError, ConfigError

        is_file = runtime is not None and runtime.endswith((".yaml", ".yml"))
        if is_file:
            path = Path(str(runtime))
            if not path.is_file():
                raise ConfigError(f"--runtime {path}: no such file")
            self.runtime = parse_runtime(path.read_text(), place=str(path))
            if self.dry_run:
                return
        try:
            self.cluster = connect(context=context, namespace=namespace)
        except ClusterError:
            if not self.dry_run or context is not None or runtime is not None:
                raise
            self.runtime = Runtime()
            print("no cluster is configured here; shown with the chart's own values", file=sys.stderr)
            return
        self.namespace = self.cluster.namespace
        if not is_file:
            self.runtime = self.cluster.read_runtime(runtime)

    def _to_kubernetes(self, task: Task, *, spot: bool, group: str | None, output: str, as_json: bool) -> None:
        from inpaint.cluster.manifest import build
        from inpaint.cluster.places import check_places
        from inpaint.cluster.pods import SCRATCH
        from inpaint.cluster.submission import submit as send

        assert self.runtime is not None
        scratch = [*SCRATCH, *self.runtime.worker_folders]
        check_places(task.places, shared=self.runtime.shared_folders, scratch=scratch)
        manifests = build(task, self.runtime, namespace=self.namespace, spot=spot, group=group)
        if self.dry_run:
            print(_shown(manifests, output), end="")
            return
        outcome = send(self.cluster, manifests, tell=lambda text: print(text, file=sys.stderr))
        _say(task, outcome, f"-n {self.namespace}", as_json=as_json, namespace=self.namespace)

    def _to_ray(self, task: Task, *, output: str, as_json: bool) -> None:
        from inpaint.cluster.ray_client import RayCluster, find_token

        if self.dry_run:
            job = {"entrypoint": task.command(folder=""), "submission_id": task.job_name, "file": dict(task.file)}
            print(_dump(job, output), end="")
            return
        outcome = RayCluster(str(self.address), token=find_token()).submit(task)
        _say(task, outcome, f"--address {self.address}", as_json=as_json, address=self.address)


def _say(task: Task, outcome: Any, place: str, *, as_json: bool, **where: Any) -> None:
    words = {
        "created": "submitted",
        "resumed": "submitted again; it goes on from its last checkpoint",
        "running": "already on its way; nothing was sent",
        "finished": "has already finished; nothing was sent",
    }
    if as_json:
        result = {"name": outcome.name, "result": outcome.result, "url": task.url, "note": outcome.note}
        print(json.dumps(result | where))
        return
    print(f"{outcome.name}: {words[outcome.result]}" + (f" ({outcome.note})" if outcome.note else ""))
    print(f"  store   {task.url}")
    if outcome.result != "finished":
        print(f"  follow  inpaint logs {task.job_name} --follow {place}")
        print(f"  look    inpaint jobs show {task.job_name} {place}")
        print(f"  stop    inpaint stop {task.job_name} {place}")


def _shown(manifests: Manifests, output: str) -> str:
    if output == "yaml":
        return manifests.to_yaml()
    items = [manifests.config_map, manifests.job]
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items}, indent=2) + "\n"


def _dump(value: dict[str, Any], output: str) -> str:
    import yaml

    return yaml.safe_dump(value, sort_keys=False) if output == "yaml" else json.dumps(value, indent=2) + "\n"
