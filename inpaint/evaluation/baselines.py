"""What needs no training: the fills that every trained one has to beat.

Each fills `predicted` from the known pixels alone: image [B, 3, H, W] in [0, 1], mask 1 in the hole, [B, 1, H, W].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor


def mean_colour(image: Tensor, mask: Tensor) -> Tensor:
    """The mean of the known pixels everywhere; mid grey where none is known."""
    known = 1 - mask
    count = known.sum(dim=(2, 3), keepdim=True)
    mean = (image * known).sum(dim=(2, 3), keepdim=True) / count.clamp_min(1)
    return torch.where(count > 0, mean, 0.5).expand_as(image).contiguous()


def biharmonic(image: Tensor, mask: Tensor) -> Tensor:
    """The smoothest surface through the known pixels, by scikit-image; on the CPU.

    Source: Damelin and Hoang, "On surface completion and image inpainting by biharmonic functions", 2018.
    """
    from skimage.restoration import inpaint_biharmonic

    return _one_by_one(
        lambda pixels, hole: inpaint_biharmonic(pixels, hole, channel_axis=2, split_into_regions=True), image, mask
    )


def telea(image: Tensor, mask: Tensor) -> Tensor:
    """Fast marching from the hole's edge inward, radius 5; on the CPU.

    Source: Telea, "An image inpainting technique based on the fast marching method", 2004.
    """
    from inpaint.evaluation.telea import telea_inpaint  # its compiler takes half a second to start

    return _one_by_one(lambda pixels, hole: telea_inpaint(pixels, hole, radius=5), image, mask)


BASELINES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean-colour": mean_colour,
    "biharmonic": biharmonic,
    "telea": telea,
}


def _one_by_one(fill: Callable[[np.ndarray, np.ndarray], np.ndarray], image: Tensor, mask: Tensor) -> Tensor:
    filled = []
    for pixels, hole in zip(image.cpu(), mask.cpu(), strict=True):
        if hole.all() or not hole.any():
            filled.append(mean_colour(pixels[None], hole[None])[0] if hole.any() else pixels)
            continue
        result = fill(pixels.permute(1, 2, 0).double().numpy(), hole[0].numpy() > 0.5)
        filled.append(torch.from_numpy(np.ascontiguousarray(result)).permute(2, 0, 1).float())
    return torch.stack(filled).clamp(0, 1).to(image.device)
