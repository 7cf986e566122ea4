"""Every pixel score that a published code or table uses, each a batch on the device to one number per image.

The names say what differs between the codes: colour or grey, Gaussian or uniform window, padded or cropped border, what
an error is divided by. A protocol picks by name from `METRICS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from inpaint.evaluation.sums import Sums, luma, sum_pixels
from inpaint.evaluation.windows import (
    MARGIN,
    TAPS,
    check_window,
    gaussian_ssim,
    gaussian_ssim_map,
    uniform_ssim,
    wholly_inside,
)

Levels = Literal["rounded", "truncated", "float"]


def to_levels(image: Tensor, levels: Levels) -> Tensor:
    """`image` in [0, 1] as a code would score it: on 8-bit levels, rounded or truncated, or left as floats.

    Truncation leaves an image that is already on 8-bit levels as it is: k / 255 × 255 is exactly k for every level in
    float32.
    """
    if levels == "float":
        return image
    scaled = image.clamp(0, 1) * 255
    return (scaled.round() if levels == "rounded" else scaled.floor()) / 255


class Comparison:
    """A batch of fills beside the truth, with what several scores share computed once.

    Args:
        predicted: what is scored, composited or raw, [B, 3, H, W] in [0, 1].
        truth: [B, 3, H, W] in [0, 1].
        mask: 1 in the hole, [B, 1, H, W].
    """

    def __init__(self, predicted: Tensor, truth: Tensor, mask: Tensor) -> None:
        self.predicted, self.truth, self.mask = predicted, truth, mask

    @cached_property
    def sums(self) -> Sums:
        """Sums of errors and of values over the pixels and channels of each image."""
        return sum_pixels(self.predicted, self.truth, self.mask)

    @cached_property
    def grey_sums(self) -> Sums:
        """Sums of errors and of values of the luma."""
        return sum_pixels(*self.grey, self.mask)

    @property
    def pixels(self) -> int:
        """Of one image."""
        return self.mask[0].numel()

    @cached_property
    def grey(self) -> tuple[Tensor, Tensor]:
        """Luma of predicted and truth, [B, 1, H, W] each."""
        return luma(self.predicted), luma(self.truth)

    @cached_property
    def gaussian_ssim(self) -> tuple[Tensor, Tensor]:
        """Mean SSIM under the 11-tap Gaussian window, over all pixels and over whole windows, [B] each."""
        return gaussian_ssim(self.predicted, self.truth)


def psnr_rgb(seen: Comparison) -> Tensor:
    """10 log10(1 / MSE) over all pixels and channels, dB, [B]; inf for a perfect image."""
    return -10 * (seen.sums.square / (3 * seen.pixels)).log10()


def psnr_grey(seen: Comparison) -> Tensor:
    """PSNR of the luma, dB, [B]; inf for a perfect image."""
    return -10 * (seen.grey_sums.square / seen.pixels).log10()


def psnr_hole(seen: Comparison) -> Tensor:
    """PSNR over the hole's pixels alone, dB, [B]; inf when they are perfect, NaN for an image without a hole."""
    return -10 * (seen.sums.square_in_hole / (3 * seen.sums.hole)).log10()


def ssim_gaussian_valid(seen: Comparison) -> Tensor:
    """SSIM, Gaussian window of 11, RGB per channel, windows wholly inside the image, population covariance, [B].

    Raises:
        ValueError: a side shorter than 11 pixels.
    """
    check_window(seen.truth, TAPS)
    return seen.gaussian_ssim[1]


def ssim_gaussian_padded(seen: Comparison) -> Tensor:
    """SSIM, Gaussian window of 11, RGB per channel, zeros beyond the border, every pixel counted, [B]."""
    return seen.gaussian_ssim[0]


def ssim_gaussian_hole(seen: Comparison) -> Tensor:
    """Mean SSIM of the Gaussian windows that lie wholly in the hole, [B]; NaN where none fits.

    For a square hole this is the SSIM of the hole cut out as an image of its own.
    """
    inside = wholly_inside(F.pad(seen.mask, (MARGIN,) * 4), TAPS)
    found = gaussian_ssim_map(seen.predicted, seen.truth).mean(dim=1, keepdim=True)
    return _sum(found * inside) / _sum(inside)


def ssim_grey_uniform_11(seen: Comparison) -> Tensor:
    """SSIM of the luma, uniform window of 11, border cropped, sample covariance, [B]."""
    return uniform_ssim(*seen.grey, 11)


def ssim_grey_uniform_51(seen: Comparison) -> Tensor:
    """SSIM of the luma, uniform window of 51, border cropped, sample covariance, [B]."""
    return uniform_ssim(*seen.grey, 51)


def ssim_rgb_uniform_7(seen: Comparison) -> Tensor:
    """SSIM, uniform window of 7, RGB per channel, border cropped, sample covariance, [B]."""
    return uniform_ssim(seen.predicted, seen.truth, 7)


def l1_rgb(seen: Comparison) -> Tensor:
    """Mean |error| over all pixels and channels, in [0, 1], [B]."""
    return seen.sums.absolute / (3 * seen.pixels)


def l1_grey(seen: Comparison) -> Tensor:
    """Mean |error| of the luma, in [0, 1], [B]."""
    return seen.grey_sums.absolute / seen.pixels


def l1_over_sum_grey(seen: Comparison) -> Tensor:
    """Sum |error| / sum (predicted + truth) of the luma, in [0, 1], [B]; 0 when both are black."""
    return seen.grey_sums.absolute / (seen.grey_sums.predicted + seen.grey_sums.truth).clamp_min(1e-12)


def l1_over_sum_rgb(seen: Comparison) -> Tensor:
    """Sum |error| / sum (predicted + truth) over RGB, in [0, 1], [B]; 0 when both are black."""
    return seen.sums.absolute / (seen.sums.predicted + seen.sums.truth).clamp_min(1e-12)


def l1_hole(seen: Comparison) -> Tensor:
    """Mean |error| over the hole's pixels and channels, in [0, 1], [B]; NaN for an image without a hole."""
    return seen.sums.absolute_in_hole / (3 * seen.sums.hole)


@dataclass(frozen=True)
class Metric:
    """A score: how it is computed, printed and read.

    Attributes:
        compute: batch to one number per image, [B] float64.
        label: heading in tables.
        factor: printed value = computed value × factor (100 for percent).
        better: which way is better.
        digits: after the point when printed.
        window: shortest side in pixels that it can score.
    """

    compute: Callable[[Comparison], Tensor]
    label: str
    factor: float = 1.0
    better: Literal["higher", "lower"] = "higher"
    digits: int = 4
    window: int = 1


METRICS: Mapping[str, Metric] = {
    "psnr_rgb": Metric(psnr_rgb, "PSNR dB", digits=2),
    "psnr_grey": Metric(psnr_grey, "PSNR grey dB", digits=2),
    "psnr_hole": Metric(psnr_hole, "PSNR hole dB", digits=2),
    "ssim_gaussian_valid": Metric(ssim_gaussian_valid, "SSIM", window=11),
    "ssim_gaussian_padded": Metric(ssim_gaussian_padded, "SSIM padded"),
    "ssim_gaussian_hole": Metric(ssim_gaussian_hole, "SSIM hole"),
    "ssim_grey_uniform_11": Metric(ssim_grey_uniform_11, "SSIM grey u11", window=11),
    "ssim_grey_uniform_51": Metric(ssim_grey_uniform_51, "SSIM grey u51", window=51),
    "ssim_rgb_uniform_7": Metric(ssim_rgb_uniform_7, "SSIM u7", window=7),
    "l1_rgb": Metric(l1_rgb, "L1 %", factor=100, better="lower", digits=3),
    "l1_fraction": Metric(l1_rgb, "L1", better="lower"),
    "l1_grey": Metric(l1_grey, "L1 grey %", factor=100, better="lower", digits=3),
    "l1_over_sum_grey": Metric(l1_over_sum_grey, "|d|/(a+b) grey %", factor=100, better="lower", digits=3),
    "l1_over_sum_rgb": Metric(l1_over_sum_rgb, "|d|/(a+b) %", factor=100, better="lower", digits=3),
    "l1_hole": Metric(l1_hole, "L1 hole %", factor=100, better="lower", digits=3),
}


@dataclass(frozen=True)
class NetworkMetric:
    """How a score that a network makes is printed and read; who brings the network computes it."""

    label: str
    better: Literal["higher", "lower"] = "lower"
    digits: int = 4


NETWORK_METRICS: Mapping[str, NetworkMetric] = {
    "lpips_alex": NetworkMetric("LPIPS alex"),
    "lpips_vgg": NetworkMetric("LPIPS vgg"),
    "lpips_squeeze": NetworkMetric("LPIPS squeeze"),
    "face_identity": NetworkMetric("identity", better="higher"),
    "face_landmarks": NetworkMetric("landmarks %", digits=2),
}


def _sum(planes: Tensor) -> Tensor:
    """Sum of each image's values, [B] float64; rows are added up in float32."""
    return planes.sum(dim=3).sum(dim=(1, 2), dtype=torch.float64)
