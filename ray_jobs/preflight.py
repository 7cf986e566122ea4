"""Everything about a run that can be checked before a worker starts. Needs neither torch nor Ray."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from inpaint import checkpoints, storage, weights
from inpaint.checkpoints.records import check_free
from inpaint.config import RunConfig
from inpaint.errors import ConfigError, DataError, StorageError
from inpaint.sweep.scores import check_scores
from inpaint.tracking import has_key, resolve_mode

LPIPS_BACKBONES = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}


def preflight(run: RunConfig, *, local: bool) -> dict[str, Any]:
    """Check a run's settings against the world.

    Args:
        run: checked settings.
        local: it will be trained on this machine, so its workers must fit here.

    Returns:
        What was found: "continues_at" (step, or None for a new run), "samples" of each shard set, "epochs",
        "tracking", and "unchecked", what could not be looked at here and why.

    Raises:
        InpaintError: the first thing that would stop the run.
    """
    unchecked = check_scores(run)
    if local:
        _check_machine(run)
    check_writable(run.root)
    known = check_free(run)
    newest = checkpoints.latest(run.url) if known else None
    samples = check_data(run)
    _check_weights(run, unchecked)
    if run.tracking.mode == "online" and not has_key():
        raise ConfigError("tracking.mode: online needs WANDB_API_KEY in the environment; set it, or mode: offline")
    return {
        "continues_at": newest.step if newest else None,
        "samples": samples,
        "epochs": run.total_steps * run.training.global_batch / samples["train"],
        "tracking": resolve_mode(run),
        "unchecked": unchecked,
    }


def check_data(run: RunConfig) -> dict[str, int]:
    """Look for everything a run reads from the store, in a few small requests.

    Returns:
        Samples of the sets "train" and "held_out".

    Raises:
        DataError: a shard set or a mask set is missing, or too small for a batch.
        CheckpointError: a stage starts from a run without checkpoints.
        StorageError: the store does not answer.
    """
    samples = {"train": count_samples(run.train_url), "held_out": count_samples(run.held_out_url)}
    if samples["train"] < run.training.global_batch and run.data.last_batch == "drop":
        raise DataError(
            f"{run.train_url}: {samples['train']} samples do not fill a batch of {run.training.global_batch}; "
            "write more, lower training.global_batch or set data.last_batch: wrap"
        )
    _check_holes(run)
    _check_starts(run)
    return samples


def check_writable(root: str) -> None:
    """Refuse a root into which nothing can be written; nothing is left there.

    Raises:
        StorageError: with the reason.
    """
    if storage.is_remote(root):
        storage.check_writable(root)
        return
    folder = storage.local_path(root).absolute()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise StorageError(f"{root}: {folder} is a file; choose another --root")
    storage.check_writable(str(folder))


def count_samples(url: str) -> int:
    """Samples of a shard set, from its index.

    Raises:
        DataError: no index there.
    """
    place = storage.join(url, "index.json")
    try:
        return int(json.loads(storage.read_bytes(place))["samples"])
    except storage.MissingObject:
        raise DataError(f"{url}: no shards with an index here; `inpaint shards write --help` makes them") from None
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{place} is not an index of shards; write the set again") from None


def machine() -> dict[str, float]:
    """CPUs and GPUs that a Ray of our own would find here."""
    try:
        cpus = float(len(os.sched_getaffinity(0)))
    except AttributeError:  # not on Linux
        cpus = float(os.cpu_count() or 1)
    return {"cpus": min(cpus, _cpu_quota() or cpus), "gpus": float(_count_gpus())}


def _check_machine(run: RunConfig) -> None:
    """Raises ConfigError when the workers do not fit on this machine."""
    found, wanted = machine(), run.resources
    for kind, each in (("CPUs", wanted.cpus_per_worker), ("GPUs", wanted.gpus_per_worker)):
        have, need = found[kind.lower()], each * wanted.num_workers
        if need > have:
            raise ConfigError(
                f"resources: {wanted.num_workers} workers need {need:g} {kind}, this machine has {have:g}; use fewer "
                f"--workers, lower resources.{kind.lower()}_per_worker, or give the --address of a Ray cluster"
            )


def _check_holes(run: RunConfig) -> None:
    """Raises DataError when a mask set is not there, ConfigError when no hole that is drawn can have such a ratio."""
    url = getattr(run.holes, "url", None)
    if url is None and find_spec("numpy") is not None:
        from inpaint.masks import make_holes

        try:
            make_holes(run.holes, run.data.image_size)
        except ValueError as error:
            raise ConfigError(f"holes: {error}") from None
    if url is not None and next(iter(storage.list_objects(url)), None) is None:
        raise DataError(f"holes.url: nothing in {url}; give a folder of masks or a shard set")


def _check_starts(run: RunConfig) -> None:
    """Raises CheckpointError when a stage starts from a run without checkpoints."""
    for stage in run.stages.values():
        if stage.start_from is not None:
            checkpoints.layout.find(checkpoints.run_url(stage.start_from, root=run.root))


def _check_weights(run: RunConfig, unchecked: list[str]) -> None:
    """Raises WeightsError when feature weights, or files that the method is built from, are absent or altered."""
    for setting, (source, sha256) in run.method.weight_files().items():
        weights.resolve(setting, source, sha256=sha256)
    for network, source in run.evaluation.lpips.items():
        if source not in ("present", weights.TORCHVISION):
            weights.resolve(LPIPS_BACKBONES[network], source, option=f"--set evaluation.lpips.{network}")
    for name in run.feature_networks:
        source = getattr(run.feature_weights, name)
        if source == weights.TORCHVISION and find_spec("torchvision") is None:
            unchecked.append(f"{name} weights from torchvision, which is not installed here")
        else:
            weights.resolve(name, source, sha256=run.feature_weights.sha256.get(name))


def _cpu_quota() -> float | None:
    """CPUs that the container may use, from its control group; None where it has no limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else max(1.0, int(quota) // int(period))
    except (OSError, ValueError):
        return None


def _count_gpus() -> int:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() and name.strip() != "-1"])
    if shutil.which("nvidia-smi") is None:
        return 0
    found = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    return sum(line.startswith("GPU ") for line in found.stdout.splitlines())
