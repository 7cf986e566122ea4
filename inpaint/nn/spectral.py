"""Convolutions under spectral normalisation."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm


def conv(
    inputs: int,
    outputs: int,
    kernel: int,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    bias: bool = False,
    std: float = 0.001,
    spectral: bool = True,
) -> nn.Conv2d:
    """A convolution with weights from N(0, std²) and zero bias, spectrally normalised unless told otherwise.

    The weights are drawn before the norm is put on: drawing them afterwards would leave the power iteration's vectors
    pointing at weights that are gone.

    Source: ISNet, section 2.4 of the authors' setting (std 0.001 in generator and discriminator).
    """
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=bias)
    nn.init.normal_(layer.weight, 0.0, std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return spectral_norm(layer, eps=1e-12) if spectral else layer


def make_orthogonal(network: nn.Module, *, noise: float = 0.02) -> None:
    """Redraw the spectrally normalised convolutions of `network` so that signals pass them unattenuated from the start.

    The centre tap of each kernel becomes a random orthogonal map of the channels, and N(0, noise²) is added to all
    taps. Under N(0, 0.001²) most singular values are far below the largest one, which the norm makes 1, so what passes
    a dozen layers is gone; training recovers it, but only after thousands of steps.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight")
            with torch.no_grad():
                height, width = layer.kernel_size
                layer.weight.normal_(0.0, noise)
                layer.weight[:, :, height // 2, width // 2] += nn.init.orthogonal_(
                    torch.empty(layer.out_channels, layer.in_channels)
                )
            spectral_norm(layer, eps=1e-12)
