"""Gated convolutions: each output is a feature times a learned, soft yes or no.

Source: HDC paper, section III (GatedConv and TransposeGatedConv of Tables I to IV), after free-form gated convolution.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Literal["leaky_relu", "elu", "none"]
SLOPE = 0.2
HALF_OPEN = 2.0  # a fresh gate is about 1/2, so feature weights start twice as large


class GatedConv(nn.Module):
    """activation(f) · sigmoid(g) with f, g the halves of one convolution: [B, inputs, H, W] → [B, outputs, H/s, W/s].

    Zero padded so that stride 1 keeps the size. No norm. With default weights the signal would fade to 0.005 over the
    coarse network; features are therefore drawn He-normal for leaky ReLU, twice as large for the gate, gates
    Xavier-uniform and biases 0 (assumed: the paper is silent).

    Args:
        activation: `none` for the RGB layer of a decoder, whose features are drawn from N(0, 1 / fan-in).
        gated: False leaves a plain convolution and activation, for the paper's second ablation.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        dilation: int = 1,
        activation: Activation = "leaky_relu",
        gated: bool = True,
    ) -> None:
        super().__init__()
        self.outputs, self.activation, self.gated = outputs, activation, gated
        padding = dilation * (kernel - 1) // 2
        self.conv = nn.Conv2d(inputs, outputs * (2 if gated else 1), kernel, stride, padding, dilation)
        self._draw_weights()

    def _draw_weights(self) -> None:
        weight = self.conv.weight.data
        features, gates = weight[: self.outputs], weight[self.outputs :]
        if self.activation == "none":
            nn.init.normal_(features, 0.0, features[0].numel() ** -0.5)
        else:
            nn.init.kaiming_normal_(features, a=SLOPE)
            if self.gated:
                features.mul_(HALF_OPEN)
        if self.gated:
            nn.init.xavier_uniform_(gates)
        nn.init.zeros_(self.conv.bias)

    def forward(self, features: Tensor) -> Tensor:
        if not self.gated:
            return activate(self.conv(features), self.activation)
        features, gates = self.conv(features).split(self.outputs, dim=1)
        return activate(features, self.activation) * torch.sigmoid(gates)


class UpGatedConv(GatedConv):
    """Nearest-neighbour enlargement by 2, then a 3×3 `GatedConv`: [B, inputs, H, W] → [B, outputs, 2H, 2W].

    The paper's TransposeGatedConv; its tables print strides 1 and 2 for rows that both double the size.
    """

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(F.interpolate(features, scale_factor=2, mode="nearest"))


def activate(features: Tensor, activation: Activation) -> Tensor:
    """The non-linearity by name; `none` is the identity."""
    if activation == "leaky_relu":
        return F.leaky_relu(features, SLOPE)
    return F.elu(features) if activation == "elu" else features
