"""Distances between frozen features: perceptual, style, and the discriminator's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from inpaint.nn.precision import without_autocast


def perceptual(predicted: Mapping[str, Tensor], image: Mapping[str, Tensor], layers: Iterable[str]) -> Tensor:
    """Sum over `layers` of the mean absolute difference of features; scalar.

    Args:
        predicted: features of the predicted image by layer, each [B, C, H, W].
        image: features of the true image.
        layers: the layers that count.

    Source: ISNet Eq. (1).
    """
    return torch.stack([(predicted[n].float() - image[n].float()).abs().mean() for n in layers]).sum()


def gram(features: Tensor) -> Tensor:
    """F Fᵀ / (C·H·W) of [B, C, H, W], as [B, C, C] in float32.

    Source: ISNet Eq. (2).
    """
    with without_autocast(features):
        if features.is_contiguous(memory_format=torch.channels_last):  # as it lies in memory, without a copy
            flat = features.permute(0, 2, 3, 1).flatten(1, 2)
        else:
            flat = features.flatten(2).transpose(1, 2)
        return _Gram.apply(flat.float(), features[0].numel())


class _Gram(torch.autograd.Function):
    """Fᵀ F / divisor of [B, H·W, C]; its gradient is one product, F (g + gᵀ) / divisor, F standing on both sides."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, divisor: int) -> Tensor:
        ctx.save_for_backward(flat)
        ctx.divisor = divisor
        return (flat.transpose(1, 2) @ flat).div_(divisor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (flat,) = ctx.saved_tensors
        return flat @ ((gradient + gradient.transpose(1, 2)) / ctx.divisor), None


def style(predicted: Mapping[str, Tensor], image: Mapping[str, Tensor], layers: Iterable[str]) -> Tensor:
    """Sum over `layers` of the mean absolute difference of Gram matrices; scalar. Source: ISNet Eq. (2)."""
    return torch.stack([(gram(predicted[n]) - gram(image[n])).abs().mean() for n in layers]).sum()


def feature_matching(predicted: Sequence[Tensor], image: Sequence[Tensor]) -> Tensor:
    """Sum over the discriminator's layers of the mean absolute difference; no gradient reaches `image`; scalar.

    Source: ISNet section 4; EdgeConnect.
    """
    pairs = zip(predicted, image, strict=True)
    return torch.stack([(drawn.float() - true.detach().float()).abs().mean() for drawn, true in pairs]).sum()
