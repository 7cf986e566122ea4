"""Read a checkpoint back: the whole state to go on from, or the method to fill images with."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor

from inpaint import storage
from inpaint.checkpoints.checking import check
from inpaint.checkpoints.layout import CheckpointInfo, find
from inpaint.checkpoints.pulling import SMALL, wanted
from inpaint.config import RunConfig
from inpaint.config.base import load_yaml, validate
from inpaint.errors import CheckpointError
from inpaint.methods import Method, load_into_method, untrained

log = logging.getLogger(__name__)

Result = TypeVar("Result")


def load_state(place: str) -> dict[str, Any]:
    """The state that `CheckpointWriter.save` was given, its tensors on the CPU.

    Local files are mapped, not read, so the tensors must be copied from (as `load_state_dict` does) and not kept.

    Args:
        place: URL of a checkpoint or of a run (its newest).

    Raises:
        CheckpointError: no checkpoint there, or one that is damaged.
    """
    return restore(find(place), lambda state: state)


def restore(info: CheckpointInfo, use: Callable[[dict[str, Any]], Result]) -> Result:
    """Give a checkpoint's state to `use`, after every checksum has proved right.

    Args:
        info: of a whole checkpoint.
        use: takes the state over: copies what it keeps.

    Returns:
        What `use` returned.

    Raises:
        CheckpointError: a file is missing, unreadable or not what the manifest says; `use` was not called.
    """
    names = wanted(info, everything=True)
    with _here(info, names) as here:
        check(info, here)
        networks = {
            _network_name(name): _read_network(here[name]) for name in names if name.startswith("networks/")
        }
        return use({"networks": networks, **_read_rest(here["trainer.pt"])})


def load_networks(place: str) -> dict[str, dict[str, Tensor]]:
    """The weights that inference needs, by network; the averaged ones where the run keeps averages.

    Raises:
        CheckpointError: no checkpoint there, or one that is damaged.
    """
    info = find(place)
    return read_networks(info, info.inference_networks)


def read_networks(info: CheckpointInfo, networks: Iterable[str]) -> dict[str, dict[str, Tensor]]:
    """The weights of some networks of a checkpoint, after the settings beside them have proved unaltered.

    Raises:
        CheckpointError: it has no such network, or a file that is damaged.
    """
    files = {network: f"networks/{network}.safetensors" for network in networks}
    for network, name in files.items():
        if name not in info.files:
            known = ", ".join(sorted(_network_name(name) for name in info.files if name.startswith("networks/")))
            raise CheckpointError(f"{info.url} has no network {network} (it has {known}); take another run")
    with _here(info, [*(name for name in SMALL if name in info.files), *files.values()]) as here:
        check(info, here)
        return {network: _read_network(here[name]) for network, name in files.items()}


def load_method(place: str | Path, device: torch.device | str = "cpu") -> Method:
    """The trained method, ready to fill images.

    Args:
        place: a checkpoint's folder (in the store or pulled), or a run's URL (its newest).
        device: where its networks go.

    Raises:
        CheckpointError: no checkpoint there, one that is damaged, or weights that do not fit the settings beside them.
    """
    info = find(str(place))
    run = load_settings(info)
    try:
        method = load_into_method(run, load_networks(info.url)).to(device)
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{info.url}: its weights do not fit its run.yaml ({error})") from error
    if unready := untrained(method, run, info.step):
        log.warning("%s: nothing has trained %s yet; what it fills shows that", info.url, " and ".join(unready))
    return method


def load_settings(info: CheckpointInfo) -> RunConfig:
    """The settings a checkpoint was written with."""
    place = storage.join(info.url, "run.yaml")
    return validate(RunConfig, load_yaml(storage.read_bytes(place).decode(), place=place), place=place)


@contextlib.contextmanager
def _here(info: CheckpointInfo, names: list[str]) -> Iterator[dict[str, Path]]:
    """Files of the checkpoint on this machine, by name."""
    if not storage.is_remote(info.url):
        yield {name: storage.local_path(info.place(name)) for name in names}
        return
    with tempfile.TemporaryDirectory(prefix="inpaint-restore-") as place:
        for name in names:
            (Path(place) / name).parent.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda name: _fetch(info, name, Path(place) / name), names))
        yield {name: Path(place) / name for name in names}


def _fetch(info: CheckpointInfo, name: str, path: Path) -> None:
    """Download a file of the checkpoint, and once more when its bytes were altered on the way."""
    storage.download(info.place(name), path)
    try:
        check(info, {name: path})
    except CheckpointError:
        storage.download(info.place(name), path)


def _read_rest(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read ({error}); take another checkpoint") from error


def _read_network(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except Exception as error:
        raise CheckpointError(f"{path} is not a safetensors file ({error}); take another checkpoint") from error


def _network_name(name: str) -> str:
    return storage.name_of(name).removesuffix(".safetensors")
