"""What a run's folder says about the run: `run.yaml` and `provenance.json`. No torch."""

from __future__ import annotations

import contextlib
import json
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from inpaint import __version__, storage
from inpaint.config import RunConfig
from inpaint.config.base import flattened, load_yaml, validate
from inpaint.errors import ConfigError, StorageError

PACKAGES = ("torch", "torchvision", "ray", "numpy", "safetensors", "pillow", "simplejpeg", "lpips", "wandb")

# What may change when a run is continued: none of these changes what is learned from which samples.
FREE = (
    "name", "root", "preset", "resources", "tracking", "checkpoints", "data.train", "data.held_out",
    "data.decode_threads", "data.fetch_threads", "data.prefetch_batches", "data.cache_dir", "data.cache_gib",
    "data.decoded_cache_gib", "training.accumulate", "training.compile", "training.cuda_graphs",
    "training.activation_checkpointing", "training.channels_last", "training.check_every", "training.not_finite",
    "training.max_rollbacks", "evaluation.batch", "health.stop_when",
)  # fmt: skip


def read_run(url: str) -> RunConfig | None:
    """The settings in a run's folder, or None when there are none."""
    place = storage.join(url, "run.yaml")
    if not storage.exists(place):
        return None
    return validate(RunConfig, load_yaml(storage.read_bytes(place).decode(), place=place), place=place)


def check_free(run: RunConfig) -> RunConfig | None:
    """Refuse a run whose name is taken by another; what is recorded of the run itself comes back.

    Raises:
        ConfigError: the settings differ in something that decides what is learned; names each and both values.
    """
    recorded = read_run(run.url)
    if recorded is not None and (changes := differences(recorded, run)):
        listed = "; ".join(f"{path} is {before!r} there and {now!r} here" for path, (before, now) in changes.items())
        raise ConfigError(f"{run.url} holds another run: {listed}. Choose another --name, or set these back to go on")
    return recorded


def differences(recorded: RunConfig, run: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Dotted path → (recorded value, present value) of every setting that may not change when a run is continued."""
    before, now = flattened(recorded.to_dict()), flattened(run.to_dict())
    paths = [path for path in (before | now) if not any(path == free or path.startswith(free + ".") for free in FREE)]
    return {path: (before.get(path), now.get(path)) for path in paths if before.get(path) != now.get(path)}


def record(run: RunConfig, *, provenance: Mapping[str, Any] | None = None) -> None:
    """Write the run's settings and provenance, or check them against the ones there.

    Raises:
        ConfigError: the folder holds another run.
        StorageError: it cannot be written.
    """
    if check_free(run) is None:
        text = yaml.safe_dump(run.to_dict(), sort_keys=False).encode()
        try:
            storage.write_bytes(storage.join(run.url, "run.yaml"), text, if_absent=True)
        except storage.AlreadyExists:
            check_free(run)
    _add_provenance(run, dict(provenance or {}))


def describe(run: RunConfig, *, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Where this start of a run comes from: code, packages, preset, overrides, data."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "inpaint": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "preset": run.preset,
        "overrides": dict(overrides or {}),
        "data": {"train": _digest(run.train_url), "held_out": _digest(run.held_out_url)},
    }


def _add_provenance(run: RunConfig, provenance: dict[str, Any]) -> None:
    """One entry per start, oldest first."""
    place = storage.join(run.url, "provenance.json")
    starts = json.loads(storage.read_bytes(place))["starts"] if storage.exists(place) else []
    storage.write_bytes(place, json.dumps({"starts": [*starts, provenance]}, indent=1).encode())


def _digest(url: str) -> dict[str, Any] | None:
    """A shard set's URL and the digest its index states; None when it has no index."""
    place = storage.join(url, "index.json")
    with contextlib.suppress(StorageError, ValueError):
        if storage.exists(place):
            return {"url": url, "digest": json.loads(storage.read_bytes(place)).get("digest")}
    return None


def _commit() -> str | None:
    """The git commit of the code, with `+changes` where files differ from it; None outside a checkout."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        head, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--", "..")
        return head + ("+changes" if changes else "") if head else None
    return None


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    found = subprocess.run(command, capture_output=True, text=True, timeout=10)
    return found.stdout.strip() if found.returncode == 0 else ""


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
