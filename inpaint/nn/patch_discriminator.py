"""The 70-pixel PatchGAN under spectral normalisation, as EdgeConnect, ISNet and the DiNA paper use it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from inpaint.nn.spectral import conv

SLOPE = 0.2


class PatchDiscriminator(nn.Module):
    """Scores overlapping patches: [B, inputs, 256, 256] → 64 (128²) → 128 (64²) → 256 (32²) → 512 (31²) → 1 (30²).

    2,763,776 parameters for three input channels and width 64.

    Args:
        inputs: channels of what is judged.
        width: channels after the first layer.
        std: of the initial weights.
        bias: give every convolution a bias.
        spectral_last: normalise the last convolution too.

    Source: ISNet section 3 (PatchGAN, five spectrally normalised 4×4 convolutions without bias).
    """

    def __init__(
        self,
        inputs: int = 3,
        *,
        width: int = 64,
        std: float = 0.001,
        bias: bool = False,
        spectral_last: bool = True,
    ) -> None:
        super().__init__()
        channels = [inputs, width, 2 * width, 4 * width, 8 * width, 1]
        strides = [2, 2, 2, 1, 1]
        self.layers = nn.ModuleList(
            conv(i, o, 4, stride=s, padding=1, std=std, bias=bias, spectral=spectral_last or o > 1)
            for i, o, s in zip(channels[:-1], channels[1:], strides, strict=True)
        )

    def forward(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits [B, 1, H/8 - 2, W/8 - 2], and the outputs of all five layers, activated but for the last."""
        features = []
        for layer in self.layers[:-1]:
            image = F.leaky_relu_(layer(image), SLOPE)
            features.append(image)
        logits = self.layers[-1](image)
        return logits, [*features, logits]
