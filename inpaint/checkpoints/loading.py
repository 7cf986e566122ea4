"""Read a checkpoint back: the whole state to go on from, or the method to fill images with."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from inpaint import storage
from inpaint.checkpoints.layout import CheckpointInfo, find
from inpaint.checkpoints.pulling import wanted
from inpaint.config import RunConfig
from inpaint.config.base import load_yaml, validate
from inpaint.errors import CheckpointError
from inpaint.methods import Method, build_method


def load_state(place: str) -> dict[str, Any]:
    """The state that `CheckpointWriter.save` was given, its tensors on the CPU.

    Local files are mapped, not read, so the tensors must be copied from (as `load_state_dict` does) and not kept.

    Args:
        place: URL of a checkpoint or of a run (its newest).

    Raises:
        CheckpointError: no checkpoint there, or one that is damaged.
    """
    info = find(place)
    with _local(info, everything=True) as folder:
        networks = {
            _network_name(name): _read_network(folder / name) for name in info.files if name.startswith("networks/")
        }
        try:
            rest = torch.load(folder / "trainer.pt", map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:
            raise CheckpointError(f"{info.url}/trainer.pt cannot be read ({error}); take another checkpoint") from error
    return {"networks": networks, **rest}


def load_networks(place: str) -> dict[str, dict[str, Tensor]]:
    """The weights that inference needs, by network; the averaged ones where the run keeps averages.

    Raises:
        CheckpointError: no checkpoint there, or one that is damaged.
    """
    info = find(place)
    with _local(info, everything=False) as folder:
        return {name: _read_network(folder / "networks" / f"{name}.safetensors") for name in info.inference_networks}


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
    with torch.random.fork_rng(devices=[]):
        method = build_method(run)
    for name, tensors in load_networks(info.url).items():
        try:
            method.networks()[name].load_state_dict(tensors)
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(f"{info.url}: weights of {name} do not fit its run.yaml ({error})") from error
    return method.to(device).eval()


def load_settings(info: CheckpointInfo) -> RunConfig:
    """The settings a checkpoint was written with."""
    place = storage.join(info.url, "run.yaml")
    return validate(RunConfig, load_yaml(storage.read_bytes(place).decode(), place=place), place=place)


@contextlib.contextmanager
def _local(info: CheckpointInfo, *, everything: bool) -> Iterator[Path]:
    """A local folder with the checkpoint's files, each checked against the manifest."""
    names = wanted(info, everything=everything)
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(4) as threads:
        if storage.is_remote(info.url):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="inpaint-restore-")))
            list(threads.map(lambda name: _fetch(info, name, folder / name), names))
        else:
            folder = Path(info.url)
            list(threads.map(lambda name: _verify(info, name, folder / name), names))
        yield folder


def _fetch(info: CheckpointInfo, name: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    storage.download(storage.join(info.url, name), str(path), sha256=info.files[name]["sha256"])


def _verify(info: CheckpointInfo, name: str, path: Path) -> None:
    if not path.is_file() or storage.sha256_file(str(path)) != info.files[name]["sha256"]:
        raise CheckpointError(f"{info.url}/{name} is missing or not what its manifest says; take another checkpoint")


def _read_network(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except Exception as error:
        raise CheckpointError(f"{path} is not a safetensors file ({error}); take another checkpoint") from error


def _network_name(name: str) -> str:
    return storage.name_of(name).removesuffix(".safetensors")
