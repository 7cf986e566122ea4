"""Rectangles, halves and the centred square."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from inpaint.masks.ratios import Ratio, counts_in

TRIES = 20  # placements of several rectangles before a single one is drawn


def rectangle_holes(ratio: Ratio, size: int, *, most: int) -> Callable[[np.random.Generator], np.ndarray]:
    """A maker of masks of one to `most` rectangles, uint8 [size, size], 1 = hole, whose ratio lies in the bin.

    The rectangles may overlap; the ratio is that of their union. Bins so narrow or so full that several rectangles do
    not fall into them are filled by one.

    Raises:
        ValueError: no rectangle of whole pixels lies in the bin.
    """
    fewest_pixels, most_pixels = counts_in(ratio, size * size)
    heights = np.arange(1, size + 1)
    narrowest = -(-fewest_pixels // heights)
    widest = np.minimum(most_pixels // heights, size)
    sides = zip(heights.tolist(), narrowest.tolist(), widest.tolist(), strict=True)
    single = [(height, least, most_) for height, least, most_ in sides if least <= most_]
    if not single:
        raise ValueError(f"no rectangle of whole pixels in {size}x{size} has a ratio in {ratio}; widen the bin")

    def one(rng: np.random.Generator) -> np.ndarray:
        height, least, most_ = single[int(rng.integers(len(single)))]
        return _with([(int(rng.integers(least, most_ + 1)), height)], size, rng)

    def draw(rng: np.random.Generator) -> np.ndarray:
        for _ in range(TRIES):
            number = int(rng.integers(1, most + 1))
            wanted = int(rng.integers(fewest_pixels, most_pixels + 1))
            mask = _with(_sides(wanted, number, size, rng), size, rng)
            if fewest_pixels <= np.count_nonzero(mask) <= most_pixels:
                return mask
        return one(rng)

    return draw


def half_holes(size: int) -> Callable[[np.random.Generator], np.ndarray]:
    """A maker of masks whose left, right, top or bottom half is the hole; the middle line of an odd size is known."""
    middle = size // 2
    sides = (
        (slice(None), slice(0, middle)),
        (slice(None), slice(size - middle, size)),
        (slice(0, middle), slice(None)),
        (slice(size - middle, size), slice(None)),
    )

    def draw(rng: np.random.Generator) -> np.ndarray:
        mask = np.zeros((size, size), dtype=np.uint8)
        mask[sides[int(rng.integers(4))]] = 1
        return mask

    return draw


def centre_holes(share: float, size: int) -> Callable[[np.random.Generator], np.ndarray]:
    """A maker of masks whose hole is the centred square of `share` of each side."""
    mask = centre_square(size, hole=min(max(round(share * size), 1), size - 1))
    return lambda rng: mask.copy()


def centre_square(size: int, *, hole: int) -> np.ndarray:
    """A mask whose hole is the centred square of `hole` pixels, uint8 [size, size].

    Raises:
        ValueError: the hole is not smaller than the image.
    """
    if not 0 < hole < size:
        raise ValueError(f"a centre hole of {hole} pixels in an image of {size}; expected 1 to {size - 1}")
    start = (size - hole) // 2
    mask = np.zeros((size, size), dtype=np.uint8)
    mask[start : start + hole, start : start + hole] = 1
    return mask


def _sides(wanted: int, number: int, size: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Widths and heights of `number` rectangles whose areas add up to about `wanted` pixels."""
    cuts = [0.0, *sorted(rng.random(number - 1).tolist()), 1.0]
    sides = []
    for start, end, shape in zip(cuts, cuts[1:], rng.random(number).tolist(), strict=False):
        area = max(1.0, wanted * (end - start))
        width = round(area**0.5 * 4 ** (shape - 0.5))  # aspect ratio from 1:4 to 4:1
        width = min(max(width, -(-int(area) // size), 1), size)
        sides.append((width, min(max(round(area / width), 1), size)))
    return sides


def _with(sides: list[tuple[int, int]], size: int, rng: np.random.Generator) -> np.ndarray:
    mask = np.zeros((size, size), dtype=np.uint8)
    for (width, height), (across, down) in zip(sides, rng.random((len(sides), 2)).tolist(), strict=True):
        x, y = int(across * (size - width + 1)), int(down * (size - height + 1))
        mask[y : y + height, x : x + width] = 1
    return mask
