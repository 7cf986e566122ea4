"""The rule of hybrid dilated convolution; numbers from the HDC paper's examples, worked by hand."""

import pytest

from inpaint.config.dilations import largest_gap, leaves_gaps


@pytest.mark.parametrize(
    ("rates", "gap"),
    [([1, 2, 3], 2), ([1, 2, 9], 5), ([1, 2, 3, 1, 2, 3], 2), ([2, 4, 8, 16], 4), ([1, 1, 1, 1], 1)],
)
def test_the_largest_gap_follows_equation_3(rates, gap):
    assert largest_gap(rates) == gap


@pytest.mark.parametrize(
    ("rates", "missed"),
    [([1, 2, 3, 1, 2, 3], False), ([1, 2, 9], True), ([2, 4, 8, 16], True), ([2, 4], True), ([1] * 6, False)],
)
def test_a_cascade_misses_pixels_beyond_the_kernel_or_with_a_common_divisor(rates, missed):
    assert leaves_gaps(rates) is missed


def test_rates_up_to_the_kernel_that_share_a_divisor_still_miss_pixels():
    assert largest_gap([2, 2, 2]) == 2
    assert leaves_gaps([2, 2, 2])
