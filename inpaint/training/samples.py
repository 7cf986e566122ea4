"""A grid of samples: truth, masked, completed, and what else the method shows, one row per image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from inpaint.imaging import Batch, composite, to_pixels
from inpaint.methods.base import Method, modes_kept


@torch.no_grad()
def sample_grid(method: Method, batch: Batch, *, limit: int) -> Any:
    """The first images of a batch beside their fills, as one picture; the method is left as it was.

    Args:
        method: on the batch's device.
        batch: images and holes.
        limit: most rows.

    Returns:
        uint8 array, [rows * H, columns * W, 3].
    """
    image, mask = batch.image[:limit].float(), batch.mask[:limit].float()
    with modes_kept(method), torch.random.fork_rng(devices=[image.device] if image.is_cuda else []):
        method.eval()
        completed = composite(image, method.inpaint(image, mask).float(), mask)
        others = list(method.previews(image, mask).values())
    columns = [image, image * (1 - mask) + mask, completed, *(_fitted(other.float(), image) for other in others)]
    rows = torch.cat(columns, dim=3)  # [rows, 3, H, columns * W]
    return to_pixels(torch.cat(list(rows), dim=1)).permute(1, 2, 0).contiguous().cpu().numpy()


def _fitted(picture: Tensor, image: Tensor) -> Tensor:
    """A preview in the size and with the channels of the image."""
    if picture.shape[-2:] != image.shape[-2:]:
        picture = torch.nn.functional.interpolate(picture, size=image.shape[-2:], mode="nearest")
    return picture.expand(-1, 3, -1, -1)
