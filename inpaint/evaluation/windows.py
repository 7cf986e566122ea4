"""Structural similarity under a sliding window: one form for the Gaussian and the uniform windows of published codes.

With u = a + b and v = a - b, SSIM needs the windowed means μ and variances σ² of u and v alone,

    (μu² - μv² + 2 C1) (σu² - σv² + 2 C2) / ((μu² + μv² + 2 C1) (σu² + σv² + 2 C2)),

and is exactly 1 where a equals b. u is taken less 1, so that float32 variances keep their digits.

Source: Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

C1, C2 = 0.01**2, 0.03**2  # for values in [0, 1]
LANES = 16  # planes that a CPU filters at a time, one in each lane of its registers
BAND = 400_000  # values filtered at a time on a CPU, where more would leave its cache


@dataclass(frozen=True)
class Window:
    """A separable window.

    Attributes:
        taps: how many pixels it is wide and high.
        sigma: of a Gaussian, in pixels; None for a uniform window.
        sample: covariances divided by n - 1, not n.
    """

    taps: int
    sigma: float | None = None
    sample: bool = False

    @cached_property
    def stages(self) -> tuple[tuple[list[float], int], ...]:
        """Weights and dilation of filters that make the window one after the other: 51 = 3 of 17, not 51 taps."""
        if self.sigma is not None:
            line = [math.exp(-((i - self.taps // 2) ** 2) / (2 * self.sigma**2)) for i in range(self.taps)]
            return (([weight / math.fsum(line) for weight in line], 1),)
        inner = next((n for n in range(2, math.isqrt(self.taps) + 1) if self.taps % n == 0), self.taps)
        outer = self.taps // inner
        return (([1 / inner] * inner, 1), *([([1 / outer] * outer, inner)] if outer > 1 else []))

    @property
    def unbias(self) -> float:
        """What a variance is multiplied by."""
        pixels = self.taps**2
        return pixels / (pixels - 1) if self.sample else 1.0


class Moments:
    """Two batches of planes as every window needs them: u, v and their squares.

    Args:
        a, b: [B, C, H, W] in [0, 1].
        border: zeros added around them, in pixels.
    """

    def __init__(self, a: Tensor, b: Tensor, *, border: int = 0) -> None:
        self.count, self.channels = a.shape[:2]
        self.chunks = [_moments(*pair, border) for pair in zip(_chunks(a), _chunks(b), strict=True)]

    def ssim(self, window: Window) -> SsimMap:
        """SSIM under every window that lies wholly inside the planes and their border.

        Raises:
            ValueError: a side shorter than the window.
        """
        return SsimMap([_banded(planes, window) for planes in self.chunks], self.count, self.channels)


@dataclass(frozen=True)
class SsimMap:
    """SSIM by position of the window.

    Attributes:
        chunks: the images' planes in order, [1, P, H', W'] each.
        count, channels: how many images of how many planes.
    """

    chunks: list[Tensor]
    count: int
    channels: int

    def means(self, *, crop: int = 0) -> Tensor:
        """Mean of each image without so many positions at every side, [B] float64."""
        kept = [chunk[:, :, crop : chunk.shape[2] - crop, crop : chunk.shape[3] - crop] for chunk in self.chunks]
        sums = torch.cat([_row_sums(chunk)[0].double().sum(dim=1) for chunk in kept])
        return sums.view(self.count, self.channels).sum(dim=1) / (self.channels * kept[0][0, 0].numel())

    def over_channels(self) -> Tensor:
        """Mean over the channels at every position, [B, 1, H', W']."""
        planes = torch.cat([chunk[0] for chunk in self.chunks])
        return planes.view(self.count, self.channels, *planes.shape[1:]).mean(dim=1, keepdim=True)


def wholly_inside(mask: Tensor, taps: int) -> Tensor:
    """1 where a square window of so many pixels lies wholly where `mask` is 1, [B, 1, H, W] to one per position."""
    layout = torch.contiguous_format if mask.is_cuda else torch.channels_last
    outside = (1 - mask).view(1, -1, *mask.shape[-2:]).contiguous(memory_format=layout)
    return (_filtered(outside, Window(taps)) == 0).to(mask.dtype).transpose(0, 1)


def _chunks(images: Tensor) -> tuple[Tensor, ...]:
    """[B, C, H, W] as planes [P, H, W]: all at once on a GPU, and on a CPU as many as it filters at a time."""
    planes = images.reshape(-1, *images.shape[-2:])
    return planes.split(len(planes) if planes.is_cuda else LANES)


def _moments(a: Tensor, b: Tensor, border: int) -> tuple[Tensor, ...]:
    """u, v and their squares as channels of one image, [1, P, H, W]; on a CPU channels lie side by side in memory."""
    layout = torch.contiguous_format if a.is_cuda else torch.channels_last
    a, b = (F.pad(planes, (border,) * 4).unsqueeze(0).contiguous(memory_format=layout) for planes in (a, b))
    total, error = (a + b).sub_(1), a - b
    return total, error, total.square(), error.square()


def _banded(moments: tuple[Tensor, ...], window: Window) -> Tensor:
    """SSIM of a chunk, some rows at a time."""
    _, planes, height, width = moments[0].shape
    margin = window.taps - 1
    if min(height, width) <= margin:
        raise ValueError(f"image is {width}×{height}; this SSIM needs at least {window.taps} pixels a side")
    rows = height if moments[0].is_cuda else max(margin, BAND // (planes * width))
    found = torch.empty_like(moments[0][:, :, margin:, margin:])
    for top in range(0, height - margin, rows):
        _ssim([m[:, :, top : top + rows + margin] for m in moments], window, out=found[:, :, top : top + rows])
    return found


def _ssim(moments: list[Tensor], window: Window, *, out: Tensor) -> None:
    mean_u, mean_v, spread_u, spread_v = (_filtered(planes, window) for planes in moments)
    square_v = mean_v.square_()
    spread_v.sub_(square_v)
    spread_u.addcmul_(mean_u, mean_u, value=-1).add_(2 * C2 / window.unbias)
    square_u = mean_u.add_(1).square_().add_(2 * C1)
    above = (square_u - square_v).mul_(spread_u - spread_v)
    below = square_u.add_(square_v).mul_(spread_u.add_(spread_v))
    torch.div(above, below, out=out)


def _filtered(planes: Tensor, window: Window) -> Tensor:
    """The window's weighted mean at every whole position, [1, P, H, W] to [1, P, H - k + 1, W - k + 1]."""
    for weights, dilation in window.stages:
        planes = (_shifted if planes.is_cuda else _convolved)(planes, weights, dilation)
    return planes


def _convolved(planes: Tensor, weights: list[float], dilation: int) -> Tensor:
    """As convolutions of one channel each: a CPU filters sixteen channels at a time."""
    count = planes.shape[1]
    groups = max(2, count)  # a single channel would go another way through the library, to other last digits
    planes = planes.expand(-1, groups, -1, -1)
    line = torch.tensor(weights, dtype=planes.dtype)
    for shape in ((1, 1, 1, -1), (1, 1, -1, 1)):
        kernel = line.view(shape).expand(groups, 1, -1, -1).contiguous()
        planes = F.conv2d(planes, kernel, groups=groups, dilation=dilation)
    return planes[:, :count]


def _row_sums(planes: Tensor) -> Tensor:
    """Sums along the rows, [1, P, H, W] to [1, P, H]: halves onto halves, so in one order whatever P is, and fast."""
    while planes.shape[-1] > 1:
        half = planes.shape[-1] // 2
        folded = planes[..., :half] + planes[..., half : 2 * half]
        folded[..., :1] += planes[..., 2 * half :].sum(dim=-1, keepdim=True)  # the one left over by an odd number
        planes = folded
    return planes[..., 0]


def _shifted(planes: Tensor, weights: list[float], dilation: int) -> Tensor:
    """As sums of shifted planes: on a GPU no library rounds them to TF32."""
    for dim in (-1, -2):
        length = planes.shape[dim] - (len(weights) - 1) * dilation
        total = planes.narrow(dim, 0, length) * weights[0]
        for place, weight in enumerate(weights[1:], start=1):
            total.add_(planes.narrow(dim, place * dilation, length), alpha=weight)
        planes = total
    return planes
