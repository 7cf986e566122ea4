"""Distances between predicted and true pixels."""

from __future__ import annotations

from torch import Tensor

SMALLEST_SHARE = 1e-6


def l1(predicted: Tensor, image: Tensor) -> Tensor:
    """Mean absolute difference over all pixels and channels; scalar."""
    return (predicted.float() - image.float()).abs().mean()


def squared(predicted: Tensor, image: Tensor) -> Tensor:
    """Mean squared difference over all pixels and channels; scalar. Source: CE paper Eq. (2), taken as a mean."""
    return (predicted.float() - image.float()).square().mean()


def l1_by_hole(predicted: Tensor, image: Tensor, hole_share: Tensor) -> Tensor:
    """`l1` divided by the share of hole pixels, finite when there is no hole; scalar.

    Args:
        predicted: [B, C, H, W], in [0, 1].
        image: the truth, same shape.
        hole_share: mean of the mask over the global batch (`Batch.mean_hole()`), scalar in [0, 1].

    Source: the ISNet authors' code; the paper's Eq. (4) prints the plain mean.
    """
    return l1(predicted, image) / hole_share.float().clamp_min(SMALLEST_SHARE)


def l1_in_hole(predicted: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute difference over each sample's hole, then over samples; 0 where there is no hole; scalar.

    Args:
        predicted: [B, C, H, W].
        image: the truth, same shape.
        mask: 1 in the hole, [B, 1, H, W].

    Source: ISFRNet, Eq. (2), divided by the number of hole pixels so that large holes do not outweigh small ones.
    """
    error = ((predicted.float() - image.float()).abs() * mask).sum(dim=(1, 2, 3))
    return (error / (predicted.shape[1] * mask.float().sum(dim=(1, 2, 3)).clamp_min(1))).mean()
