"""Weights of frozen, published networks: from torchvision, a path, an `s3://` mirror, or `random` when asked for."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inpaint import storage
from inpaint.errors import StorageError, WeightsError

if TYPE_CHECKING:
    from torch import Tensor

RANDOM = "random"
TORCHVISION = "torchvision"
TORCHVISION_NAMES = ("vgg16", "vgg19", "alexnet", "squeezenet1_1")


def resolve(name: str, source: str, *, sha256: str | None = None, option: str = "") -> Path | None:
    """A local file with the weights of network `name`, or None for `random`.

    Args:
        name: `vgg16`, `vgg19`, `alexnet`, `squeezenet1_1`, or any name when `source` is a path or URL.
        source: `torchvision`, a path, an `s3://` URL, or `random`.
        sha256: digest the file must have, if given.
        option: what names the source on the command line (`--features tf-port`), for messages; a setting otherwise.

    Raises:
        WeightsError: absent, unreachable, or with another digest.
    """
    given = _given(name, source, option)
    if source == RANDOM:
        if sha256:
            raise WeightsError(f"{given}: random weights have no file, so sha256 {sha256} has no effect; leave it out")
        return None
    if source == TORCHVISION:
        path = _from_torchvision(name, option)
    elif storage.is_remote(source):
        path = _from_mirror(name, source, option)
    else:
        path = Path(source).expanduser()
        if not path.is_file():
            raise WeightsError(f"{given} is not a file; {_ways(name, option)}")
    if sha256 and (found := file_sha256(path)) != sha256.lower():
        raise WeightsError(f"{given} has sha256 {found}, expected {sha256}; fetch the file anew")
    return path


def load(name: str, source: str, *, sha256: str | None = None, option: str = "") -> dict[str, Tensor] | None:
    """The state dict in that file (`.pth`, `.safetensors` or `.npz`), or None for `random`; arguments as in `resolve`.

    Raises:
        WeightsError: as `resolve`, or the file is not a state dict.
    """
    path = resolve(name, source, sha256=sha256, option=option)
    if path is None:
        return None
    given = _given(name, source, option)
    try:
        state = _read(path)
    except Exception as error:
        raise WeightsError(f"{given} cannot be read ({error}); {_ways(name, option)}") from error
    if not isinstance(state, dict):
        raise WeightsError(f"{given} holds {type(state).__name__}, expected a state_dict")
    return state


def file_sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path) -> Any:
    import torch

    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if path.suffix == ".npz":
        import numpy as np

        with np.load(path) as arrays:
            return {key: torch.from_numpy(arrays[key]).float() for key in arrays.files}
    return torch.load(path, map_location="cpu", weights_only=True)


def _from_torchvision(name: str, option: str) -> Path:
    given = _given(name, TORCHVISION, option)
    if name not in TORCHVISION_NAMES:
        raise WeightsError(f"{given}: torchvision has none; {_ways(name, option)}")
    import torch
    from torchvision.models import get_model_weights

    url = get_model_weights(name).DEFAULT.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / storage.name_of(url)
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _one_at_a_time(path.parent):
            if not path.is_file():
                torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rpartition("-")[2], progress=False)
    except Exception as error:
        raise WeightsError(f"{given}: the download failed ({error}); {_ways(name, option)}") from error
    return path


def _from_mirror(name: str, url: str, option: str) -> Path:
    try:
        version = hashlib.sha256(f"{url} {storage.stat(url).etag}".encode()).hexdigest()[:16]
        folder = Path(tempfile.gettempdir()) / f"inpaint-weights-{os.getuid()}" / version
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / storage.name_of(url)
        with _one_at_a_time(folder):
            if not path.is_file():
                storage.download(url, path)
    except StorageError as error:
        raise WeightsError(f"{_given(name, url, option)}: {error}; {_ways(name, option)}") from error
    return path


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """One process of this machine after the other: what the first one fetches, the next ones find."""
    with open(folder / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _given(name: str, source: str, option: str) -> str:
    """What was asked for, as the user wrote it."""
    return f"{option}={source}" if option else f"{name} weights: {source}"


def _ways(name: str, option: str) -> str:
    """What would be right."""
    places = "torchvision, a path or an s3:// URL" if name in TORCHVISION_NAMES else "a path or an s3:// URL"
    setting = name if "." in name else f"feature_weights.{name}"
    how = f"give {option}=SOURCE, where SOURCE is {places}" if option else f"set {setting} to {places}"
    may_be_random = name in (*TORCHVISION_NAMES, "inception_v3")
    return f"{how} (or random, which marks every result, for a try without a network)" if may_be_random else how
