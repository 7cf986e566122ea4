"""Structural similarity under the sliding windows of published codes: a Gaussian of 11 pixels, and uniform ones.

With u = a + b and v = a - b, SSIM needs the windowed means μ and variances σ² of u and v alone,

    (μu² - μv² + 2 C1) (σu² - σv² + 2 C2) / ((μu² + μv² + 2 C1) (σu² + σv² + 2 C2)),

and is exactly 1 where a equals b. Where sums are float32, u is taken less 1, so that variances keep their digits.

Source: Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

C1, C2 = 0.01**2, 0.03**2  # for values in [0, 1]
TAPS, SIGMA = 11, 1.5  # of the Gaussian
MARGIN = TAPS // 2


def gaussian_ssim(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Mean SSIM of each pair of images under the Gaussian window, [B] float64 each.

    Args:
        a, b: [B, C, H, W] in [0, 1].

    Returns:
        Over all pixels, with zeros beyond the border; and over those whose window lies inside, NaN where none does.
    """
    return (_gaussian_on_device if a.is_cuda else _gaussian_on_cpu)(a, b)


def gaussian_ssim_map(a: Tensor, b: Tensor) -> Tensor:
    """SSIM around every pixel under the Gaussian window, with zeros beyond the border, [B, C, H, W]."""
    return _on_device(*(F.pad(image, (MARGIN,) * 4) for image in (a, b)), ((_gaussian(), 1),), 1.0)


def uniform_ssim(a: Tensor, b: Tensor, taps: int) -> Tensor:
    """Mean SSIM of each pair of images over every uniform window inside them, of sample covariances, [B] float64.

    Args:
        a, b: [B, C, H, W] in [0, 1].
        taps: how many pixels the window is wide and high.

    Raises:
        ValueError: a side shorter than the window.
    """
    check_window(a, taps)
    return _uniform_on_device(a, b, taps) if a.is_cuda else _uniform_on_cpu(a, b, taps)


def check_window(image: Tensor, taps: int) -> None:
    """Refuse images that are smaller than a window.

    Raises:
        ValueError: with both sizes.
    """
    height, width = image.shape[-2:]
    if min(height, width) < taps:
        raise ValueError(f"image is {width}×{height}; this SSIM needs at least {taps} pixels a side")


def wholly_inside(mask: Tensor, taps: int) -> Tensor:
    """1 where a square window of so many pixels lies wholly where `mask` is 1, [B, 1, H, W] to one per position."""
    return 1 - F.max_pool2d(1 - mask, taps, stride=1)


def _gaussian_on_cpu(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    from inpaint.evaluation import windows_on_cpu  # its compiler takes a second to start

    found = torch.empty(*a.shape[:2], 2, dtype=torch.float64)
    one, other = (planes.contiguous().flatten(0, 1).numpy() for planes in (a, b))
    outwards = tuple(np.float32(weight) for weight in _gaussian()[MARGIN:])
    windows_on_cpu.gaussian_ssim(one, other, outwards, *_constants(), found.flatten(0, 1).numpy())
    everywhere, inside = found.mean(dim=1).unbind(1)
    return everywhere, inside


def _uniform_on_cpu(a: Tensor, b: Tensor, taps: int) -> Tensor:
    from inpaint.evaluation import windows_on_cpu

    found = torch.empty(a.shape[:2], dtype=torch.float64)
    one, other = (planes.contiguous().flatten(0, 1).numpy() for planes in (a, b))
    windows_on_cpu.uniform_ssim(one, other, taps, *_constants(_unbias(taps)), found.flatten().numpy())
    return found.mean(dim=1)


def _gaussian_on_device(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    found = gaussian_ssim_map(a, b)
    inside = found[..., MARGIN : found.shape[-2] - MARGIN, MARGIN : found.shape[-1] - MARGIN]
    return _mean(found), _mean(inside)


def _uniform_on_device(a: Tensor, b: Tensor, taps: int) -> Tensor:
    return _mean(_on_device(a, b, _stages(taps), _unbias(taps)))


def _mean(planes: Tensor) -> Tensor:
    """Of each image's values, [B] float64; rows are averaged in float32."""
    return planes.mean(dim=-1).mean(dim=(1, 2), dtype=torch.float64)


def _on_device(a: Tensor, b: Tensor, stages: tuple[tuple[list[float], int], ...], unbias: float) -> Tensor:
    u, v = (a + b).sub_(1), a - b
    mean_u, mean_v, spread_u, spread_v = (_filtered(planes, stages) for planes in (u, v, u.square(), v.square()))
    square_v = mean_v.square_()
    spread_v.sub_(square_v)
    spread_u.addcmul_(mean_u, mean_u, value=-1).add_(2 * C2 / unbias)
    square_u = mean_u.add_(1).square_().add_(2 * C1)
    above = (square_u - square_v).mul_(spread_u - spread_v)
    return above.div_(square_u.add_(square_v).mul_(spread_u.add_(spread_v)))


def _filtered(planes: Tensor, stages: tuple[tuple[list[float], int], ...]) -> Tensor:
    """The window's weighted mean at every whole position, as sums of shifted planes: no library rounds them to TF32."""
    for weights, dilation in stages:
        for dim in (-1, -2):
            length = planes.shape[dim] - (len(weights) - 1) * dilation
            total = planes.narrow(dim, 0, length) * weights[0]
            for place, weight in enumerate(weights[1:], start=1):
                total.add_(planes.narrow(dim, place * dilation, length), alpha=weight)
            planes = total
    return planes


def _gaussian() -> list[float]:
    line = [math.exp(-((i - MARGIN) ** 2) / (2 * SIGMA**2)) for i in range(TAPS)]
    return [weight / math.fsum(line) for weight in line]


def _stages(taps: int) -> tuple[tuple[list[float], int], ...]:
    """Weights and dilation of filters that make a uniform window one after the other: 51 = 3 of 17, not 51 taps."""
    inner = next((n for n in range(2, math.isqrt(taps) + 1) if taps % n == 0), taps)
    outer = taps // inner
    return (([1 / inner] * inner, 1), *([([1 / outer] * outer, inner)] if outer > 1 else []))


def _unbias(taps: int) -> float:
    """What makes a sample's covariance of a population's."""
    return taps**2 / (taps**2 - 1)


def _constants(unbias: float = 1.0) -> tuple[np.float32, np.float32]:
    return np.float32(2 * C1), np.float32(2 * C2 / unbias)
