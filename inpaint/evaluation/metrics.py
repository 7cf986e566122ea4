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

LUMA = (0.2125, 0.7154, 0.0721)  # of scikit-image's rgb2gray, which EdgeConnect's, ISNet's and DiNA's scores use
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2  # Wang et al. 2004, for values in [0, 1]
GAUSSIAN_TAPS, GAUSSIAN_SIGMA = 11, 1.5

Levels = Literal["rounded", "truncated", "float"]


def to_levels(image: Tensor, levels: Levels) -> Tensor:
    """`image` in [0, 1] as a code would score it: on 8-bit levels, rounded or truncated, or left as floats.

    Truncation leaves an image that is already on 8-bit levels as it is: k / 255 × 255 is exactly k for every level in
    float32.
    """
    if levels == "float":
        return image
    scaled = image.clamp(0, 1) * 255
    return (scaled.round() if levels == "rounded" else scaled.trunc()) / 255


class Comparison:
    """A batch of fills beside the truth, with the planes that several scores share computed once.

    Args:
        predicted: what is scored, composited or raw, [B, 3, H, W] in [0, 1].
        truth: [B, 3, H, W] in [0, 1].
        mask: 1 in the hole, [B, 1, H, W].
    """

    def __init__(self, predicted: Tensor, truth: Tensor, mask: Tensor) -> None:
        self.predicted, self.truth, self.mask = predicted, truth, mask

    @cached_property
    def error(self) -> Tensor:
        return self.predicted - self.truth

    @cached_property
    def grey(self) -> tuple[Tensor, Tensor]:
        return _grey(self.predicted), _grey(self.truth)

    @cached_property
    def gaussian_ssim(self) -> Tensor:
        """SSIM at every pixel under the 11-tap Gaussian window with zeros beyond the border, [B, 3, H, W]."""
        return _gaussian_ssim_map(self.predicted, self.truth)


def psnr_rgb(seen: Comparison) -> Tensor:
    """10 log10(1 / MSE) over all pixels and channels, dB, [B]; inf for a perfect image."""
    return -10 * _mean(seen.error.square()).log10()


def psnr_grey(seen: Comparison) -> Tensor:
    """PSNR of the luma, dB, [B]; inf for a perfect image."""
    predicted, truth = seen.grey
    return -10 * _mean((predicted - truth).square()).log10()


def psnr_hole(seen: Comparison) -> Tensor:
    """PSNR over the hole's pixels alone, dB, [B]; inf when they are perfect, NaN for an image without a hole."""
    return -10 * (_sum(seen.mask * seen.error.square()) / (3 * _sum(seen.mask))).log10()


def ssim_gaussian_valid(seen: Comparison) -> Tensor:
    """SSIM, Gaussian window of 11, RGB per channel, windows wholly inside the image, population covariance, [B].

    Raises:
        ValueError: a side shorter than 11 pixels.
    """
    _check_window(seen.truth, GAUSSIAN_TAPS)
    margin = GAUSSIAN_TAPS // 2
    return _mean(seen.gaussian_ssim[..., margin:-margin, margin:-margin])


def ssim_gaussian_padded(seen: Comparison) -> Tensor:
    """SSIM, Gaussian window of 11, RGB per channel, zeros beyond the border, every pixel counted, [B]."""
    return _mean(seen.gaussian_ssim)


def ssim_gaussian_hole(seen: Comparison) -> Tensor:
    """Mean SSIM of the Gaussian windows that lie wholly in the hole, [B]; NaN where none fits.

    For a square hole this is the SSIM of the hole cut out as an image of its own.
    """
    margin = GAUSSIAN_TAPS // 2
    known = F.pad(1 - seen.mask, (margin,) * 4, value=1.0)
    inside = 1 - F.max_pool2d(known, GAUSSIAN_TAPS, stride=1)
    return _sum(seen.gaussian_ssim.mean(dim=1, keepdim=True) * inside) / _sum(inside)


def ssim_grey_uniform_11(seen: Comparison) -> Tensor:
    """SSIM of the luma, uniform window of 11, border cropped, sample covariance, [B]."""
    return _uniform_ssim(*seen.grey, window=11)


def ssim_grey_uniform_51(seen: Comparison) -> Tensor:
    """SSIM of the luma, uniform window of 51, border cropped, sample covariance, [B]."""
    return _uniform_ssim(*seen.grey, window=51)


def ssim_rgb_uniform_7(seen: Comparison) -> Tensor:
    """SSIM, uniform window of 7, RGB per channel, border cropped, sample covariance, [B]."""
    return _uniform_ssim(seen.predicted, seen.truth, window=7)


def l1_rgb(seen: Comparison) -> Tensor:
    """Mean |error| over all pixels and channels, in [0, 1], [B]."""
    return _mean(seen.error.abs())


def l1_grey(seen: Comparison) -> Tensor:
    """Mean |error| of the luma, in [0, 1], [B]."""
    predicted, truth = seen.grey
    return _mean((predicted - truth).abs())


def l1_over_sum_grey(seen: Comparison) -> Tensor:
    """Sum |error| / sum (predicted + truth) of the luma, in [0, 1], [B]; 0 when both are black."""
    return _relative(*seen.grey)


def l1_over_sum_rgb(seen: Comparison) -> Tensor:
    """Sum |error| / sum (predicted + truth) over RGB, in [0, 1], [B]; 0 when both are black."""
    return _relative(seen.predicted, seen.truth)


def l1_over_truth(seen: Comparison) -> Tensor:
    """Sum |error| / sum truth over RGB, [B]: the `mae` that EdgeConnect and ISNet log while training."""
    return _sum(seen.error.abs()) / _sum(seen.truth).clamp_min(1e-12)


def l1_hole(seen: Comparison) -> Tensor:
    """Mean |error| over the hole's pixels and channels, in [0, 1], [B]; NaN for an image without a hole."""
    return _sum(seen.mask * seen.error.abs()) / (3 * _sum(seen.mask))


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


def _sum(values: Tensor) -> Tensor:
    return values.flatten(1).sum(dim=1, dtype=torch.float64)


def _mean(values: Tensor) -> Tensor:
    return values.flatten(1).mean(dim=1, dtype=torch.float64)


def _relative(predicted: Tensor, truth: Tensor) -> Tensor:
    return _sum((predicted - truth).abs()) / _sum(predicted + truth).clamp_min(1e-12)


def _grey(image: Tensor) -> Tensor:
    red, green, blue = image.unbind(dim=1)
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue).unsqueeze(1)


def _check_window(image: Tensor, window: int) -> None:
    if min(image.shape[-2:]) < window:
        size = f"{image.shape[-1]}×{image.shape[-2]}"
        raise ValueError(f"image is {size}; this SSIM needs at least {window} pixels a side")


def _gaussian_ssim_map(predicted: Tensor, truth: Tensor) -> Tensor:
    """The map, computed on values less 0.5 so that float32 variances keep their digits."""
    kernel = torch.arange(GAUSSIAN_TAPS, dtype=torch.float64) - GAUSSIAN_TAPS // 2
    kernel = torch.exp(-(kernel**2) / (2 * GAUSSIAN_SIGMA**2))
    taps: list[float] = (kernel / kernel.sum()).tolist()
    inside = _blur(torch.ones_like(truth[:1, :1]), taps)  # share of the window that lies in the image
    parts = 1 if predicted.is_cuda else predicted.shape[0]  # on a CPU, planes that stay in its cache
    pairs = zip(predicted.chunk(parts), truth.chunk(parts), strict=True)
    return torch.cat([_ssim_of(a - 0.5, b - 0.5, inside, taps) for a, b in pairs])


def _ssim_of(a: Tensor, b: Tensor, inside: Tensor, taps: list[float]) -> Tensor:
    """SSIM of centred values a and b. Beyond the border the picture is 0, which is -0.5 once centred."""
    centre = 0.5 * (1 - inside)
    mean_a, mean_b, squares, product = _blur(torch.cat([a, b, a * a + b * b, a * b]), taps).chunk(4)
    mean_a, mean_b = mean_a - centre, mean_b - centre
    squares, product = squares + centre, product + centre / 2
    variances = squares - mean_a.square() - mean_b.square()
    covariance = product - mean_a * mean_b
    mean_a, mean_b = mean_a + 0.5, mean_b + 0.5
    return ((2 * mean_a * mean_b + SSIM_C1) * (2 * covariance + SSIM_C2)) / (
        (mean_a.square() + mean_b.square() + SSIM_C1) * (variances + SSIM_C2)
    )


def _blur(planes: Tensor, taps: list[float]) -> Tensor:
    """Separable symmetric filter with zeros beyond the border; shifted sums, the fastest form on CPU and GPU alike."""
    margin = len(taps) // 2
    planes = F.pad(planes, (margin,) * 4)
    for dim in (-1, -2):
        length = planes.shape[dim] - 2 * margin
        total = planes.narrow(dim, margin, length) * taps[margin]
        for i in range(margin):
            pair = planes.narrow(dim, i, length) + planes.narrow(dim, 2 * margin - i, length)
            total.add_(pair, alpha=taps[i])
        planes = total
    return planes


def _uniform_ssim(predicted: Tensor, truth: Tensor, *, window: int) -> Tensor:
    """Mean SSIM of the windows wholly inside the image, with sample covariances; on values less 0.5, see above."""
    _check_window(truth, window)
    sample = window**2 / (window**2 - 1)
    parts = 1 if predicted.is_cuda else predicted.shape[0]
    means = []
    for a, b in zip((predicted - 0.5).chunk(parts), (truth - 0.5).chunk(parts), strict=True):
        moments = _box_sum(torch.cat([a, b, a * a + b * b, a * b]), window) / window**2
        mean_a, mean_b, squares, product = moments.chunk(4)
        variances = sample * (squares - mean_a.square() - mean_b.square())
        covariance = sample * (product - mean_a * mean_b)
        mean_a, mean_b = mean_a + 0.5, mean_b + 0.5
        means.append(
            _mean(
                ((2 * mean_a * mean_b + SSIM_C1) * (2 * covariance + SSIM_C2))
                / ((mean_a.square() + mean_b.square() + SSIM_C1) * (variances + SSIM_C2))
            )
        )
    return torch.cat(means)


def _box_sum(planes: Tensor, window: int) -> Tensor:
    """Sums over every whole window, along one axis and then the other, from runs of doubling length."""
    for dim in (-1, -2):
        length = planes.shape[dim] - window + 1
        run, reach, covered, total = planes, 1, 0, None
        while reach <= window:
            if window & reach:
                part = run.narrow(dim, covered, length)
                total = part.clone() if total is None else total.add_(part)
                covered += reach
            if 2 * reach <= window:
                run = run.narrow(dim, 0, run.shape[dim] - reach) + run.narrow(dim, reach, run.shape[dim] - reach)
            reach *= 2
        assert total is not None
        planes = total
    return planes
