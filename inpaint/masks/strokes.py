"""Random brush strokes, drawn until exactly the wanted number of pixels is hole.

A stroke is a chain of straight segments with round ends, whose steps are whole pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from inpaint.masks.ratios import Ratio, counts_in

ANGLES = 7  # directions in a quarter turn
LENGTHS = 6  # of a segment, between these shares of the image's side
SHORTEST, LONGEST = 0.06, 0.34
RADII = 8  # of the brush, between these shares
THINNEST, THICKEST = 0.02, 0.08
DRAWS = 32  # segments whose random numbers are drawn at once


def stroke_holes(ratio: Ratio, size: int) -> Callable[[np.random.Generator], np.ndarray]:
    """A maker of stroke masks, uint8 [size, size], 1 = hole, whose ratio is uniform in the bin.

    Raises:
        ValueError: no whole number of pixels lies in the bin.
    """
    from inpaint.masks.segments import paint_strokes  # its compiler takes half a second to start

    least, most = counts_in(ratio, size * size)
    steps = _steps(size)
    radii = np.array([max(1, round(share * size)) for share in np.linspace(THINNEST, THICKEST, RADII).tolist()])

    def draw(rng: np.random.Generator) -> np.ndarray:
        wanted = int(rng.integers(least, most + 1))
        fitting = 1 + np.count_nonzero(4 * radii[1:] ** 2 <= wanted)  # a small hole is not one blot
        mask, brush = np.zeros((size, size), np.uint8), np.zeros(4, np.int64)
        while not paint_strokes(mask, rng.random((DRAWS, 5)), steps, radii[:fitting], wanted, brush):
            pass
        return mask

    return draw


def _steps(size: int) -> np.ndarray:
    """Step vectors in whole pixels in all directions, [S, 2]: index ^ 2 mirrors x, index ^ 1 mirrors y."""
    quarter = [
        (round(length * math.cos(angle)), round(length * math.sin(angle)))
        for length in np.linspace(SHORTEST, LONGEST, LENGTHS) * size
        for angle in np.linspace(0, math.pi / 2, ANGLES)
    ]
    return np.array([(sx * dx, sy * dy) for dx, dy in quarter for sx in (1, -1) for sy in (1, -1)])
