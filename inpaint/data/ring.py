"""Reusable host memory of a batch, and what becomes of it on the device.

Decode threads write 8-bit pixels, planes and masks; the device converts colours, normalises and mirrors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from inpaint.data.decoding import before_vectors
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
            with torch.cuda.device(self.copied.device):  # not the first one, where a waiting thread would settle
                self.copied.synchronize()


def make_slots(
    count: int, samples: int, size: int, *, as_planes: bool, with_masks: bool, device: torch.device
) -> list[Slot]:
    """Memory for `count` batches of `samples` images of `size` pixels."""
    pinned = device.type == "cuda"
    pixels = None if as_planes else _memory(count, samples, size, size, 3, pinned=pinned)
    planes = _memory(count, samples, plane_bytes(size), pinned=pinned) if as_planes else None
    masks = _memory(count, samples, size, size, pinned=pinned) if with_masks else None
    return [Slot(*(None if block is None else block[i] for block in (pixels, planes, masks))) for i in range(count)]


def _memory(*shape: int, pinned: bool) -> Tensor:
    """Zeros where decoders write fast; numpy asks for huge pages, in which rows are decoded 7 % faster."""
    length = math.prod(shape)
    if pinned:
        memory = torch.zeros(length + 32, dtype=torch.uint8, pin_memory=True)
    else:
        memory = torch.from_numpy(np.zeros(length + 32, np.uint8))
    return memory[before_vectors(memory.data_ptr()) :][:length].view(shape)


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
    convert = _on_cuda if device.type == "cuda" else _row_by_row
    image, drawn = convert(host, size, smooth, device)
    if drawn is None:
        assert mask is not None
        drawn = mask.expand(len(image), 1, size, size).clone()  # of zeros or centred: the same when it is turned
    if device.type == "cuda":
        slot.copied = slot.copied or torch.cuda.Event(blocking=True)  # a thread that waits sleeps
        slot.copied.record()
    return Batch(image=image, mask=drawn, keys=host.keys)


def _row_by_row(host: HostBatch, size: int, smooth: bool, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """On the CPU, one sample at a time while it is in the processor's cache: a third of the cost of whole batches."""
    slot, samples = host.slot, len(host.mirrored)
    if slot.planes is not None:
        image = torch.empty(samples, 3, size, size)
        for row in range(samples):
            _from_planes(slot.planes[row : row + 1], image[row : row + 1], smooth=smooth)
        _mirror(image, host.mirrored)
    else:
        pixels = slot.pixels.permute(0, 3, 1, 2)
        image = torch.empty(samples, 3, size, size, memory_format=torch.channels_last)
        for row, mirrored in enumerate(host.mirrored):
            source = pixels[row : row + 1]
            image[row : row + 1].copy_(source.flip(3) if mirrored else source).div_(255)
    if slot.masks is None:
        return image.to(device), None
    masks = slot.masks[:, None].float()
    _mirror(masks, host.mirrored)
    return image.to(device), masks.to(device)


def _on_cuda(host: HostBatch, size: int, smooth: bool, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """On the device, without waiting for it: 8-bit data crosses, everything else happens there."""
    slot = host.slot
    mirrored = torch.from_numpy(host.mirrored).pin_memory().to(device, non_blocking=True)[:, None, None, None]
    if slot.planes is not None:
        image = torch.empty(len(mirrored), 3, size, size, device=device)
        _from_planes(slot.planes.to(device, non_blocking=True), image, smooth=smooth)
    else:
        image = slot.pixels.to(device, non_blocking=True).permute(0, 3, 1, 2).float().div_(255)
    image = torch.where(mirrored, image.flip(3), image)
    if slot.masks is None:
        return image, None
    masks = slot.masks.to(device, non_blocking=True)[:, None].float()
    return image, torch.where(mirrored, masks.flip(3), masks)


def _mirror(images: Tensor, mirrored: np.ndarray) -> None:
    for row in np.flatnonzero(mirrored):
        images[row] = images[row].flip(2)


def _from_planes(planes: Tensor, image: Tensor, *, smooth: bool) -> None:
    """RGB in [0, 1] from luma, blue and red planes, [B, size²·3/2] uint8 → [B, 3, size, size].

    Source: JFIF 1.02, the inverse of its conversion of RGB to YCbCr.
    """
    size = image.shape[-1]
    quarter, half = size * size // 4, size // 2
    luma = planes[:, : 4 * quarter].reshape(-1, size, size).float()
    colour = planes[:, 4 * quarter :].reshape(-1, 2, half, half).float().sub_(128)
    if smooth:
        colour = F.interpolate(colour, scale_factor=2, mode="bilinear")
    else:
        colour = colour[:, :, :, None, :, None].expand(-1, 2, half, 2, half, 2).reshape(-1, 2, size, size)
    blue, red = colour[:, 0], colour[:, 1]
    torch.add(luma, red, alpha=1.402, out=image[:, 0])
    torch.sub(luma, blue, alpha=0.344136, out=image[:, 1]).sub_(red, alpha=0.714136)
    torch.add(luma, blue, alpha=1.772, out=image[:, 2])
    image.clamp_(0, 255).round_().div_(255)
