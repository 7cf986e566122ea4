"""What is asked of the cluster: an entry point, its run file, and how many Ray workers of which size."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from inpaint.config.run import RunConfig
from inpaint.errors import ConfigError

Kind = Literal["train", "sweep", "evaluate", "shards"]
FILE_FOLDER = "/etc/inpaint"
FILE_NAME = "run.yaml"
ENTRY_POINTS: dict[Kind, str] = {
    "train": "ray_jobs.train",
    "sweep": "ray_jobs.tune",
    "evaluate": "ray_jobs.evaluate",
    "shards": "ray_jobs.shard",
}
SUFFIXES: dict[Kind, str] = {"train": "", "sweep": "-sweep", "evaluate": "-eval", "shards": "-shards"}
FREE_TO_CHANGE = ("resources", "tracking", "preset")  # settings a resumed task may have changed


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

    @property
    def job_name(self) -> str:
        """Name of its RayJob: at most 47 characters, which is what KubeRay allows."""
        return self.name + SUFFIXES[self.kind]

    @property
    def digest(self) -> str:
        """Short hash of all settings that must stay the same when the task is resumed."""
        settled = {key: value for key, value in self.file.items() if key not in FREE_TO_CHANGE}
        text = json.dumps([self.kind, settled], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def command(self, folder: str = FILE_FOLDER) -> str:
        """The entry point as one shell line; holds no setting, so nothing in it can need quoting."""
        path = f"{folder}/{FILE_NAME}" if folder else FILE_NAME
        return f"python -m {ENTRY_POINTS[self.kind]} {path}"


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
    )


def check_root(root: str, *, mount_path: str | None) -> None:
    """Refuse a store that pods could not reach.

    Args:
        root: of the storage layout.
        mount_path: where the runtime mounts a shared volume claim; None when it has none.

    Raises:
        ConfigError: the root is empty, or a folder of this machine.
    """
    if root.startswith("s3://") or (mount_path and (root + "/").startswith(mount_path.rstrip("/") + "/")):
        return
    place = f"or a folder under {mount_path}" if mount_path else "or give the chart a store.existingClaim"
    raise ConfigError(f"root {root or '(none)'!s} cannot be reached from a pod; use --root s3://bucket/prefix, {place}")
