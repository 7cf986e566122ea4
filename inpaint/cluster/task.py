"""What is asked of the cluster: an entry point, its run file, and how many Ray workers of which size."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from inpaint.checkpoints.records import FREE
from inpaint.cluster.places import Place, request_places, run_places
from inpaint.config.base import flattened
from inpaint.config.evaluation import EvaluationFile, EvaluationRequest
from inpaint.config.run import RUN_NAME, ResourcesConfig, RunConfig
from inpaint.config.sweep import SweepConfig, foreseen_runs, trial_run
from inpaint.errors import ConfigError
from inpaint.sweep.trials import GROWING

Kind = Literal["train", "sweep", "evaluate", "shards"]
FILE_FOLDER = "/etc/inpaint"
FILE_NAME = "run.yaml"
TASK_NAME = "task"  # beside the run file: the UID of its RayJob, the same on each new cluster of it
VERDICT_FILE = "verdict.json"  # in a run's folder: what ended a task for good
MAX_NODES = "INPAINT_MAX_NODES"  # under Ray's autoscaler: what each node holds that a cluster may grow to, as JSON
STOP_FOLDER = "/etc/inpaint-stop"  # empty until somebody asks the task to stop who cannot write its store
STOP_FILE = f"{STOP_FOLDER}/stop"
ENTRY_POINTS: dict[Kind, str] = {
    "train": "ray_jobs.train",
    "sweep": "ray_jobs.tune",
    "evaluate": "ray_jobs.evaluate",
    "shards": "ray_jobs.shard",
}
SUFFIXES: dict[Kind, str] = {"train": "", "sweep": "-sweep", "evaluate": "-eval", "shards": "-shards"}
PLAIN_WORD = re.compile(r"[A-Za-z0-9@%+=:,./_-]+")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One thing to run.

    Attributes:
        kind: picks the entry point.
        name: of the run, sweep or set; up to 40 characters of a-z, 0-9 and -.
        root: of the storage layout.
        url: the folder in the store that belongs to it.
        file: the run file's content, plain values.
        workers: Ray workers of the same size; what `ScalingConfig` or Tune will ask for at once.
        gpus: of one worker; 0 runs it on a CPU group.
        cpus: of one worker.
        cache_gib: node-local cache one pod needs, GiB.
        drivers: extra one-core Ray slots on a CPU group, for the drivers of a sweep's trials.
        arguments: words after the run file, or instead of it for an entry point that reads none.
        reads_file: whether the entry point takes the run file.
        places: every path and URL in it.
    """

    kind: Kind
    name: str
    root: str
    url: str
    file: Mapping[str, Any]
    workers: int
    gpus: float
    cpus: float
    cache_gib: float = 0.0
    drivers: int = 0
    arguments: tuple[str, ...] = ()
    reads_file: bool = True
    places: tuple[Place, ...] = ()

    @property
    def job_name(self) -> str:
        """Name of its RayJob: at most 47 characters, which is what KubeRay allows."""
        return self.name + SUFFIXES[self.kind]

    @property
    def file_map(self) -> str:
        """Name of the ConfigMap with its run file."""
        return f"{self.job_name}-run"

    @property
    def digest(self) -> str:
        """Short hash of all settings that must stay the same when the task is resumed."""
        text = json.dumps([self.kind, settled(self.kind, self.file)], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def trials(self) -> int:
        """Of a sweep, which may grow under its name; 0 of anything else."""
        return int(self.file["trials"]) if self.kind == "sweep" else 0

    def command(self, folder: str = FILE_FOLDER) -> str:
        """The entry point as one line. Two shells read it on the way, so no word in it may need quoting.

        Raises:
            ConfigError: a word with a character that a shell would read.
        """
        path = f"{folder}/{FILE_NAME}" if folder else FILE_NAME
        for word in self.arguments:
            if not PLAIN_WORD.fullmatch(word):
                raise ConfigError(f"{word!r} has a character that a shell reads; use letters, digits and @%+=:,./_-")
        words = [*([path] if self.reads_file else []), *self.arguments]
        return " ".join(["python", "-m", ENTRY_POINTS[self.kind], *words])


def settled(kind: Kind, file: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted path → value of the settings of a run file that decide what comes out: those that the folder of its run,
    or of its sweep, holds it to."""
    flat, free_to_change = flattened(file), GROWING if kind == "sweep" else FREE
    return {
        path: value for path, value in flat.items()
        if not any(path == free or path.startswith(f"{free}.") for free in free_to_change)
    }  # fmt: skip


def train_task(run: RunConfig) -> Task:
    """A training run as a task."""
    return Task(
        kind="train",
        name=run.name,
        root=run.root,
        url=run.url,
        file=run.to_dict(),
        workers=run.resources.num_workers,
        gpus=run.resources.gpus_per_worker,
        cpus=run.resources.cpus_per_worker,
        cache_gib=run.data.cache_gib + run.data.decoded_cache_gib,
        places=(Place("root", run.root), *run_places(run)),
    )


def evaluation_task(request: EvaluationRequest, resources: ResourcesConfig, *, name: str | None = None) -> Task:
    """An evaluation as a task, named after what it scores unless told otherwise."""
    return Task(
        kind="evaluate",
        name=_label(name or request.subject.rpartition("/")[2].removeprefix("baseline:")),
        root=request.root,
        url=evaluation_url(request),
        file=EvaluationFile(request=request, resources=resources).model_dump(mode="json"),
        workers=resources.num_workers,
        gpus=resources.gpus_per_worker,
        cpus=resources.cpus_per_worker,
        places=(Place("root", request.root), *request_places(request)),
    )


def evaluation_url(request: EvaluationRequest) -> str:
    """The folder below which results go: as asked, else the run's, else the root's."""
    subject, root = request.subject, request.root.rstrip("/")
    if subject.startswith("baseline:") or request.finished:
        home = root
    else:
        home = subject.partition("/checkpoints/")[0].rstrip("/") if "/" in subject else f"{root}/runs/{subject}"
    return request.out or f"{home}/evaluations"


def sweep_task(sweep: SweepConfig, *, root: str, concurrent: int) -> Task:
    """A search as a task: room for `concurrent` trials, and for their drivers where a trial has several workers.

    Raises:
        ConfigError: a trial that no run can have.
    """
    trial = trial_run(sweep, {}, name="trial", root=root).resources
    return Task(
        kind="sweep",
        name=sweep.name,
        root=root,
        url=f"{root.rstrip('/')}/sweeps/{sweep.name}",
        file=sweep.model_dump(mode="json", exclude_none=True) | {"concurrent": concurrent},
        workers=concurrent * trial.num_workers,
        gpus=trial.gpus_per_worker,
        cpus=trial.cpus_per_worker,
        drivers=concurrent if trial.num_workers > 1 else 0,
        arguments=("--root", root),
        places=(
            Place("root", root),
            *dict.fromkeys(place for run in foreseen_runs(sweep, root=root) for place in run_places(run)),
        ),
    )


def shards_task(
    words: tuple[str, ...], *, name: str | None, root: str, workers: int, list_file: str | None = None
) -> Task:
    """Writing a shard set as a task.

    Args:
        words: of `inpaint shards write`: source, destination and options, already checked.
        name: of the task; the destination's last two folders when None.
        root: what the destination lies under.
        workers: shards written at a time.
        list_file: the one that the words name.
    """
    url = words[1]
    named = {"SRC": words[0], "DST": url} | ({"--list": list_file} if list_file else {})
    return Task(
        kind="shards",
        name=_label(name or "-".join(url.rstrip("/").split("/")[-2:])),
        root=root,
        url=url,
        file={"words": list(words)},
        workers=workers,
        gpus=0,
        cpus=1,
        arguments=(*words, "--workers", str(workers)),
        reads_file=False,
        places=tuple(Place(word, place) for word, place in named.items()),
    )


def _label(text: str) -> str:
    label = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40].rstrip("-")
    if not RUN_NAME.fullmatch(label):
        raise ConfigError(f"{text!r} cannot name a job; give --name with up to 40 of a-z, 0-9 and -, a letter first")
    return label
