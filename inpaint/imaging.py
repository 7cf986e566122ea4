"""Images and masks as tensors: the batch, the composite, and the way to and from 8-bit pixels.

Images are RGB float in [0, 1], [B, 3, H, W]; a mask is [B, 1, H, W] with 1 in the hole and 0 where pixels are known.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """What one training step sees.

    Attributes:
        image: the true images, [B, 3, H, W], float in [0, 1].
        mask: 1 in the hole, [B, 1, H, W], same dtype as `image`.
        keys: sample keys, one per image.
        hole_share: mean of `mask` over the global batch of the step (all ranks, all accumulated parts), a scalar
            tensor. The trainer sets it, so that a loss divided by it is the same on one rank and on eight. None
            means this batch is the whole of it.
    """

    image: Tensor
    mask: Tensor
    keys: tuple[str, ...] = ()
    hole_share: Tensor | None = None

    def __len__(self) -> int:
        return self.image.shape[0]

    def mean_hole(self) -> Tensor:
        """Mean of the mask over the global batch, a scalar tensor in [0, 1]."""
        return self.mask.float().mean() if self.hole_share is None else self.hole_share

    def to(self, device: torch.device | str, *, memory_format: torch.memory_format = torch.contiguous_format) -> Batch:
        """This batch on another device; the copy does not wait for the host when the source is pinned."""
        return replace(
            self,
            image=self.image.to(device, non_blocking=True).contiguous(memory_format=memory_format),
            mask=self.mask.to(device, non_blocking=True),
        )

    def split(self, parts: int) -> list[Batch]:
        """The batch in `parts` equal pieces, in order.

        Raises:
            ValueError: the number of samples is not a multiple of `parts`.
        """
        if len(self) % parts:
            raise ValueError(f"a batch of {len(self)} cannot be split into {parts} equal parts")
        size = len(self) // parts
        return [
            replace(self, image=image, mask=mask, keys=self.keys[i * size : (i + 1) * size])
            for i, (image, mask) in enumerate(zip(self.image.split(size), self.mask.split(size), strict=True))
        ]


def composite(image: Tensor, predicted: Tensor, mask: Tensor) -> Tensor:
    """`predicted` in the hole and `image`, bit for bit, elsewhere.

    Args:
        image: [B, C, H, W].
        predicted: [B, C, H, W].
        mask: 1 in the hole, [B, 1, H, W].
    """
    hole = mask > 0.5
    if predicted.dtype == torch.uint8:  # bit by bit: a CPU takes ten times as long to choose pixel by pixel
        return image ^ ((image ^ predicted) & hole.to(torch.uint8) * 255)
    return torch.where(hole, predicted, image)


def hole_ratio(mask: Tensor) -> Tensor:
    """Share of each image's pixels that lie in the hole, [B], in [0, 1]."""
    return mask.float().mean(dim=(1, 2, 3))


def to_float(pixels: Tensor) -> Tensor:
    """8-bit pixels as float in [0, 1]; any shape."""
    return pixels.to(torch.float32, copy=True).div_(255)


def to_pixels(image: Tensor) -> Tensor:
    """Float in [0, 1] as 8-bit pixels, clipped and rounded to the nearest level; any shape."""
    return image.clamp(0, 1).mul(255).round().to(torch.uint8)


def to_signed(image: Tensor) -> Tensor:
    """[0, 1] as [-1, 1], in which some networks work; any shape."""
    return image * 2 - 1


def from_signed(image: Tensor) -> Tensor:
    """[-1, 1] as [0, 1]; any shape."""
    return (image + 1) / 2


def check_mask(mask: Tensor, image: Tensor) -> None:
    """Refuse a mask that is not 0 or 1, or not of the image's size.

    Raises:
        ValueError: with the values or sizes found.
    """
    if mask.shape[-2:] != image.shape[-2:] or mask.shape[1] != 1 or mask.shape[0] != image.shape[0]:
        raise ValueError(f"mask is {tuple(mask.shape)}, image {tuple(image.shape)}; expected one mask plane per image")
    if not bool(((mask == 0) | (mask == 1)).all()):
        low, high = mask.min().item(), mask.max().item()
        raise ValueError(
            f"mask has values between {low:g} and {high:g}; expected 0 or 1 (1 = hole). "
            "Divide it by its largest value, or threshold it, first"
        )
