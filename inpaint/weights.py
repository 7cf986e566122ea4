"""Weights of frozen, published networks: from torchvision, a path, an `s3://` mirror, or `random` when asked for."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inpaint import storage
from inpaint.errors import StorageError, WeightsError

if TYPE_CHECKING:
    from torch import Tensor

RANDOM = "random"
TORCHVISION = "torchvision"
TORCHVISION_NAMES = ("vgg16", "vgg19", "alexnet", "squeezenet1_1")


def resolve(name: str, source: str, *, sha256: str | None = None) -> Path | None:
    """A local file with the weights of network `name`, or None for `random`.

    Args:
        name: `vgg16`, `vgg19`, `alexnet`, `squeezenet1_1`, or any name when `source` is a path or URL.
        source: `torchvision`, a path, an `s3://` URL, or `random`.
        sha256: digest the file must have, if given.

    Raises:
        WeightsError: absent, unreachable, or with another digest.
    """
    if source == RANDOM:
        return None
    if source == TORCHVISION:
        path = _from_torchvision(name)
    elif storage.is_remote(source):
        path = _from_mirror(name, source)
    else:
        path = Path(source).expanduser()
        if not path.is_file():
            raise WeightsError(f"{name} weights: {source} is not a file; {_ways(name)}")
    if sha256 and (found := file_sha256(path)) != sha256.lower():
        raise WeightsError(f"{name} weights: {source} has sha256 {found}, expected {sha256}; fetch the file anew")
    return path


def load(name: str, source: str, *, sha256: str | None = None) -> dict[str, Tensor] | None:
    """The state dict in that file (`.pth`, `.safetensors` or `.npz`), or None for `random`.

    Raises:
        WeightsError: as `resolve`, or the file is not a state dict.
    """
    path = resolve(name, source, sha256=sha256)
    if path is None:
        return None
    try:
        state = _read(path)
    except Exception as error:
        raise WeightsError(f"{name} weights: {source} cannot be read ({error}); {_ways(name)}") from error
    if not isinstance(state, dict):
        raise WeightsError(f"{name} weights: {source} holds {type(state).__name__}, expected a state_dict")
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


def _from_torchvision(name: str) -> Path:
    if name not in TORCHVISION_NAMES:
        raise WeightsError(f"{name} weights: torchvision has none; {_ways(name)}")
    import torch
    from torchvision.models import get_model_weights

    url = get_model_weights(name).DEFAULT.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / storage.name_of(url)
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rpartition("-")[2], progress=False)
    except Exception as error:
        raise WeightsError(f"{name} weights: the download from torchvision failed ({error}); {_ways(name)}") from error
    return path


def _from_mirror(name: str, url: str) -> Path:
    try:
        version = hashlib.sha256(f"{url} {storage.stat(url).etag}".encode()).hexdigest()[:16]
        folder = Path(tempfile.gettempdir()) / "inpaint-weights" / version
        path = folder / storage.name_of(url)
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            storage.download(url, path)
    except StorageError as error:
        raise WeightsError(f"{name} weights: {error}; {_ways(name)}") from error
    return path


def _ways(name: str) -> str:
    if "." in name:  # a setting of a method
        return f"set {name} to a path or an s3:// URL"
    return (
        f"set feature_weights.{name} to torchvision, a path or an s3:// URL "
        "(or to random, which marks every result, for a try without a network)"
    )
