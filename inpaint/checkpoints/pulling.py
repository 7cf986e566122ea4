"""Copy a checkpoint from the store to a local folder: verified, resumable, only what inference needs. No torch."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from inpaint import storage
from inpaint.checkpoints.layout import MANIFEST, CheckpointInfo, find
from inpaint.errors import CheckpointError

SMALL = ("run.yaml", "metrics.json")


def pull(
    place: str | CheckpointInfo,
    folder: str | Path,
    *,
    everything: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Download a checkpoint into `folder`; what is already there and whole is not fetched again.

    Args:
        place: a checkpoint, its URL, or a run's URL (its newest).
        folder: local; made if need be. Its manifest is written last, so a broken-off pull is never taken for whole.
        everything: also the optimizers' state and the networks that only training uses.
        progress: called with (bytes done, bytes in all).

    Returns:
        `folder`.

    Raises:
        CheckpointError: no checkpoint there, or a file whose checksum is not the manifest's.
        StorageError: the store cannot be read or the folder not written.
    """
    info = find(place) if isinstance(place, str) else place
    names = wanted(info, everything=everything)
    folder = Path(folder)
    total, done = sum(info.files[name]["bytes"] for name in names), 0

    def count(new: int) -> None:
        nonlocal done
        done += new
        if progress:
            progress(min(done, total), total)

    def fetch(name: str) -> None:
        target, entry = folder / name, info.files[name]
        target.parent.mkdir(parents=True, exist_ok=True)
        if not _is_whole(target, entry):
            storage.download(info.place(name), target, sha256=entry["sha256"], progress=count)
        else:
            count(entry["bytes"])
        if not _is_whole(target, entry):
            raise CheckpointError(f"{info.place(name)} is not what its manifest says; take another checkpoint")

    manifest = json.loads(storage.read_bytes(storage.join(info.url, MANIFEST)))
    for entry in manifest["files"].values():
        entry.pop("at", None)  # here everything lies in one folder
    (folder / MANIFEST).unlink(missing_ok=True)  # of another checkpoint, perhaps
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(fetch, names))
    (folder / (MANIFEST + ".part")).write_text(json.dumps(manifest, indent=1))
    os.replace(folder / (MANIFEST + ".part"), folder / MANIFEST)
    if progress:
        progress(total, total)
    return folder


def wanted(info: CheckpointInfo, *, everything: bool) -> list[str]:
    """The files of a checkpoint to fetch: all, or settings, scores and the networks that `inpaint` uses."""
    if everything:
        return sorted(info.files)
    return [name for name in sorted(info.files) if name in SMALL or _network(name) in info.inference_networks]


def _network(name: str) -> str | None:
    """`networks/generator.safetensors` → `generator`; None for other files."""
    return storage.name_of(name).removesuffix(".safetensors") if name.startswith("networks/") else None


def _is_whole(path: Path, entry: dict[str, object]) -> bool:
    if not path.is_file() or path.stat().st_size != entry["bytes"]:
        return False
    return storage.sha256_file(path) == entry["sha256"]
