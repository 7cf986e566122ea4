"""Attention mechanism II: every position looks at every position, and a learned scalar mixes the result in."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """x + γ·o with o_j = Σ_i softmax_i(f(x_i)·g(x_j)) h(x_i); [B, C, H, W] → the same shape. γ starts at 0.

    Scores are unscaled, as printed. On CUDA they are never held as a whole: 4096² of them (64×64 positions) would take
    64 MiB per image, 1.5 GiB for a batch of 8 with the softmax and its gradient.

    Args:
        channels: C.
        reduction: f and g have C / reduction channels.

    Source: HDC paper, Eq. (9) and (10); the print of Eq. (10) lost the plus sign.
    """

    def __init__(self, channels: int, *, reduction: int = 8) -> None:
        super().__init__()
        self.key = nn.Conv2d(channels, channels // reduction, 1)  # f
        self.query = nn.Conv2d(channels, channels // reduction, 1)  # g
        self.value = nn.Conv2d(channels, channels, 1)  # h
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, features: Tensor) -> Tensor:
        query, key, value = (_positions(conv(features)) for conv in (self.query, self.key, self.value))
        seen = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        return features + self.gamma * seen.squeeze(1).transpose(1, 2).reshape(features.shape)


def _positions(features: Tensor) -> Tensor:
    """[B, C, H, W] as [B, 1, H·W, C]: one head, one row per position, in memory too, as fused attention wants it."""
    return features.flatten(2).transpose(1, 2).contiguous().unsqueeze(1)
