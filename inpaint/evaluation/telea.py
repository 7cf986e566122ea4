"""Telea's inpainting: march from the hole's edge inward, each pixel a weighted mean of what is already known around it.

Source: A. Telea, "An image inpainting technique based on the fast marching method", Journal of Graphics Tools 2004.
"""

from __future__ import annotations

import heapq

import numpy as np
from scipy.ndimage import distance_transform_edt

_KNOWN, _BAND, _INSIDE = 0, 1, 2
_FAR = 1e6
_AROUND = ((-1, 0), (1, 0), (0, -1), (0, 1))


def telea_inpaint(image: np.ndarray, hole: np.ndarray, *, radius: int) -> np.ndarray:
    """The image with its hole filled.

    Args:
        image: float [H, W, C] in [0, 1]; what lies in the hole is ignored.
        hole: bool [H, W]; some pixel is known.
        radius: of the neighbourhood a pixel is filled from, in pixels (ε in the paper).

    Returns:
        float [H, W, C]; known pixels unchanged, filled ones within [0, 1].
    """
    march = _March(image, hole, radius)
    while march.band:
        march.step()
    return march.pixels[radius + 1 : -radius - 1, radius + 1 : -radius - 1]


class _March:
    """State of the front, on planes padded so that no window leaves them; the padding is never known.

    Attributes:
        pixels: [H', W', C].
        state: known, in the band, or inside the hole, [H', W'].
        time: arrival of the front; negative outside the hole, [H', W'].
        band: heap of (time, row, column).
    """

    def __init__(self, image: np.ndarray, hole: np.ndarray, radius: int) -> None:
        pad = radius + 1
        self.radius = radius
        self.pixels = np.pad(np.where(hole[..., None], 0.0, image), ((pad, pad), (pad, pad), (0, 0)))
        self.state = np.pad(np.where(hole, _INSIDE, _KNOWN), pad, constant_values=_INSIDE)
        outside = distance_transform_edt(~hole)
        self.time = np.pad(np.where(hole, _FAR, 1 - outside), pad, constant_values=_FAR)
        self.real = np.pad(np.ones_like(hole), pad)
        self.band: list[tuple[float, int, int]] = []
        steps = np.arange(-radius, radius + 1)
        self.rows, self.columns = np.meshgrid(-steps, -steps, indexing="ij")  # from the neighbour to the pixel
        self.square = (self.rows**2 + self.columns**2).astype(float)
        self.disc = (self.square <= radius**2) & (self.square > 0)
        self.square[radius, radius] = 1
        for row, column in np.argwhere((self.state == _KNOWN) & self._beside_hole()):
            self.state[row, column] = _BAND
            self.time[row, column] = 0.0
            heapq.heappush(self.band, (0.0, int(row), int(column)))

    def _beside_hole(self) -> np.ndarray:
        inside = (self.state == _INSIDE) & self.real
        beside = np.zeros_like(inside)
        for down, right in _AROUND:
            beside |= np.roll(inside, (down, right), axis=(0, 1))
        return beside

    def step(self) -> None:
        """Settle the earliest pixel of the band, and fill its neighbours that are still inside."""
        _, row, column = heapq.heappop(self.band)
        if self.state[row, column] == _KNOWN:
            return
        self.state[row, column] = _KNOWN
        for down, right in _AROUND:
            i, j = row + down, column + right
            if not self.real[i, j] or self.state[i, j] == _KNOWN:
                continue
            arrival = min(self._solve(i + a, j, i, j + b) for a in (-1, 1) for b in (-1, 1))
            if arrival < self.time[i, j] or self.state[i, j] == _INSIDE:
                self.time[i, j] = arrival
                heapq.heappush(self.band, (arrival, i, j))
            if self.state[i, j] == _INSIDE:
                self._fill(i, j)
                self.state[i, j] = _BAND

    def _solve(self, i1: int, j1: int, i2: int, j2: int) -> float:
        """Arrival from two neighbours, one of each axis: |∇T| = 1."""
        known1, known2 = self.state[i1, j1] == _KNOWN, self.state[i2, j2] == _KNOWN
        first, second = float(self.time[i1, j1]), float(self.time[i2, j2])
        if known1 and known2:
            if abs(first - second) >= 1:
                return 1 + min(first, second)
            return (first + second + (2 - (first - second) ** 2) ** 0.5) / 2
        if known1 or known2:
            return 1 + (first if known1 else second)
        return _FAR

    def _fill(self, i: int, j: int) -> None:
        """The weighted mean of the paper's Eq. 2, with its direction, distance and level weights."""
        r = self.radius
        around = np.s_[i - r : i + r + 1, j - r : j + r + 1]
        usable = self.disc & (self.state[around] != _INSIDE)
        rows, columns = self.rows[usable], self.columns[usable]
        squares = self.square[usable]
        down, right = self._slope(i, j)
        direction = np.abs(rows * down + columns * right) / np.sqrt(squares)
        level = 1 / (1 + np.abs(self.time[around][usable] - self.time[i, j]))
        weight = np.maximum(direction, 1e-6) * level / squares
        # The paper adds ∇I · r to each value. OpenCV, whose Telea is the one in published tables, scales that sum to
        # about one grey level, and extrapolating costs 0.4 to 3 dB on three photographs: it is left out here.
        self.pixels[i, j] = weight @ self.pixels[around][usable] / weight.sum()

    def _slope(self, i: int, j: int) -> tuple[float, float]:
        """∇T from the neighbours that the front has reached."""
        slope = []
        for down, right in ((1, 0), (0, 1)):
            after, before = (i + down, j + right), (i - down, j - right)
            ahead = self.time[after] - self.time[i, j] if self.state[after] != _INSIDE else None
            behind = self.time[i, j] - self.time[before] if self.state[before] != _INSIDE else None
            found = [step for step in (ahead, behind) if step is not None]
            slope.append(float(sum(found)) / len(found) if found else 0.0)
        return slope[0], slope[1]
