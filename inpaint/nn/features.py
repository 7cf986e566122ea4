"""Frozen VGG features, read at named layers in one pass that ends at the deepest one asked for."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inpaint import weights
from inpaint.config.run import RunConfig
from inpaint.errors import WeightsError

CONVOLUTIONS = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}  # per block, Simonyan & Zisserman Table 1, D and E
WIDTHS = (64, 128, 256, 512, 512)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

LAYERS: dict[str, dict[str, tuple[str, ...]]] = {
    "edgeconnect": {  # VGG-19; ISNet's and EdgeConnect's released code
        "perceptual": ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1"),
        "style": ("relu2_2", "relu3_4", "relu4_4", "relu5_2"),
    },
    "pconv": {  # VGG-16; the text of the ISNet paper
        "perceptual": ("pool1", "pool2", "pool3"),
        "style": ("pool1", "pool2", "pool3"),
    },
}


class FeatureNetwork(nn.Module):
    """The convolutions of a VGG, frozen.

    Layers are named `relu<block>_<number>` and `pool<block>`, as in the published tables.

    Args:
        name: `vgg16` or `vgg19`.
        normalise: subtract ImageNet's mean and divide by its standard deviation first.
    """

    def __init__(self, name: str, *, normalise: bool = False) -> None:
        super().__init__()
        self.name, self.normalise = name, normalise
        self.convs = nn.ModuleDict()
        inputs = 3
        for block, (count, width) in enumerate(zip(CONVOLUTIONS[name], WIDTHS, strict=True), start=1):
            for number in range(1, count + 1):
                self.convs[f"relu{block}_{number}"] = nn.Conv2d(inputs, width, 3, padding=1)
                inputs = width
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        self._narrow: dict[str, tuple[tuple[int, int, torch.dtype], Tensor, Tensor]] = {}
        self.requires_grad_(False).eval()

    def forward(self, image: Tensor, layers: Collection[str]) -> dict[str, Tensor]:
        """Features of `image` [B, 3, H, W] in [0, 1] at each of `layers`; nothing deeper is computed.

        Raises:
            ValueError: a layer this network does not have.
        """
        wanted, found = set(layers), {}
        if self.normalise:
            image = (image - self.mean) / self.std
        for block, count in enumerate(CONVOLUTIONS[self.name], start=1):
            for number in range(1, count + 1):
                name = f"relu{block}_{number}"
                image = F.relu_(self._convolve(name, image))
                if name in wanted:
                    found[name] = image
                    if len(found) == len(wanted):
                        return found
            image = F.max_pool2d(image, 2)
            if f"pool{block}" in wanted:
                found[f"pool{block}"] = image
                if len(found) == len(wanted):
                    return found
        raise ValueError(f"{self.name} has no layer {', '.join(sorted(wanted - set(found)))}")

    def _convolve(self, name: str, image: Tensor) -> Tensor:
        """One convolution; under autocast with weights that were narrowed once, since they never change."""
        layer, device = self.convs[name], image.device.type
        narrow = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        if not narrow or torch.compiler.is_compiling():  # a graph breaks where data_ptr is read
            return layer(image)
        dtype = torch.get_autocast_dtype(device)
        made_from = (layer.weight.data_ptr(), layer.weight._version, dtype)
        if self._narrow.get(name, (None,))[0] != made_from:
            self._narrow[name] = (made_from, layer.weight.to(dtype), layer.bias.to(dtype))
        _, weight, bias = self._narrow[name]
        return F.conv2d(image, weight, bias, padding=1)

    def load_torchvision(self, state: Mapping[str, Tensor]) -> None:
        """Take over a torchvision VGG's `features.<index>.weight` and `.bias`.

        Raises:
            WeightsError: a key is missing or has another shape.
        """
        index = 0
        for block, count in enumerate(CONVOLUTIONS[self.name], start=1):
            for number in range(1, count + 1):
                layer = self.convs[f"relu{block}_{number}"]
                for part in ("weight", "bias"):
                    key, own = f"features.{index}.{part}", getattr(layer, part)
                    if key not in state or state[key].shape != own.shape:
                        found = tuple(state[key].shape) if key in state else "nothing"
                        raise WeightsError(
                            f"{self.name} weights: {key} is {found}, expected {tuple(own.shape)}; "
                            "give torchvision's state_dict of this network"
                        )
                    own.data.copy_(state[key])
                index += 2
            index += 1


def paired_features(
    network: nn.Module, predicted: Tensor, image: Tensor, layers: Collection[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Features of the predicted image, with graph, and of the true one, without; each layer runs once per image.

    Two passes, not one over the concatenation: the backward through the true half would cost as much as it saves.
    """
    with torch.no_grad():
        true = network(image, layers)
    return network(predicted, layers), true


def load_features(run: RunConfig) -> dict[str, nn.Module]:
    """The frozen feature networks a run's losses need, with weights from where the run says.

    Raises:
        WeightsError: weights are absent, altered or of another network.
    """
    return {name: load_feature_network(run, name) for name in run.feature_networks}


def load_feature_network(run: RunConfig, name: str) -> FeatureNetwork:
    """One frozen feature network by name.

    Raises:
        WeightsError: weights are absent, altered or of another network.
    """
    source = getattr(run.feature_weights, name)
    with torch.random.fork_rng(devices=[]):  # what is drawn here must not shift the method's own initial weights
        network = FeatureNetwork(name, normalise=getattr(run.method, "vgg_input", "raw") == "imagenet")
    state = weights.load(name, source, sha256=run.feature_weights.sha256.get(name))
    if state is None:
        _draw_random(network)
    else:
        network.load_torchvision(state)
    return network


def _draw_random(network: FeatureNetwork) -> None:
    """The same He-normal weights on every machine and in every run, apart from the run's own random numbers."""
    generator = torch.Generator().manual_seed(0)
    for layer in network.convs.values():
        deviation = (2.0 / (layer.in_channels * 9)) ** 0.5
        layer.weight.data.normal_(0.0, deviation, generator=generator)
        layer.bias.data.zero_()
