"""Where checkpoints lie and which of them are whole. No torch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from inpaint import storage
from inpaint.config.base import suggest
from inpaint.errors import CheckpointError, StorageError

MANIFEST = "manifest.json"
RESTING = "resting"  # beside the checkpoints: networks that several of them share
FORMAT = 1
HIGHER_IS_BETTER = ("psnr", "ssim", "identity", "edge_", "known_edge_")  # beginnings of metric names
LOWER_IS_BETTER = (
    "l1", "mae", "lpips", "fid", "kid", "landmarks", "loss", "hole_error", "valid_error", "seam_error", "checkerboard",
)  # fmt: skip


@dataclass(frozen=True)
class CheckpointInfo:
    """A whole checkpoint.

    Attributes:
        url: its folder.
        step: optimiser steps done when it was written.
        metrics: scores and losses at that step.
        files: path under `url` → {"bytes", "sha256", "crc32"}, and "at" where the file lies elsewhere under the run.
        inference_networks: names of the networks that filling an image needs.
    """

    url: str
    step: int
    metrics: dict[str, float] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    inference_networks: tuple[str, ...] = ()

    def place(self, name: str) -> str:
        """URL of one of its files."""
        at = self.files[name].get("at")
        return storage.join(self.url.rpartition("/checkpoints/")[0], at) if at else storage.join(self.url, name)

    @property
    def bytes(self) -> int:
        """Size of all its files."""
        return sum(entry["bytes"] for entry in self.files.values())


def run_url(run: str, *, root: str | None = None) -> str:
    """The folder of a run given by name (under `root`, else `INPAINT_ROOT`, else `./inpaint-root`) or by URL.

    A name without a slash is a folder here only when no run of that name is there.
    """
    if storage.is_remote(run) or "/" in run:
        return run.rstrip("/")
    named = storage.join(root or os.environ.get("INPAINT_ROOT") or "inpaint-root", "runs", run)
    if os.path.isdir(run) and not storage.exists(storage.join(named, "run.yaml")):
        return run
    return named


def checkpoint_url(run: str, step: int) -> str:
    """The folder of a run's checkpoint after `step` steps."""
    return storage.join(run, "checkpoints", f"{step:010d}")


def list_checkpoints(run: str) -> list[CheckpointInfo]:
    """The whole checkpoints of the run at this URL, oldest first; half-written or half-deleted ones are left out."""
    folder = storage.join(run, "checkpoints")
    sizes = {item.url: item.size for item in storage.list_objects(folder)}
    sizes |= {item.url: item.size for item in storage.list_objects(storage.join(run, RESTING))}
    found = []
    for url in sorted(url for url in sizes if storage.name_of(url) == MANIFEST):
        info = _read(url.removesuffix("/" + MANIFEST))
        if info and all(sizes.get(info.place(name)) == file["bytes"] for name, file in info.files.items()):
            found.append(info)
    return sorted(found, key=lambda info: info.step)


def latest(run: str) -> CheckpointInfo | None:
    """The newest whole checkpoint of a run, or None."""
    found = list_checkpoints(run)
    return found[-1] if found else None


def best(run: str, metric: str, mode: Literal["max", "min"] | None = None) -> CheckpointInfo:
    """The checkpoint with the best `metric`; of equals, the newest.

    Args:
        run: the run's URL.
        metric: its name in the checkpoints' metrics.
        mode: which end is best; by the metric's name when None.

    Raises:
        CheckpointError: the run has no checkpoint, or none with this metric, or nobody says which end of it is best.
    """
    found = list_checkpoints(run)
    if not found:
        raise CheckpointError(f"{run} has no checkpoint; `inpaint train` writes them")
    scored = [info for info in found if metric in info.metrics]
    if not scored:
        known = ", ".join(sorted({name for info in found for name in info.metrics})) or "none"
        raise CheckpointError(f"{run}: no checkpoint has {metric}; scores there: {known}")
    end = mode or direction(metric)
    if end is None:
        raise CheckpointError(f"{run}: whether more or less {metric} is better is not known; choose a score")
    sign = 1 if end == "max" else -1
    return max(scored, key=lambda info: (sign * info.metrics[metric], info.step))


def direction(metric: str) -> Literal["max", "min"] | None:
    """Which end of a metric is best, from its name (`lpips_alex`, `l1@30-40`, `generator/loss`); None if unclear."""
    *before, name = metric.partition("@")[0].split("/")
    if len(before) > 1:  # a network's or a term's own, such as its share in the gradient
        return None
    if name.startswith(LOWER_IS_BETTER):
        return "min"
    return "max" if name.startswith(HIGHER_IS_BETTER) else None


def require_run(url: str) -> None:
    """Refuse a place where no run is.

    Raises:
        CheckpointError: with the names of the runs beside it, if one is near.
    """
    if storage.exists(storage.join(url, "run.yaml")) or latest(url):
        return
    parent, _, name = url.rpartition("/")
    known = storage.list_folders(parent) if parent else []
    raise CheckpointError(f"{url}: no run here{suggest(name, known)}; give --root, or the URL of a run")


def find(place: str) -> CheckpointInfo:
    """The checkpoint at `place`: a checkpoint's folder (in the store or pulled), or a run, whose newest is meant.

    Raises:
        CheckpointError: no whole checkpoint is there.
    """
    place = place.rstrip("/")
    info = _read(place) or latest(place)
    if info is None:
        raise CheckpointError(f"{place}: no checkpoint here; `inpaint checkpoints RUN` lists those of a run")
    return info


def to_keep(found: Iterable[CheckpointInfo], *, keep_last: int, keep_best: int, metric: str, mode: str) -> set[str]:
    """URLs of the checkpoints worth keeping: the newest `keep_last`, and the `keep_best` best by `metric`."""
    by_age = sorted(found, key=lambda info: info.step)
    sign = 1 if mode == "max" else -1
    scored = [info for info in by_age if metric in info.metrics]
    best_first = sorted(scored, key=lambda info: (sign * info.metrics[metric], info.step), reverse=True)
    return {info.url for info in by_age[-keep_last:]} | {info.url for info in best_first[:keep_best]}


def _read(url: str) -> CheckpointInfo | None:
    """What a folder's manifest says, or None where there is none."""
    place = storage.join(url, MANIFEST)
    try:
        if not storage.exists(place):
            return None
        manifest = json.loads(storage.read_bytes(place))
    except ValueError:
        return None
    except StorageError:
        if storage.exists(place):
            raise
        return None  # deleted between the two looks
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{place}: format {manifest.get('format')}, this version reads {FORMAT}; update inpaint")
    return CheckpointInfo(
        url=url,
        step=manifest["step"],
        metrics=manifest["metrics"],
        files=manifest["files"],
        inference_networks=tuple(manifest["inference_networks"]),
    )
