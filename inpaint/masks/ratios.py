"""From a wanted bin of hole ratios to whole numbers of hole pixels."""

from __future__ import annotations

import math

Ratio = tuple[float, float]


def counts_in(ratio: Ratio, pixels: int) -> tuple[int, int]:
    """The least and the most hole pixels, of `pixels`, whose ratio lies in the bin.

    A bin is (low, high]: above the first number, up to and with the second. Two equal numbers ask for that ratio, to
    the nearest pixel. A hole is never empty and never everything, so the answer stays in 1..pixels - 1.

    Raises:
        ValueError: the bin is upside down, or no whole number of pixels lies in it.
    """
    low, high = ratio
    if not 0 <= low <= high <= 1:
        raise ValueError(f"holes of ratio {low:g} to {high:g}: expected 0 <= low <= high <= 1")
    if low == high:
        least = most = round(low * pixels)
    else:
        least, most = first_above(low, pixels), first_above(high, pixels) - 1
    least, most = max(least, 1), min(most, pixels - 1)
    if least > most:
        raise ValueError(f"no hole of whole pixels in {pixels} has a ratio in ({low:g}, {high:g}]; widen the bin")
    return least, most


def first_above(share: float, pixels: int) -> int:
    """The least whole n with n / pixels > share, free of rounding accidents at the edge."""
    n = math.floor(share * pixels)
    while n / pixels <= share:
        n += 1
    while n > 0 and (n - 1) / pixels > share:
        n -= 1
    return n


def in_bin(hole_ratio: float, ratio: Ratio) -> bool:
    """Whether a hole ratio lies in the bin (low, high]."""
    return ratio[0] < hole_ratio <= ratio[1]
