"""Sums over an image's pixels, from which all errors but SSIM follow, taken in one look at the image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

LUMA = (0.2125, 0.7154, 0.0721)  # of scikit-image's rgb2gray, which EdgeConnect's, ISNet's and DiNA's scores use


@dataclass(frozen=True)
class Sums:
    """Sums over the pixels of each image, [B] float64; rows are added up in float32.

    Attributes:
        absolute, square: of |error| and error² over all channels.
        absolute_in_hole, square_in_hole: of |error| and error² over the hole.
        predicted, truth: of the values themselves.
        hole: of the mask.
    """

    absolute: Tensor
    square: Tensor
    absolute_in_hole: Tensor
    square_in_hole: Tensor
    predicted: Tensor
    truth: Tensor
    hole: Tensor


def luma(image: Tensor) -> Tensor:
    """[B, 3, H, W] to [B, 1, H, W]."""
    if not image.is_cuda:
        from inpaint.evaluation import sums_on_cpu  # its compiler takes a second to start

        grey = image.new_empty(len(image), 1, *image.shape[-2:])
        sums_on_cpu.weigh_channels(np.ascontiguousarray(image.numpy()), np.array(LUMA, np.float32), grey[:, 0].numpy())
        return grey
    red, green, blue = image.split(1, dim=1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def sum_pixels(predicted: Tensor, truth: Tensor, mask: Tensor) -> Sums:
    """The sums of a batch.

    Args:
        predicted, truth: [B, C, H, W] in [0, 1].
        mask: 1 in the hole, [B, 1, H, W].
    """
    return (_on_device if predicted.is_cuda else _on_cpu)(predicted, truth, mask)


def _on_cpu(predicted: Tensor, truth: Tensor, mask: Tensor) -> Sums:
    from inpaint.evaluation import sums_on_cpu

    found = torch.empty(len(Sums.__dataclass_fields__), len(predicted), dtype=torch.float64)
    images = (np.ascontiguousarray(image.numpy()) for image in (predicted, truth, mask[:, 0]))
    sums_on_cpu.sum_pixels(*images, found.numpy())
    return Sums(*found)


def _on_device(predicted: Tensor, truth: Tensor, mask: Tensor) -> Sums:
    error = predicted - truth
    absolute, square = error.abs().sum(dim=1, keepdim=True), error.square().sum(dim=1, keepdim=True)
    summed = (absolute, square, mask * absolute, mask * square, predicted, truth, mask)
    return Sums(*(planes.sum(dim=3).sum(dim=(1, 2), dtype=torch.float64) for planes in summed))
