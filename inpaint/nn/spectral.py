"""Convolutions under spectral normalisation."""

from __future__ import annotations

from torch import nn
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
