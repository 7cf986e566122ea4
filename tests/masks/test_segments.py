"""Painted segments beside their definition: every pixel within half the width of the line between two pixels."""

import hashlib
import math

import numpy as np
import pytest

from inpaint.config.holes import FreeFormHoles
from inpaint.masks import make_holes
from inpaint.masks.segments import paint_lines, paint_strokes


def painted(size, start, end, width):
    """A single segment; its end must lie inside, or on the border behind the last pixel."""
    mask = np.zeros((size, size), np.uint8)
    across, down = end[0] - start[0] + 0.5, end[1] - start[1] + 0.5  # ends are cut off to whole pixels
    columns = (np.array([[value]]) for value in (math.atan2(down, across), math.hypot(across, down), width))
    paint_lines(mask, np.array([start]), np.array([1]), *columns)
    return mask


def within(size, start, end, width):
    """By the distance of each pixel to the segment, squared and in whole numbers as far as they go."""
    x, y = np.meshgrid(np.arange(size), np.arange(size))
    step = np.array(end) - start
    along = np.clip(((x - start[0]) * step[0] + (y - start[1]) * step[1]) / max(step @ step, 1), 0, 1)
    distance2 = (x - start[0] - along * step[0]) ** 2 + (y - start[1] - along * step[1]) ** 2
    return 4 * distance2 <= width * width + 1e-9


def test_a_segment_is_as_wide_as_asked_with_round_ends():
    mask = painted(9, (2, 4), (6, 4), width=3)  # 1.5 from the segment: a diagonal step past its end is 1.41
    assert mask[3:6].tolist() == [[0, 1, 1, 1, 1, 1, 1, 1, 0]] * 3
    assert mask.sum() == 21
    disc = painted(12, (3, 5), (7, 5), width=4)  # a disc of radius 2 has rows of 1, 3 or 5 pixels; here stretched by 4
    assert disc.sum(axis=1).tolist() == [0, 0, 0, 5, 7, 9, 7, 5, 0, 0, 0, 0]


def test_segments_of_any_direction_and_width_cover_the_pixels_near_them_also_from_outside():
    rng = np.random.default_rng(0)
    for _ in range(1500):
        size = int(rng.integers(2, 40))
        start, end = rng.integers(-6, size + 6, 2).tolist(), rng.integers(0, size + 1, 2).tolist()
        width = int(rng.integers(1, 30))
        assert np.array_equal(painted(size, start, end, width), within(size, start, end, width)), (start, end, width)


def test_lines_go_on_where_their_last_segment_ended_and_stay_inside():
    mask = np.zeros((8, 8), np.uint8)
    starts, counts = np.array([[1, 1], [6, 6]]), np.array([3, 0])
    angles, lengths = np.full((2, 3), [0, math.pi / 2, 0]), np.full((2, 3), [3.5, 4.5, 99])
    paint_lines(mask, starts, counts, angles, lengths, np.ones((2, 3), np.int64))
    expected = np.zeros((8, 8), np.uint8)
    expected[1, 1:5] = expected[1:6, 4] = expected[5, 4:] = 1
    assert np.array_equal(mask, expected)


@pytest.mark.parametrize(
    ("step", "axis", "kept"), [((4, 0), 1, [6, 9]), ((-4, 0), 1, [7, 10]), ((0, 4), 0, [6, 9]), ((0, -4), 0, [7, 10])]
)
def test_where_a_segment_is_too_much_its_end_is_left_out(step, axis, kept):
    mask, brush = np.zeros((16, 16), np.uint8), np.array([0, 8, 8, 2])
    wanted = 1 + 3 + 5 + 5  # the first lines of a disc of radius 2 around (8, 8), stretched
    assert paint_strokes(mask, np.full((1, 5), 0.5), np.array([step] * 4), np.array([2]), wanted, brush)
    places = np.nonzero(mask)[axis]
    assert [places.min(), places.max(), len(places)] == [*kept, wanted]


def test_strokes_are_the_same_pixels_on_every_machine():
    draw = make_holes(FreeFormHoles(), 64)
    drawn = b"".join(draw(np.random.default_rng(seed)).tobytes() for seed in range(50))
    assert hashlib.sha256(drawn).hexdigest()[:16] == "da722e35cbdf6b7b"
