"""Reusable host memory of a batch, and what becomes of it on the device.

Decode threads write 8-bit pixels, planes and masks; the device converts colours, normalises and mirrors.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from inpaint.data.planes import plane_bytes
from inpaint.imaging import Batch


@dataclass(eq=False)
class Slot:
    """Host memory of one rank's share of a batch, pinned for a CUDA device.

    Attributes:
        pixels: [B, size, size, 3] uint8, or None when images come as planes.
        planes: [B, size²·3/2] uint8 (luma, blue, red), or None when they come as pixels.
        masks: [B, size, size] uint8, 1 = hole, or None when all masks are one.
    """

    pixels: Tensor | None
    planes: Tensor | None
    masks: Tensor | None
    copied: torch.cuda.Event | None = None
    rows: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        named = {"pixels": self.pixels, "planes": self.planes, "masks": self.masks}
        self.rows = {name: tensor.numpy() for name, tensor in named.items() if tensor is not None}

    def wait_until_free(self) -> None:
        """Until the device has read what was in it."""
        if self.copied is not None:
            self.copied.synchronize()


def make_slot(samples: int, size: int, *, as_planes: bool, with_masks: bool, device: torch.device) -> Slot:
    """Memory for a batch of `samples` images of `size` pixels."""

    def memory(*shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=torch.uint8, pin_memory=device.type == "cuda")

    return Slot(
        pixels=None if as_planes else memory(samples, size, size, 3),
        planes=memory(samples, plane_bytes(size)) if as_planes else None,
        masks=memory(samples, size, size) if with_masks else None,
    )


@dataclass(frozen=True)
class HostBatch:
    """A batch in host memory; valid until the next one is asked for.

    Attributes:
        slot: pixels or planes, and masks.
        mirrored: rows whose image and mask are turned left to right.
        keys: of the samples.
    """

    slot: Slot
    mirrored: np.ndarray
    keys: tuple[str, ...]


def to_batch(host: HostBatch, *, size: int, smooth: bool, mask: Tensor | None, device: torch.device) -> Batch:
    """The batch on the device: float in [0, 1], mirrored, with masks.

    Args:
        size: of the images.
        smooth: interpolate the colour planes instead of repeating them.
        mask: the one mask of all samples, [1, 1, size, size], when the slot has none.
    """
    slot = host.slot
    rows = torch.from_numpy(np.flatnonzero(host.mirrored))
    if device.type == "cuda":
        rows = rows.pin_memory().to(device, non_blocking=True)
    if slot.planes is not None:
        image = from_planes(slot.planes.to(device, non_blocking=True), size, smooth=smooth)
        if len(rows):
            image[rows] = image[rows].flip(3)
    else:
        assert slot.pixels is not None
        pixels = slot.pixels.to(device, non_blocking=True)
        if len(rows):
            pixels[rows] = pixels[rows].flip(2)
        image = pixels.permute(0, 3, 1, 2).float().div_(255)
    if slot.masks is None:
        assert mask is not None
        masks = mask.expand(len(image), 1, size, size).clone()
    else:
        masks = slot.masks.to(device, non_blocking=True)[:, None].float()
    if len(rows):
        masks[rows] = masks[rows].flip(3)
    if device.type == "cuda":
        slot.copied = slot.copied or torch.cuda.Event()
        slot.copied.record()
    return Batch(image=image, mask=masks, keys=host.keys)


def from_planes(planes: Tensor, size: int, *, smooth: bool) -> Tensor:
    """RGB in [0, 1] from luma, blue and red planes, [B, size²·3/2] uint8 → [B, 3, size, size].

    Source: JFIF 1.02, the inverse of its conversion of RGB to YCbCr.
    """
    quarter = size * size // 4
    luma = planes[:, : 4 * quarter].reshape(-1, size, size).float()
    colour = planes[:, 4 * quarter :].reshape(-1, 2, size // 2, size // 2).float().sub_(128)
    if smooth:
        colour = F.interpolate(colour, scale_factor=2, mode="bilinear")
    else:
        colour = colour.repeat_interleave(2, 2).repeat_interleave(2, 3)
    blue, red = colour[:, 0], colour[:, 1]
    image = torch.stack([luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue], 1)
    return image.clamp_(0, 255).round_().div_(255)
