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

from inpaint.evaluation.windows import Moments, SsimMap, Window, wholly_inside

LUMA = (0.2125, 0.7154, 0.0721)  # of scikit-image's rgb2gray, which EdgeConnect's, ISNet's and DiNA's scores use
GAUSSIAN = Window(11, sigma=1.5)
MARGIN = GAUSSIAN.taps // 2

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
    def error(self) -> Tensor:
        """Predicted less truth, [B, 3, H, W]."""
        return self.predicted - self.truth

    @cached_property
    def absolute(self) -> Tensor:
        """|error| by pixel, summed over channels, [B, 1, H, W]."""
        return self.error.abs().sum(dim=1, keepdim=True)

    @cached_property
    def square(self) -> Tensor:
        """error² by pixel, summed over channels, [B, 1, H, W]."""
        return self.error.square().sum(dim=1, keepdim=True)

    @cached_property
    def grey(self) -> tuple[Tensor, Tensor]:
        """Luma of predicted and truth, [B, 1, H, W] each."""
        return _grey(self.predicted), _grey(self.truth)

    @cached_property
    def moments(self) -> Moments:
        """Of the colours, with the border of zeros that a padded Gaussian window reaches into."""
        return Moments(self.predicted, self.truth, border=MARGIN)

    @cached_property
    def grey_moments(self) -> Moments:
        """Of the luma, without a border."""
        return Moments(*self.grey)

    @cached_property
    def gaussian_ssim(self) -> SsimMap:
        """SSIM around every pixel under the 11-tap Gaussian window, [B, 3, H, W]."""
        return self.moments.ssim(GAUSSIAN)


def psnr_rgb(seen: Comparison) -> Tensor:
    """10 log10(1 / MSE) over all pixels and channels, dB, [B]; inf for a perfect image."""
    return -10 * (_mean(seen.square) / 3).log10()


def psnr_grey(seen: Comparison) -> Tensor:
    """PSNR of the luma, dB, [B]; inf for a perfect image."""
    predicted, truth = seen.grey
    return -10 * _mean((predicted - truth).square()).log10()


def psnr_hole(seen: Comparison) -> Tensor:
    """PSNR over the hole's pixels alone, dB, [B]; inf when they are perfect, NaN for an image without a hole."""
    return -10 * (_sum(seen.mask * seen.square) / (3 * _sum(seen.mask))).log10()


def ssim_gaussian_valid(seen: Comparison) -> Tensor:
    """SSIM, Gaussian window of 11, RGB per channel, windows wholly inside the image, population covariance, [B].

    Raises:
        ValueError: a side shorter than 11 pixels.
    """
    _check_window(seen.truth, GAUSSIAN)
    return seen.gaussian_ssim.means(crop=MARGIN)


def ssim_gaussian_padded(seen: Comparison) -> Tensor:
    """SSIM, Gaussian window of 11, RGB per channel, zeros beyond the border, every pixel counted, [B]."""
    return seen.gaussian_ssim.means()


def ssim_gaussian_hole(seen: Comparison) -> Tensor:
    """Mean SSIM of the Gaussian windows that lie wholly in the hole, [B]; NaN where none fits.

    For a square hole this is the SSIM of the hole cut out as an image of its own.
    """
    inside = wholly_inside(F.pad(seen.mask, (MARGIN,) * 4), GAUSSIAN.taps)
    return _sum(seen.gaussian_ssim.over_channels() * inside) / _sum(inside)


def ssim_grey_uniform_11(seen: Comparison) -> Tensor:
    """SSIM of the luma, uniform window of 11, border cropped, sample covariance, [B]."""
    return seen.grey_moments.ssim(Window(11, sample=True)).means()


def ssim_grey_uniform_51(seen: Comparison) -> Tensor:
    """SSIM of the luma, uniform window of 51, border cropped, sample covariance, [B]."""
    return seen.grey_moments.ssim(Window(51, sample=True)).means()


def ssim_rgb_uniform_7(seen: Comparison) -> Tensor:
    """SSIM, uniform window of 7, RGB per channel, border cropped, sample covariance, [B]."""
    window = Window(7, sample=True)
    _check_window(seen.truth, window)
    return seen.moments.ssim(window).means(crop=MARGIN)


def l1_rgb(seen: Comparison) -> Tensor:
    """Mean |error| over all pixels and channels, in [0, 1], [B]."""
    return _mean(seen.absolute) / 3


def l1_grey(seen: Comparison) -> Tensor:
    """Mean |error| of the luma, in [0, 1], [B]."""
    predicted, truth = seen.grey
    return _mean((predicted - truth).abs())


def l1_over_sum_grey(seen: Comparison) -> Tensor:
    """Sum |error| / sum (predicted + truth) of the luma, in [0, 1], [B]; 0 when both are black."""
    predicted, truth = seen.grey
    return _sum((predicted - truth).abs()) / (_sum(predicted) + _sum(truth)).clamp_min(1e-12)


def l1_over_sum_rgb(seen: Comparison) -> Tensor:
    """Sum |error| / sum (predicted + truth) over RGB, in [0, 1], [B]; 0 when both are black."""
    return _sum(seen.absolute) / (_sum(seen.predicted) + _sum(seen.truth)).clamp_min(1e-12)


def l1_over_truth(seen: Comparison) -> Tensor:
    """Sum |error| / sum truth over RGB, [B]: the `mae` that EdgeConnect and ISNet log while training."""
    return _sum(seen.absolute) / _sum(seen.truth).clamp_min(1e-12)


def l1_hole(seen: Comparison) -> Tensor:
    """Mean |error| over the hole's pixels and channels, in [0, 1], [B]; NaN for an image without a hole."""
    return _sum(seen.mask * seen.absolute) / (3 * _sum(seen.mask))


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
    "l1_over_truth": Metric(l1_over_truth, "|d|/truth", better="lower"),
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


def _mean(planes: Tensor) -> Tensor:
    return _sum(planes) / planes[0].numel()


def _grey(image: Tensor) -> Tensor:
    red, green, blue = image.split(1, dim=1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def _check_window(image: Tensor, window: Window) -> None:
    if min(image.shape[-2:]) < window.taps:
        size = f"{image.shape[-1]}×{image.shape[-2]}"
        raise ValueError(f"image is {size}; this SSIM needs at least {window.taps} pixels a side")
