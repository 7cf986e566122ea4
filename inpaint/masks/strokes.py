"""Random brush strokes, drawn until exactly the wanted number of pixels is hole.

A stroke is a chain of straight segments with round ends. A segment is stamped from a small set of ready-made bitmaps
(one per step vector and radius, in whole pixels, so a mask is the same on every machine): about a microsecond each,
against tens for drawing it anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from inpaint.masks.ratios import Ratio, counts_in

ANGLES = 7  # directions in a quarter turn
LENGTHS = 6  # of a segment, between these shares of the image's side
SHORTEST, LONGEST = 0.06, 0.34
RADII = 8  # of the brush, between these shares
THINNEST, THICKEST = 0.02, 0.08
LIFT = 0.15  # chance that the brush is lifted after a segment
DRAWS = 32  # segments whose random numbers are drawn at once


@dataclass(frozen=True)
class Stamp:
    """A segment of one step and radius, and where it lies relative to the segment's start."""

    bitmap: np.ndarray
    pixels: int
    left: int
    top: int


def stroke_holes(ratio: Ratio, size: int) -> Callable[[np.random.Generator], np.ndarray]:
    """A maker of stroke masks, uint8 [size, size], 1 = hole, whose ratio is uniform in the bin.

    Raises:
        ValueError: no whole number of pixels lies in the bin.
    """
    least, most = counts_in(ratio, size * size)
    steps = _steps(size)
    radii = [max(1, round(share * size)) for share in np.linspace(THINNEST, THICKEST, RADII).tolist()]
    stamps: dict[tuple[int, int], Stamp] = {}

    def draw(rng: np.random.Generator) -> np.ndarray:
        wanted = int(rng.integers(least, most + 1))
        widths = sum(4 * radius * radius <= wanted for radius in radii[1:]) + 1  # a small hole is not one blot
        mask = np.zeros((size, size), dtype=bool)
        covered, exact, lifted, x, y, radius = 0, True, True, 0, 0, 0
        while True:
            for turn, across, down, width, lift in rng.random((DRAWS, 5)).tolist():
                if lifted:
                    x, y, radius = int(across * size), int(down * size), radii[int(width * widths)]
                index = int(turn * len(steps))
                if not 0 <= x + steps[index][0] < size:
                    index ^= 2  # the step mirrored left to right
                if not 0 <= y + steps[index][1] < size:
                    index ^= 1  # and top to bottom
                stamp = stamps.get((index, radius))
                if stamp is None:
                    stamp = stamps[index, radius] = _stamp(steps[index], radius)
                area, piece = _overlap(mask, stamp, x, y)
                if covered + stamp.pixels < wanted:  # cannot be too many yet: no need to count
                    np.logical_or(area, piece, area)
                    covered, exact = covered + stamp.pixels, False
                else:
                    if not exact:
                        covered, exact = int(np.count_nonzero(mask)), True
                    covered += _add(area, piece, room=wanted - covered, step=steps[index])
                    if covered == wanted:
                        return mask.view(np.uint8)
                x, y, lifted = x + steps[index][0], y + steps[index][1], lift < LIFT

    return draw


def _add(area: np.ndarray, piece: np.ndarray, *, room: int, step: tuple[int, int]) -> int:
    """Stamp, but with at most `room` pixels that were not hole yet: of more, the end of the segment is left out.

    Returns:
        Pixels that became hole.
    """
    fresh = piece > area
    added = int(np.count_nonzero(fresh))
    if added <= room:
        np.logical_or(area, piece, area)
        return added
    if abs(step[0]) < abs(step[1]):
        area, fresh = area.T, fresh.T
    if max(step, key=abs) < 0:
        area, fresh = area[:, ::-1], fresh[:, ::-1]
    ends = np.cumsum(np.add.reduce(fresh, axis=0, dtype=np.intp))
    whole = int(np.searchsorted(ends, room, side="right"))  # columns, in the brush's direction, that fit entirely
    np.logical_or(area[:, :whole], fresh[:, :whole], area[:, :whole])
    rest = room - (int(ends[whole - 1]) if whole else 0)
    area[np.flatnonzero(fresh[:, whole])[:rest], whole] = True
    return room


def _steps(size: int) -> list[tuple[int, int]]:
    """Step vectors in whole pixels in all directions: index ^ 2 mirrors x, index ^ 1 mirrors y."""
    quarter = [
        (round(length * math.cos(angle)), round(length * math.sin(angle)))
        for length in np.linspace(SHORTEST, LONGEST, LENGTHS) * size
        for angle in np.linspace(0, math.pi / 2, ANGLES)
    ]
    return [(sx * dx, sy * dy) for dx, dy in quarter for sx in (1, -1) for sy in (1, -1)]


def _stamp(step: tuple[int, int], radius: int) -> Stamp:
    """The points within `radius` of the segment from 0 to `step`, in whole-number arithmetic."""
    dx, dy = step
    x = np.arange(min(dx, 0) - radius, max(dx, 0) + radius + 1)[None]
    y = np.arange(min(dy, 0) - radius, max(dy, 0) + radius + 1)[:, None]
    length2, radius2 = dx * dx + dy * dy, radius * radius
    along, across = x * dx + y * dy, x * dy - y * dx
    beside = (along > 0) & (along < length2) & (across * across <= radius2 * length2)
    bitmap = beside | (x * x + y * y <= radius2) | ((x - dx) ** 2 + (y - dy) ** 2 <= radius2)
    return Stamp(bitmap, int(bitmap.sum()), min(dx, 0) - radius, min(dy, 0) - radius)


def _overlap(mask: np.ndarray, stamp: Stamp, x: int, y: int) -> tuple[np.ndarray, np.ndarray]:
    """The part of the mask under a stamp whose segment starts at (x, y), and the part of the stamp inside the mask."""
    left, top = x + stamp.left, y + stamp.top
    height, width = stamp.bitmap.shape
    area = mask[max(top, 0) : top + height, max(left, 0) : left + width]
    if area.shape == (height, width):
        return area, stamp.bitmap
    above, before = max(-top, 0), max(-left, 0)
    return area, stamp.bitmap[above : above + area.shape[0], before : before + area.shape[1]]
