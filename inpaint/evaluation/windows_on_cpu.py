"""SSIM in one pass over memory: a row's windows are summed and scored while it is in the processor's cache.

Rows hold the moments of u = a + b and v = a - b, one below the other: u, v, u², v². See `windows`. SSIM is exactly 1 in
a window that shows no difference, so that only positions around differences are computed: those around the hole of a
composite. Every plane is scored alone: no digit depends on its batch.
"""

from __future__ import annotations

import numpy as np

from inpaint.compiled import compiled_sums
from inpaint.evaluation.windows import MARGIN, TAPS

ONE = np.float32(1)
RENEWED = 32  # rows, after which sums that slide are made anew: they would gather rounding errors
SUMMED = 7  # columns of a window that are added up anew for each, which is vectorised; sums of wider ones slide
MOST = 0x7FFFFFFF  # tells the compiler that an index is not negative, which it then need not ask in a loop


@compiled_sums
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
    spans = np.empty((height, 2), np.int32)
    within = max(height - 2 * MARGIN, 0) * max(width - 2 * MARGIN, 0)
    for plane in range(planes):
        everywhere = inside = 0.0  # how much is missing to 1
        _find_differences(a[plane], b[plane], spans)
        _zeros(row)
        for bottom in range(-MARGIN, height + MARGIN):
            if bottom == height:
                _zeros(row)
            left, right = _around(spans, bottom - 2 * MARGIN, bottom + 2 * MARGIN, width)
            if 0 <= bottom < height:
                _moments(a[plane, bottom], b[plane, bottom], max(left - MARGIN, 0), min(right + MARGIN, width), row)
            for moment in range(4):
                _along(row[moment], weights, left, right, weighed[moment, (bottom + MARGIN) % TAPS])
            middle = bottom - MARGIN
            left, right = _around(spans, middle - MARGIN, middle + MARGIN, width)
            if middle >= 0 and left < right:
                for moment in range(4):
                    _down(weighed[moment], middle, weights, left, right, means[moment])
                _score(means, c1, c2, left, right, scores)
                everywhere += _missing(scores, left, right)
                if MARGIN <= middle < height - MARGIN:
                    inside += _missing(scores, max(left, MARGIN), max(min(right, width - MARGIN), 0))
        out[plane, 0] = 1 - everywhere / (height * width)
        out[plane, 1] = 1 - inside / within if within else np.nan


@compiled_sums
def uniform_ssim(a, b, taps, c1, c2, out):
    """Mean SSIM of each plane over every uniform window inside it, from sums that slide.

    Args:
        a, b: [P, H, W] float32 in [0, 1].
        taps: how many pixels the window is wide and high.
        c1, c2: twice the constants of SSIM, float32; the second divided by what unbiases a variance.
        out: [P] float64.
    """
    planes, height, width = a.shape
    columns = np.empty((4, width), np.float32)
    means = np.empty((4, width - taps + 1), np.float32)
    scores = np.empty(width - taps + 1, np.float32)
    spans = np.empty((height, 2), np.int32)
    for plane in range(planes):
        one, other, missing = a[plane], b[plane], 0.0
        _find_differences(one, other, spans)
        columns[:] = 0
        start, stop = _rows(spans, taps)
        first, last = _seen(spans, 0, height, width)
        left, right = max(first - taps + 1, 0), min(last + taps - 1, width)
        for bottom in range(start, stop):
            top = bottom - taps + 1
            if top <= start:
                _enter(columns, one[bottom], other[bottom], left, right)
            elif bottom % RENEWED == 0:
                columns[:] = 0
                for y in range(top, bottom + 1):
                    _enter(columns, one[y], other[y], left, right)
            else:
                _move(columns, one[bottom], other[bottom], one[top - 1], other[top - 1], left, right)
            first, last = _seen(spans, top, bottom, width)
            if top >= start and first < last:
                within = max(first - taps + 1, 0), min(last, scores.size)
                if taps == SUMMED:
                    _add_up(columns, *within, means)
                else:
                    _slide(columns, taps, *within, means)
                _score(means, c1, c2, *within, scores)
                missing += _missing(scores, *within)
        out[plane] = 1 - missing / (scores.size * (height - taps + 1))


@compiled_sums
def _find_differences(a, b, spans):
    """The first differing column of each row and the one after the last; the width and 0 where rows are equal."""
    for y in range(a.shape[0]):
        spans[y, 0], spans[y, 1] = _differing(a[y], b[y])


@compiled_sums
def _differing(a, b):
    first, last = np.int32(a.size), np.int32(0)
    for j in range(np.int32(a.size)):
        differs = a[j] != b[j]
        first = min(first, j if differs else np.int32(a.size))
        last = max(last, j + np.int32(1) if differs else np.int32(0))
    return first, last


@compiled_sums
def _seen(spans, top, bottom, width):
    """The first column in which any of these rows differs and the one after the last; the width and 0 if none does."""
    first, last = width, 0
    for y in range(max(top, 0), min(bottom + 1, spans.shape[0])):
        first, last = min(first, spans[y, 0]), max(last, spans[y, 1])
    return first, last


@compiled_sums
def _around(spans, top, bottom, width):
    """At which columns of a row windows of 11 taps meet such a difference."""
    first, last = _seen(spans, top, bottom, width)
    if first < last:
        return max(first - MARGIN, 0), min(last + MARGIN, width)
    return 0, 0


@compiled_sums
def _rows(spans, taps):
    """The first row that a window with a difference meets and the one after the last; 0 and 0 if none does."""
    start = stop = 0
    for y in range(spans.shape[0]):
        if spans[y, 0] < spans[y, 1]:
            start = start if stop else max(y - taps + 1, 0)
            stop = min(y + taps, spans.shape[0])
    return start, stop


@compiled_sums
def _missing(scores, left, right):
    total = np.float32(0)
    for j in range(left & MOST, right & MOST):
        total += ONE - scores[j]
    return total


@compiled_sums
def _zeros(row):
    """The moments of u = -1, v = 0: a and b are 0 there, and u is taken less 1."""
    row[0] = -ONE
    row[1] = 0
    row[2] = ONE
    row[3] = 0


@compiled_sums
def _moments(a, b, left, right, row):
    for j in range(left & MOST, right & MOST):
        u, v = a[j] + b[j] - ONE, a[j] - b[j]
        row[0, MARGIN + j] = u
        row[1, MARGIN + j] = v
        row[2, MARGIN + j] = u * u
        row[3, MARGIN + j] = v * v


@compiled_sums
def _along(row, w, left, right, out):
    """The window's sum along a row; its taps are written out, to stay in registers."""
    for j in range(left & MOST, right & MOST):
        out[j] = (
            w[0] * row[j + 5]
            + w[1] * (row[j + 4] + row[j + 6])
            + w[2] * (row[j + 3] + row[j + 7])
            + w[3] * (row[j + 2] + row[j + 8])
            + w[4] * (row[j + 1] + row[j + 9])
            + w[5] * (row[j] + row[j + 10])
        )


@compiled_sums
def _down(rows, top, w, left, right, out):
    """The window's sum down eleven rows that are kept in turn; in two loops, of no more rows than are vectorised."""
    r0, r1, r2, r3 = rows[top % TAPS], rows[(top + 1) % TAPS], rows[(top + 2) % TAPS], rows[(top + 3) % TAPS]
    r4, r5, r6, r7 = rows[(top + 4) % TAPS], rows[(top + 5) % TAPS], rows[(top + 6) % TAPS], rows[(top + 7) % TAPS]
    r8, r9, r10 = rows[(top + 8) % TAPS], rows[(top + 9) % TAPS], rows[(top + 10) % TAPS]
    for j in range(left & MOST, right & MOST):
        out[j] = w[0] * r5[j] + w[1] * (r4[j] + r6[j]) + w[2] * (r3[j] + r7[j])
    for j in range(left & MOST, right & MOST):
        out[j] += w[3] * (r2[j] + r8[j]) + w[4] * (r1[j] + r9[j]) + w[5] * (r0[j] + r10[j])


@compiled_sums
def _score(means, c1, c2, left, right, out):
    """SSIM from means of moments, u being taken less 1."""
    for j in range(left & MOST, right & MOST):
        mean_u, mean_v = means[0, j], means[1, j]
        square_u, square_v = (mean_u + ONE) * (mean_u + ONE) + c1, mean_v * mean_v
        spread_u, spread_v = means[2, j] - mean_u * mean_u + c2, means[3, j] - square_v
        out[j] = ((square_u - square_v) * (spread_u - spread_v)) / ((square_u + square_v) * (spread_u + spread_v))


@compiled_sums
def _enter(columns, a, b, left, right):
    for j in range(left & MOST, right & MOST):
        u, v = a[j] + b[j] - ONE, a[j] - b[j]
        columns[0, j] += u
        columns[1, j] += v
        columns[2, j] += u * u
        columns[3, j] += v * v


@compiled_sums
def _move(columns, a, b, old_a, old_b, left, right):
    """A row enters and another one leaves."""
    for j in range(left & MOST, right & MOST):
        u, v = a[j] + b[j] - ONE, a[j] - b[j]
        old_u, old_v = old_a[j] + old_b[j] - ONE, old_a[j] - old_b[j]
        columns[0, j] += u - old_u
        columns[1, j] += v - old_v
        columns[2, j] += u * u - old_u * old_u
        columns[3, j] += v * v - old_v * old_v


@compiled_sums
def _add_up(columns, left, right, means):
    """Means over windows of `SUMMED` neighbouring columns."""
    for moment in range(4):
        _mean_of_neighbours(columns[moment], left, right, means[moment])


@compiled_sums
def _mean_of_neighbours(row, left, right, out):
    share = ONE / np.float32(SUMMED * SUMMED)
    for j in range(left & MOST, right & MOST):
        total = row[j]
        for place in range(1, SUMMED):
            total += row[j + place]
        out[j] = total * share


@compiled_sums
def _slide(columns, taps, left, right, means):
    """Means over windows of `taps` neighbouring columns."""
    share = 1 / (taps * taps)
    u = v = uu = vv = 0.0
    for j in range(left, left + taps):
        u += columns[0, j]
        v += columns[1, j]
        uu += columns[2, j]
        vv += columns[3, j]
    means[0, left], means[1, left], means[2, left], means[3, left] = u * share, v * share, uu * share, vv * share
    for j in range(left + 1 & MOST, right & MOST):
        new, old = j + taps - 1, j - 1
        u += columns[0, new] - columns[0, old]
        v += columns[1, new] - columns[1, old]
        uu += columns[2, new] - columns[2, old]
        vv += columns[3, new] - columns[3, old]
        means[0, j], means[1, j], means[2, j], means[3, j] = u * share, v * share, uu * share, vv * share
