"""Total variation inside and just around the hole."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def total_variation(image: Tensor, mask: Tensor) -> Tensor:
    """Absolute steps between neighbouring pixels of the hole grown by one pixel, over the number of elements; scalar.

    Args:
        image: the predicted image, [B, C, H, W].
        mask: 1 in the hole, [B, 1, H, W].

    Returns:
        Mean over the batch of the sum over pairs whose pixels both lie in the region, horizontal and vertical, divided
        by C·H·W.

    Source: ISFRNet, Eq. (9).
    """
    image = image.float()
    region = F.max_pool2d(mask.float(), 3, stride=1, padding=1)
    across = (image[..., :, 1:] - image[..., :, :-1]).abs() * region[..., :, 1:] * region[..., :, :-1]
    down = (image[..., 1:, :] - image[..., :-1, :]).abs() * region[..., 1:, :] * region[..., :-1, :]
    return (across.sum() + down.sum()) / image.numel()
