"""Painting segments with round ends, row by row, in whole-number arithmetic: the same pixels on every machine.

A segment's pixels are those within half its width of the line between two pixels; in each row they lie side by side.
"""

from __future__ import annotations

import math

import numpy as np

from inpaint.compiled import compiled

LIFT = 0.15  # chance that a brush is lifted after a segment of a stroke


@compiled
def paint_lines(mask, starts, counts, angles, lengths, widths):
    """Set the pixels of lines of segments, whose points are kept inside the image.

    Args:
        mask: [size, size] uint8.
        starts: first points (x, y), [L, 2].
        counts: segments of each line, [L].
        angles, lengths: of each segment, angles from the x axis, [L, S] float64.
        widths: in pixels, [L, S].
    """
    size = mask.shape[0]
    spans = np.empty((size, 2), np.int64)
    for line in range(len(starts)):
        x, y = starts[line]
        for i in range(counts[line]):
            end_x = min(max(int(x + lengths[line, i] * math.cos(angles[line, i])), 0), size)
            end_y = min(max(int(y + lengths[line, i] * math.sin(angles[line, i])), 0), size)
            _paint(mask, spans, *_find_spans(x, y, end_x, end_y, widths[line, i], spans))
            x, y = end_x, end_y


@compiled
def paint_strokes(mask, numbers, steps, radii, wanted, brush):
    """Paint segments until exactly `wanted` pixels are set, or the numbers are used up.

    Args:
        mask: [size, size] uint8.
        numbers: five per segment, in [0, 1): direction, x, y, radius, whether the brush is lifted afterwards, [N, 5].
        steps: of a segment, (x, y), [S, 2]; index ^ 2 mirrors x, index ^ 1 mirrors y.
        radii: of the brush, [R].
        brush: pixels set, x, y, radius (0 when it is lifted), [4] int64; is taken from here and left here.

    Returns:
        Whether all of them are set.
    """
    size = mask.shape[0]
    spans = np.empty((size, 2), np.int64)
    covered, x, y, radius = brush
    for turn, across, down, pick, lift in numbers:
        if not radius:
            x, y, radius = int(across * size), int(down * size), radii[int(pick * len(radii))]
        index = int(turn * len(steps))
        if not 0 <= x + steps[index, 0] < size:
            index ^= 2
        if not 0 <= y + steps[index, 1] < size:
            index ^= 1
        end_x, end_y = x + steps[index, 0], y + steps[index, 1]
        top, bottom = _find_spans(x, y, end_x, end_y, 2 * radius, spans)
        fresh, room = _fresh(mask, spans, top, bottom), wanted - covered
        if fresh >= room:
            if abs(end_x - x) < abs(end_y - y):
                _paint_beginning(mask.T, y, x, end_y, end_x, 2 * radius, room)
            else:
                _paint_beginning(mask, x, y, end_x, end_y, 2 * radius, room)
            return True
        _paint(mask, spans, top, bottom)
        covered, x, y = covered + fresh, end_x, end_y
        if lift < LIFT:
            radius = 0
    brush[0], brush[1], brush[2], brush[3] = covered, x, y, radius
    return False


@compiled
def _paint(mask, spans, top, bottom):
    for y in range(top, bottom):
        mask[y, spans[y, 0] : spans[y, 1]] = 1


@compiled
def _fresh(mask, spans, top, bottom):
    """How many pixels are not set yet."""
    fresh = 0
    for y in range(top, bottom):
        fresh += spans[y, 1] - spans[y, 0] - _total(mask[y, spans[y, 0] : spans[y, 1]])
    return fresh


@compiled
def _total(row):
    total = np.int32(0)
    for x in range(row.size):
        total = np.int32(total + row[x])
    return total


@compiled
def _paint_beginning(mask, x0, y0, x1, y1, width, room):
    """Set the first `room` pixels of a segment that are not set yet: along x from its beginning, then along y."""
    left, right = _reach(x0, x1, width, mask.shape[1])
    top, bottom = _reach(y0, y1, width, mask.shape[0])
    for i in range(right - left):
        x = left + i if x1 >= x0 else right - 1 - i
        for y in range(top, bottom):
            if room and not mask[y, x] and _covers(x - x0, y - y0, x1 - x0, y1 - y0, width):
                mask[y, x] = 1
                room -= 1


@compiled
def _find_spans(x0, y0, x1, y1, width, spans):
    """Where a segment lies inside the image.

    Args:
        x0, y0, x1, y1: its ends, which may lie outside.
        width: in pixels.
        spans: for each row the first column and the one after the last, [size, 2]; written here.

    Returns:
        The first row and the one after the last.
    """
    dx, dy, size = x1 - x0, y1 - y0, len(spans)
    left, right = _reach(x0, x1, width, size)
    top, bottom = _reach(y0, y1, width, size)
    first = last = min(max(x0 if y0 < y1 else x1, left), right)
    for y in range(top, bottom):
        # Both ends are looked for from where they were in the row above.
        while first < right and not _covers(first - x0, y - y0, dx, dy, width):
            first += 1
        if first == right:  # this row ends before that one began
            first = left
            while first < right and not _covers(first - x0, y - y0, dx, dy, width):
                first += 1
        last = max(last, first)
        while last > first and not _covers(last - 1 - x0, y - y0, dx, dy, width):
            last -= 1
        while last < right and _covers(last - x0, y - y0, dx, dy, width):
            last += 1
        while first > left and _covers(first - 1 - x0, y - y0, dx, dy, width):
            first -= 1
        spans[y, 0], spans[y, 1] = first, last
    return top, bottom


@compiled
def _reach(a, b, width, size):
    """The first row, or column, of a segment between two of them, and the one after its last."""
    start = min(max(min(a, b) - width // 2, 0), size)
    return start, max(min(max(a, b) + width // 2 + 1, size), start)


@compiled
def _covers(x, y, dx, dy, width):
    """Whether a point lies within half of `width` of the segment from 0 to (dx, dy)."""
    along, across, length2, width2 = x * dx + y * dy, x * dy - y * dx, dx * dx + dy * dy, width * width
    if 0 < along < length2:
        return 4 * across * across <= width2 * length2
    return 4 * (x * x + y * y) <= width2 or 4 * ((x - dx) ** 2 + (y - dy) ** 2) <= width2
