"""LPIPS v0.1 by the `lpips` package, with backbones that are named, found and hashed, never filled in silently."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from inpaint import weights
from inpaint.errors import EvaluationError, WeightsError
from inpaint.evaluation.metrics import Comparison
from inpaint.nn.remembering import Memory

BACKBONES = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}
PRESENT = "present"  # a source: torchvision's file where an earlier download left it, else no such score
EPSILON = 1e-10  # of the package's `normalize_tensor`


@dataclass(frozen=True)
class Lpips:
    """One perceptual distance.

    Attributes:
        network: `alex`, `vgg` or `squeeze`.
        model: the package's network, frozen, on the device.
        sha256: of the backbone's file; `random` when it was asked for.
        memory: keeps the features of true images that come again.
    """

    network: str
    model: nn.Module
    sha256: str
    memory: Memory | None = None

    @torch.inference_mode()
    def __call__(self, seen: Comparison) -> Tensor:
        """Distance at the images' own size, [B] float64."""
        predicted = self._features(seen.predicted)
        if self.memory is None:
            truth = self._features(seen.truth)
        else:
            truth = self.memory.get(seen.truth, lambda: self._features(seen.truth))
        distances = [
            layer((ours - theirs).square()).mean(dim=(1, 2, 3))
            for layer, ours, theirs in zip(self.model.lins, predicted, truth, strict=True)
        ]
        return torch.stack(distances).sum(dim=0).double()

    def _features(self, image: Tensor) -> list[Tensor]:
        """Activations of the backbone's layers, each of length 1 over its channels."""
        activations = self.model.net(self.model.scaling_layer(image * 2 - 1))
        return [a / (a.square().sum(dim=1, keepdim=True).sqrt() + EPSILON) for a in activations]


class ScoringNetwork(Protocol):
    """A network that makes a column: called with a batch, gives one number per image, [B] float64."""

    @property
    def sha256(self) -> str:
        """Digest of its file."""

    def __call__(self, seen: Comparison) -> Tensor:
        """The scores."""


@dataclass(frozen=True)
class Networks:
    """The scoring networks at hand by column metric (`lpips_alex`), and why the others are not."""

    present: Mapping[str, ScoringNetwork]
    absent: Mapping[str, str]


def load_perceptual(
    sources: Mapping[str, str], *, device: torch.device | str, sha256: Mapping[str, str] | None = None
) -> Networks:
    """LPIPS for each network that a source is given for; without one, only a file that torchvision already left here.

    Args:
        sources: network (`alex`, `vgg`, `squeeze`) to `torchvision` (downloads), a path, an `s3://` URL, or `random`.
        device: where it runs.
        sha256: digest a network's file must have.

    Raises:
        WeightsError: a source that was given and cannot be used.
        EvaluationError: a network that LPIPS has not.
    """
    for network in sources:
        if network not in BACKBONES:
            raise EvaluationError(f"--lpips {network}: no such network; known: {', '.join(BACKBONES)}")
    present, absent = {}, {}
    for network, backbone in BACKBONES.items():
        source = sources.get(network) or (_already_here(backbone) if network != "squeeze" else None)
        if source is None:
            absent[f"lpips_{network}"] = (
                f"no {backbone} weights on this machine; --lpips {network}=torchvision downloads them, "
                f"--lpips {network}=PATH or s3://... reads them"
            )
            continue
        present[f"lpips_{network}"] = _load(
            network, source, (sha256 or {}).get(network), device, option=f"--lpips {network}"
        )
    return Networks(present, absent)


def load_asked(sources: Mapping[str, str], *, device: torch.device | str) -> Networks:
    """LPIPS for the networks asked for and no others, each with a memory of true images.

    Args:
        sources: as in `load_perceptual`; `present` leaves a network out where this machine has no file of it.
        device: where it runs.

    Raises:
        WeightsError: a source that cannot be used.
    """
    present: dict[str, ScoringNetwork] = {}
    absent: dict[str, str] = {}
    for network, source in sources.items():
        found = _already_here(BACKBONES[network]) if source == PRESENT else source
        if found is None:
            absent[f"lpips_{network}"] = f"no {BACKBONES[network]} weights on this machine"
        else:
            model = _load(network, found, None, device, option=f"evaluation.lpips.{network}")
            present[f"lpips_{network}"] = replace(model, memory=Memory())
    return Networks(present, absent)


def _already_here(backbone: str) -> str | None:
    """The file that an earlier torchvision download left, if it did."""
    from torchvision.models import get_model_weights

    url = get_model_weights(backbone).DEFAULT.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    return str(path) if path.is_file() else None


def _load(network: str, source: str, sha256: str | None, device: torch.device | str, *, option: str) -> Lpips:
    import lpips

    backbone = BACKBONES[network]
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # the package still asks torchvision for `pretrained=`
        torch.manual_seed(0)
        model = lpips.LPIPS(net=network, pnet_rand=True, verbose=False)
    state = weights.load(backbone, source, sha256=sha256, option=option)
    if state is None:
        return Lpips(network, _frozen(model, device), weights.RANDOM)
    _fill_backbone(model, state, f"{option}={source}")
    path = weights.resolve(backbone, source, sha256=sha256, option=option)
    return Lpips(network, _frozen(model, device), weights.file_sha256(path))


def _fill_backbone(model: nn.Module, state: Mapping[str, Tensor], place: str) -> None:
    """torchvision's `features.3.weight` into the package's `slice2.3.weight`.

    Raises:
        WeightsError: a tensor is missing or of another shape.
    """
    with torch.no_grad():
        for name, parameter in model.net.named_parameters():
            key = "features." + name.split(".", 1)[1]
            if key not in state or state[key].shape != parameter.shape:
                shape = tuple(parameter.shape)
                raise WeightsError(f"{place}: no {key} of shape {shape}; give torchvision's state dict")
            parameter.copy_(state[key])


def _frozen(model: nn.Module, device: torch.device | str) -> nn.Module:
    return model.eval().requires_grad_(False).to(device)
