"""The residual block shared by ISNet's branches and its UNet-like relative."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from inpaint.nn.fused import Activation, activated
from inpaint.nn.spectral import conv


class ResidualBlock(nn.Module):
    """act(x + conv(act(conv_d(x)))), zero padded, [B, C, H, W] → the same shape.

    Args:
        channels: C.
        dilation: of the first convolution; the second always has 1.
        activation: tanh in ISNet, LeakyReLU 0.2 in its Base variants; may work in place.
        spectral: put both convolutions under spectral norm.
        bias: give both a bias.

    Source: ISNet section 3.1, as counted in the authors' model.
    """

    def __init__(
        self,
        channels: int,
        *,
        dilation: int = 1,
        activation: Activation = torch.tanh_,
        spectral: bool = True,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.first = conv(channels, channels, 3, padding=dilation, dilation=dilation, bias=bias, spectral=spectral)
        self.second = conv(channels, channels, 3, padding=1, bias=bias, spectral=spectral)

    def forward(self, features: Tensor) -> Tensor:
        inner = activated(self.first, features, self.activation)
        return activated(self.second, inner, self.activation, residual=features)
