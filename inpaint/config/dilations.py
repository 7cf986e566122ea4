"""When a cascade of dilated convolutions sees every pixel: the rule of hybrid dilated convolution.

Source: HDC paper, section III.B, Eq. (3).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd


def largest_gap(rates: Sequence[int]) -> int:
    """Largest distance between two pixels that the second layer onwards touches, G₂; 1 for a single layer of rate 1.

    Gₙ = rₙ and Gᵢ = max(Gᵢ₊₁ - 2rᵢ, 2rᵢ - Gᵢ₊₁, rᵢ), from the last layer to the second.
    """
    gap = rates[-1]
    for rate in reversed(rates[1:-1]):
        gap = max(gap - 2 * rate, 2 * rate - gap, rate)
    return gap


def leaves_gaps(rates: Sequence[int], *, kernel: int = 3) -> bool:
    """Whether a cascade misses pixels: G₂ exceeds the kernel, or all rates share a divisor."""
    return largest_gap(rates) > kernel or gcd(*rates) > 1
