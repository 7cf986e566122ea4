"""Networks whose features FID, KID and the discriminability scores are made of: files that are named and hashed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inpaint import weights
from inpaint.errors import EvaluationError, WeightsError

Flavour = Literal["torchvision", "tf-port", "nvidia"]
FLAVOURS: tuple[Flavour, ...] = ("torchvision", "tf-port", "nvidia")
SIDE = 299


@dataclass(frozen=True)
class FeatureNetwork:
    """One Inception, frozen.

    Attributes:
        flavour: whose weights; the flavours give different values.
        model: takes images at 299 pixels as the flavour wants them, returns [B, D].
        script: a TorchScript module, which takes images in [0, 1] (`nvidia`: levels 0 to 255, and resizes by itself).
        sha256: of its file; `random` when it was asked for.
    """

    flavour: Flavour
    model: nn.Module
    script: bool
    sha256: str

    @torch.inference_mode()
    def __call__(self, images: Tensor, resize: str) -> Tensor:
        """Features of images in [0, 1], [B, 3, H, W]; float32 [B, D].

        Args:
            images: on 8-bit levels.
            resize: `bilinear`, or `clean`: bicubic with antialiasing.
        """
        if self.script and self.flavour == "nvidia":
            return self.model((images * 255).round().to(torch.uint8), return_features=True).float()
        images = _resized(images, resize)
        if not self.script:
            images = _imagenet_to_unit(images) if self.flavour == "torchvision" else images * 2 - 1
        features = self.model(images)
        return features.flatten(1).float()


def load_feature_networks(
    sources: Mapping[str, str], *, device: torch.device | str, sha256: Mapping[str, str] | None = None
) -> dict[str, FeatureNetwork]:
    """The networks that a source is given for, by flavour.

    Args:
        sources: flavour to a path or `s3://` URL (a state dict, or TorchScript), `torchvision`, or `random`.
        device: where they run.
        sha256: digest a flavour's file must have.

    Raises:
        EvaluationError: no such flavour.
        WeightsError: a file that is absent, altered or of another network.
    """
    found = {}
    for flavour, source in sources.items():
        if flavour not in FLAVOURS:
            raise EvaluationError(f"--features {flavour}: no such Inception; known: {', '.join(FLAVOURS)}")
        found[flavour] = _load(flavour, source, (sha256 or {}).get(flavour), device)
    return found


def _load(flavour: Flavour, source: str, sha256: str | None, device: torch.device | str) -> FeatureNetwork:
    option = f"--features {flavour}"
    path = weights.resolve("inception_v3", source, sha256=sha256, option=option)
    if path is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = _architecture(flavour)
        return FeatureNetwork(flavour, _frozen(model, device), False, weights.RANDOM)
    digest = weights.file_sha256(path)
    script = _as_script(path)
    if script is not None:
        return FeatureNetwork(flavour, _frozen(script, device), True, digest)
    if flavour == "nvidia":
        raise WeightsError(f"{option}={source} is not TorchScript; give NVIDIA's inception file")
    state = weights.load("inception_v3", str(path), option=option)
    assert state is not None
    model = _architecture(flavour)
    wanted = model.state_dict()
    kept = {key: value for key, value in state.items() if key in wanted}
    if missing := sorted(wanted.keys() - kept.keys() - {key for key in wanted if key.endswith("num_batches_tracked")}):
        raise WeightsError(f"{option}={source} has no {missing[0]}; give the state dict of Inception v3")
    try:
        model.load_state_dict(kept, strict=False)
    except RuntimeError as error:
        raise WeightsError(f"{option}={source} does not fit Inception v3 ({error})") from error
    return FeatureNetwork(flavour, _frozen(model, device), False, digest)


def _as_script(path: Path) -> nn.Module | None:
    """The file as TorchScript, or None when it is something else."""
    if path.suffix in (".safetensors", ".npz"):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated in torch, yet the published files are in it
        try:
            return torch.jit.load(str(path), map_location="cpu")
        except RuntimeError:
            return None


def _architecture(flavour: Flavour) -> nn.Module:
    """Inception v3 without classifier, its 2048 pooled features as output."""
    from torchvision.models.inception import Inception3

    model = Inception3(aux_logits=False, init_weights=False, transform_input=False)
    if flavour != "torchvision":
        _as_in_tensorflow(model)
    model.fc = nn.Identity()
    model.dropout = nn.Identity()
    return model


def _as_in_tensorflow(model: nn.Module) -> None:
    """What the port of the TensorFlow network changes: means over whole neighbourhoods only, and one maximum.

    Source: pytorch-fid; parameters keep torchvision's names.
    """
    from torchvision.models.inception import InceptionE

    class LastBlock(InceptionE):
        def _forward(self, x: Tensor) -> list[Tensor]:
            branches = super()._forward(x)
            branches[-1] = self.branch_pool(F.max_pool2d(x, kernel_size=3, stride=1, padding=1))
            return branches

    model.Mixed_7c.__class__ = LastBlock
    for name in ("5b", "5c", "5d", "6b", "6c", "6d", "6e", "7b"):
        getattr(model, f"Mixed_{name}").branch_pool.register_forward_pre_hook(_without_padding)


def _without_padding(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A 3×3 mean that counted zeros beyond the border, as the mean of what lies inside."""
    (pooled,) = inputs
    inside = F.avg_pool2d(torch.ones_like(pooled[:1, :1]), kernel_size=3, stride=1, padding=1)
    return (pooled / inside,)


def _resized(images: Tensor, resize: str) -> Tensor:
    if resize == "clean":
        return F.interpolate(images, size=(SIDE, SIDE), mode="bicubic", antialias=True, align_corners=False)
    return F.interpolate(images, size=(SIDE, SIDE), mode="bilinear", align_corners=False)


def _imagenet_to_unit(images: Tensor) -> Tensor:
    """torchvision's `transform_input`, as the early FID scripts apply it to images in [0, 1]."""
    mean = images.new_tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1)
    deviation = images.new_tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1)
    return images * (deviation / 0.5) + (mean - 0.5) / 0.5


def _frozen(model: nn.Module, device: torch.device | str) -> nn.Module:
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model.eval().to(device)
