"""Canny's edge detector on batches and on any device, equal to scikit-image's.

It runs where the batch already is: a step needs no copy to the host and no worker that detects edges before it.

Source: Canny, "A Computational Approach to Edge Detection", 1986; the variant that interpolates neighbours along the
gradient and ignores invalid pixels when smoothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LOW, HIGH = 0.1, 0.2  # gradient magnitudes, EdgeConnect's setting made explicit
TRACKING_ROUNDS = 256  # pixels along a weak edge that a strong one keeps alive
LUMA = (0.2125, 0.7154, 0.0721)  # of R, G and B, EdgeConnect


def grey(image: Tensor) -> Tensor:
    """Luma of an RGB image: [B, 3, H, W] → [B, 1, H, W]."""
    red, green, blue = image.split(1, dim=1)
    return red * LUMA[0] + green * LUMA[1] + blue * LUMA[2]


# Hundreds of short steps: a compiler would unroll them for minutes and gain nothing. `torch.compiler.disable` says the
# same, but imports the whole compiler, a third of a worker's start.
@torch._disable_dynamo
@torch.no_grad()
def canny(
    image: Tensor, valid: Tensor | None = None, *, sigma: float = 2.0, low: float = LOW, high: float = HIGH
) -> Tensor:
    """Edges of a grey image as 0 or 1.

    Args:
        image: [B, 1, H, W], in [0, 1].
        valid: 1 where pixels may be looked at, [B, 1, H, W]; no edge is found at, or next to, an invalid pixel, and
            what stands there has no influence. All pixels when None.
        sigma: standard deviation of the smoothing, in pixels.
        low: smallest gradient magnitude of an edge.
        high: magnitude that some pixel of every edge must reach.

    Returns:
        [B, 1, H, W], float32.
    """
    with torch.autocast("cuda" if image.is_cuda else "cpu", enabled=False):
        image = image.float()
        valid = torch.ones_like(image) if valid is None else valid.float()
        inner = 1 - F.max_pool2d(1 - F.pad(valid, (1, 1, 1, 1)), 3, stride=1)
        smooth = _blur(image * valid, sigma) / (_blur(valid, sigma) + torch.finfo(torch.float32).eps)
        down, right = _sobel(smooth)
        magnitude = (down.square() + right.square()).sqrt()
        weak = _ridges(down, right, magnitude) & (magnitude >= low) & (inner > 0.5)
        return _tracked(weak & (magnitude >= high), weak)


def _blur(image: Tensor, sigma: float) -> Tensor:
    """Gaussian blur cut off at four deviations, zero outside the image."""
    radius = int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64, device=image.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(image)
    image = F.conv2d(image, kernel.view(1, 1, -1, 1), padding=(radius, 0))
    return F.conv2d(image, kernel.view(1, 1, 1, -1), padding=(0, radius))


def _sobel(image: Tensor) -> tuple[Tensor, Tensor]:
    """Differences downwards and to the right, each smoothed by 1, 2, 1 across; edges of the image repeated."""
    image = F.pad(image, (1, 1, 1, 1), mode="replicate")
    along = torch.arange(-1, 2, dtype=image.dtype, device=image.device)
    across = 2 - along.abs()
    down = F.conv2d(image, torch.outer(along, across)[None, None])
    right = F.conv2d(image, torch.outer(across, along)[None, None])
    return down, right


def _ridges(down: Tensor, right: Tensor, magnitude: Tensor) -> Tensor:
    """Where the magnitude is not below what it is one step ahead of and behind along the gradient, interpolated."""
    height, width = magnitude.shape[-2:]
    padded = F.pad(magnitude, (1, 1, 1, 1))

    def moved(rows: int, columns: int) -> Tensor:
        return padded[..., 1 + rows : 1 + rows + height, 1 + columns : 1 + columns + width]

    steep = down.abs() > right.abs()
    falling = (down >= 0) == (right >= 0)  # towards the lower right, or its opposite
    falling |= (down == 0) | (right == 0)
    share = torch.minimum(down.abs(), right.abs()) / torch.maximum(down.abs(), right.abs()).clamp_min(1e-30)
    ridge = torch.ones_like(steep)
    for sign in (1, -1):
        straight = torch.where(steep, moved(sign, 0), moved(0, sign))
        rising_straight = torch.where(steep, moved(-sign, 0), moved(0, sign))
        diagonal = torch.where(falling, moved(sign, sign), moved(-sign, sign))
        near = torch.where(falling, straight, rising_straight)
        ridge &= diagonal * share + near * (1 - share) <= magnitude
    return ridge


def _tracked(strong: Tensor, weak: Tensor) -> Tensor:
    """The weak pixels that touch a strong one, directly or over weak neighbours."""
    kept, allowed = strong.float(), weak.float()
    for number in range(TRACKING_ROUNDS):
        grown = F.max_pool2d(kept, 3, stride=1, padding=1) * allowed
        on_host = kept.device.type == "cpu"  # looking costs nothing there; elsewhere it would wait for the device
        if on_host and number % 8 == 0 and torch.equal(grown, kept):
            break
        kept = grown
    return kept


def precision_recall(
    predicted: Tensor, true: Tensor, region: Tensor, *, threshold: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Shares of the predicted edges that are true, and of the true edges that are predicted, per image.

    Args:
        predicted: edge probabilities, [B, 1, H, W].
        true: 0 or 1, same shape.
        region: 1 where pixels count, same shape.
        threshold: probability from which a pixel is an edge.

    Returns:
        Precision and recall, each [B], in [0, 1]; NaN where nothing was predicted, or there is nothing to find.
    """
    found, there = (predicted >= threshold) & (region > 0.5), (true > 0.5) & (region > 0.5)
    hits = (found & there).sum(dim=(1, 2, 3)).float()
    precision = hits / found.sum(dim=(1, 2, 3))
    return precision, hits / there.sum(dim=(1, 2, 3))
