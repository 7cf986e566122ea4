"""Padding by reflection, with gradients that a GPU can repeat bit for bit."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def reflection_pad(features: Tensor, pixels: int) -> Tensor:
    """`features` mirrored about their border pixels, [B, C, H, W] to [B, C, H + 2·pixels, W + 2·pixels].

    PyTorch's own kernel adds up gradients in any order on CUDA, and raises in deterministic mode: there the same values
    are put together from slices, whose gradients come in one order.

    Raises:
        RuntimeError: a side of `pixels` or fewer.
    """
    if not torch.are_deterministic_algorithms_enabled():
        return F.pad(features, (pixels,) * 4, mode="reflect")
    return _mirrored(_mirrored(features, pixels, dim=3), pixels, dim=2)


def _mirrored(features: Tensor, pixels: int, dim: int) -> Tensor:
    before = features.narrow(dim, 1, pixels).flip(dim)
    after = features.narrow(dim, features.shape[dim] - 1 - pixels, pixels).flip(dim)
    return torch.cat((before, features, after), dim)
