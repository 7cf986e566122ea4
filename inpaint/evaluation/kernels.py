"""Scores of pixels in one pass over memory, for a CPU: a row is summed, weighed and scored while it is in the cache.

Each of these steps as an operation of its own over whole images costs four to eight times as much there. Compiled
when first called, and kept on disk where there is a place that can be written; without Python's lock, so that parts of
an evaluation run side by side. Every plane is computed alone: no digit depends on its batch.

Rows of SSIM hold the moments of u = a + b and v = a - b, one below the other: u, v, u², v². See `windows`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from inpaint.evaluation.windows import MARGIN, TAPS

ONE = np.float32(1)


def _compiled(function: Callable[..., Any]) -> Any:
    options = {"nogil": True, "fastmath": {"contract", "reassoc", "nsz"}, "error_model": "numpy"}
    try:
        return njit(function, cache=True, **options)
    except RuntimeError:  # neither beside this file nor in the user's cache
        return njit(function, **options)


@_compiled
def weigh_channels(images, weights, out):
    """[B, 3, H, W] float32 to [B, H, W] float32, by three weights."""
    for image in range(images.shape[0]):
        for y in range(images.shape[2]):
            _weigh(images[image, 0, y], images[image, 1, y], images[image, 2, y], weights, out[image, y])


@_compiled
def _weigh(red, green, blue, weights, out):
    for j in range(out.size):
        out[j] = weights[0] * red[j] + weights[1] * green[j] + weights[2] * blue[j]


@_compiled
def sum_pixels(predicted, truth, mask, grey, grey_truth, out):
    """The sums of `sums.Sums`, in its order.

    Args:
        predicted, truth: [B, 3, H, W] float32.
        mask, grey, grey_truth: [B, H, W] float32.
        out: [sums, B] float64.
    """
    out[:] = 0
    for image in range(predicted.shape[0]):
        for y in range(predicted.shape[2]):
            hole, grey_row, grey_true = mask[image, y], grey[image, y], grey_truth[image, y]
            for channel in range(3):
                row, true = predicted[image, channel, y], truth[image, channel, y]
                for place, value in enumerate(_errors(row, true, hole)):
                    out[place, image] += value
            for place, value in enumerate(_grey_errors(grey_row, grey_true, hole)):
                out[6 + place, image] += value


@_compiled
def gaussian_ssim(a, b, weights, c1, c2, out):
    """Mean SSIM of each plane under a symmetrical window of 11 taps, with zeros beyond the border.

    Args:
        a, b: [P, H, W] float32 in [0, 1].
        weights: of the middle tap and of its five neighbours outwards, six float32.
        c1, c2: twice the constants of SSIM, float32.
        out: [P, 2] float64: over all pixels, and over those whose window lies inside the plane; NaN where none does.
    """
    planes, height, width = a.shape
    row = np.empty((4, width + 2 * MARGIN), np.float32)
    weighed = np.empty((4, TAPS, width), np.float32)  # the last rows, in turn
    means = np.empty((4, width), np.float32)
    scores = np.empty(width, np.float32)
    for plane in range(planes):
        everywhere = inside = 0.0
        _zeros(row)
        for bottom in range(-MARGIN, height + MARGIN):
            if 0 <= bottom < height:
                _moments(a[plane, bottom], b[plane, bottom], row)
            elif bottom == height:
                _zeros(row)
            for moment in range(4):
                _along(row[moment], weights, weighed[moment, (bottom + MARGIN) % TAPS])
            middle = bottom - MARGIN
            if middle >= 0:
                for moment in range(4):
                    _down(weighed[moment], middle, weights, means[moment])
                _scored(means, c1, c2, scores)
                everywhere += _total(scores)
                if MARGIN <= middle < height - MARGIN:
                    inside += _total(scores[MARGIN : width - MARGIN])
        out[plane, 0] = everywhere / (height * width)
        within = max(height - 2 * MARGIN, 0) * max(width - 2 * MARGIN, 0)
        out[plane, 1] = inside / within if within else np.nan


@_compiled
def _total(row):
    total = np.float32(0)
    for j in range(row.size):
        total += row[j]
    return total


@_compiled
def uniform_ssim(a, b, taps, c1, c2, out):
    """Mean SSIM of each plane over every uniform window inside it, from sums that slide in float64.

    Args:
        a, b: [P, H, W] float32 in [0, 1].
        taps: how many pixels the window is wide and high.
        c1, c2: twice the constants of SSIM, float32; the second divided by what unbiases a variance.
        out: [P] float64.
    """
    planes, height, width = a.shape
    columns = np.empty((4, width), np.float64)
    means = np.empty((4, width - taps + 1), np.float32)
    scores = np.empty(width - taps + 1, np.float32)
    for plane in range(planes):
        one, other, total = a[plane], b[plane], 0.0
        columns[:] = 0
        for bottom in range(height):
            top = bottom - taps + 1
            if top <= 0:
                _enter(columns, one[bottom], other[bottom])
            else:
                _move(columns, one[bottom], other[bottom], one[top - 1], other[top - 1])
            if top >= 0:
                _slid(columns, taps, means)
                _scored(means, c1, c2, scores)
                total += _total(scores)
        out[plane] = total / (scores.size * (height - taps + 1))


@_compiled
def _errors(row, true, hole):
    absolute = square = hole_absolute = hole_square = values = true_values = np.float32(0)
    for j in range(row.size):
        error = row[j] - true[j]
        absolute += abs(error)
        square += error * error
        hole_absolute += hole[j] * abs(error)
        hole_square += hole[j] * (error * error)
        values += row[j]
        true_values += true[j]
    return absolute, square, hole_absolute, hole_square, values, true_values


@_compiled
def _grey_errors(row, true, hole):
    share = absolute = square = values = true_values = np.float32(0)
    for j in range(row.size):
        error = row[j] - true[j]
        share += hole[j]
        absolute += abs(error)
        square += error * error
        values += row[j]
        true_values += true[j]
    return share, absolute, square, values, true_values


@_compiled
def _zeros(row):
    """The moments of u = -1, v = 0: a and b are 0 there, and u is taken less 1."""
    row[0] = -ONE
    row[1] = 0
    row[2] = ONE
    row[3] = 0


@_compiled
def _moments(a, b, row):
    for j in range(a.size):
        u, v = a[j] + b[j] - ONE, a[j] - b[j]
        row[0, MARGIN + j] = u
        row[1, MARGIN + j] = v
        row[2, MARGIN + j] = u * u
        row[3, MARGIN + j] = v * v


@_compiled
def _along(row, w, out):
    """The window's sum along a row; its taps are written out, to stay in registers."""
    for j in range(out.size):
        out[j] = (
            w[0] * row[j + 5]
            + w[1] * (row[j + 4] + row[j + 6])
            + w[2] * (row[j + 3] + row[j + 7])
            + w[3] * (row[j + 2] + row[j + 8])
            + w[4] * (row[j + 1] + row[j + 9])
            + w[5] * (row[j] + row[j + 10])
        )


@_compiled
def _down(rows, top, w, out):
    """The window's sum down eleven rows that are kept in turn; in two loops, of no more rows than are vectorised."""
    r0, r1, r2, r3 = rows[top % TAPS], rows[(top + 1) % TAPS], rows[(top + 2) % TAPS], rows[(top + 3) % TAPS]
    r4, r5, r6, r7 = rows[(top + 4) % TAPS], rows[(top + 5) % TAPS], rows[(top + 6) % TAPS], rows[(top + 7) % TAPS]
    r8, r9, r10 = rows[(top + 8) % TAPS], rows[(top + 9) % TAPS], rows[(top + 10) % TAPS]
    for j in range(out.size):
        out[j] = w[0] * r5[j] + w[1] * (r4[j] + r6[j]) + w[2] * (r3[j] + r7[j])
    for j in range(out.size):
        out[j] += w[3] * (r2[j] + r8[j]) + w[4] * (r1[j] + r9[j]) + w[5] * (r0[j] + r10[j])


@_compiled
def _scored(means, c1, c2, out):
    """SSIM from means of moments, u being taken less 1."""
    for j in range(out.size):
        mean_u, mean_v = means[0, j], means[1, j]
        square_u, square_v = (mean_u + ONE) * (mean_u + ONE) + c1, mean_v * mean_v
        spread_u, spread_v = means[2, j] - mean_u * mean_u + c2, means[3, j] - square_v
        out[j] = ((square_u - square_v) * (spread_u - spread_v)) / ((square_u + square_v) * (spread_u + spread_v))


@_compiled
def _enter(columns, a, b):
    for j in range(a.size):
        u, v = np.float64(a[j]) + b[j] - 1, np.float64(a[j]) - b[j]
        columns[0, j] += u
        columns[1, j] += v
        columns[2, j] += u * u
        columns[3, j] += v * v


@_compiled
def _move(columns, a, b, old_a, old_b):
    """A row enters and another one leaves."""
    for j in range(a.size):
        u, v = np.float64(a[j]) + b[j] - 1, np.float64(a[j]) - b[j]
        old_u, old_v = np.float64(old_a[j]) + old_b[j] - 1, np.float64(old_a[j]) - old_b[j]
        columns[0, j] += u - old_u
        columns[1, j] += v - old_v
        columns[2, j] += u * u - old_u * old_u
        columns[3, j] += v * v - old_v * old_v


@_compiled
def _slid(columns, taps, means):
    """Means over windows of `taps` neighbouring columns."""
    share = 1 / (taps * taps)
    u = v = uu = vv = 0.0
    for j in range(taps):
        u += columns[0, j]
        v += columns[1, j]
        uu += columns[2, j]
        vv += columns[3, j]
    means[0, 0], means[1, 0], means[2, 0], means[3, 0] = u * share, v * share, uu * share, vv * share
    for j in range(1, means.shape[1]):
        u += columns[0, j + taps - 1] - columns[0, j - 1]
        v += columns[1, j + taps - 1] - columns[1, j - 1]
        uu += columns[2, j + taps - 1] - columns[2, j - 1]
        vv += columns[3, j + taps - 1] - columns[3, j - 1]
        means[0, j], means[1, j], means[2, j], means[3, j] = u * share, v * share, uu * share, vv * share
