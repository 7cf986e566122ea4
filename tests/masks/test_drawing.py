import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inpaint.config.holes import CentreHole, FreeFormHoles, HalfHoles, RectangleHoles
from inpaint.masks import centre_mask, counts_in, make_holes

BINS = [(0.0, 0.01), (0.01, 0.1), (0.1, 0.2), (0.2, 0.3), (0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (0.8, 1.0)]


@pytest.mark.parametrize("config", [FreeFormHoles(), RectangleHoles()], ids=lambda config: config.kind)
@pytest.mark.parametrize("ratio", BINS, ids=str)
def test_every_drawn_hole_lies_in_the_bin_that_was_asked_for(config, ratio):
    draw = make_holes(config, 64, ratio=ratio)
    for seed in range(25):
        mask = draw(np.random.default_rng(seed))
        assert mask.shape == (64, 64)
        assert mask.dtype == np.uint8
        assert set(np.unique(mask)) == {0, 1}
        assert ratio[0] < mask.mean() <= ratio[1]


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 40), st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**32))
def test_strokes_hit_any_bin_at_any_size_or_say_that_no_hole_can(size, a, b, seed):
    low, high = sorted((a, b))
    possible = [n for n in range(1, size * size) if low < n / size**2 <= high]
    if low < high and not possible:
        with pytest.raises(ValueError, match="widen the bin"):
            make_holes(FreeFormHoles(), size, ratio=(low, high))
    elif low < high:
        mask = make_holes(FreeFormHoles(), size, ratio=(low, high))(np.random.default_rng(seed))
        assert mask.sum() in possible


def test_strokes_spread_their_ratios_evenly_over_the_bin():
    draw = make_holes(FreeFormHoles(ratio=(0.1, 0.5)), 64)
    ratios = [draw(np.random.default_rng(seed)).mean() for seed in range(400)]
    assert np.histogram(ratios, bins=4, range=(0.1, 0.5))[0].min() > 70  # of 100 expected in each quarter
    assert np.mean(ratios) == pytest.approx(0.3, abs=0.02)


def test_equal_ends_ask_for_exactly_that_ratio():
    draw = make_holes(FreeFormHoles(ratio=(0.25, 0.25)), 32)
    assert {draw(np.random.default_rng(seed)).mean() for seed in range(10)} == {0.25}


def test_the_same_generator_draws_the_same_hole_and_another_seed_another_one():
    for config in (FreeFormHoles(), RectangleHoles(), HalfHoles()):
        first, again = make_holes(config, 64), make_holes(config, 64)
        for seed in range(5):  # the second maker has drawn something else before
            again(np.random.default_rng(seed + 100))
            assert np.array_equal(first(np.random.default_rng(seed)), again(np.random.default_rng(seed)))
        drawn = {first(np.random.default_rng(seed)).tobytes() for seed in range(40)}
        assert len(drawn) == (4 if config.kind == "half" else 40)


def test_a_drawn_hole_is_the_callers_to_change():
    for config in (FreeFormHoles(), RectangleHoles(), HalfHoles(), CentreHole()):
        draw = make_holes(config, 32)
        before = draw(np.random.default_rng(0)).copy()
        draw(np.random.default_rng(0))[:] = 7
        assert np.array_equal(draw(np.random.default_rng(0)), before)


def test_one_rectangle_has_straight_sides():
    draw = make_holes(RectangleHoles(most=1), 48, ratio=(0.2, 0.3))
    for seed in range(10):
        mask = draw(np.random.default_rng(seed))
        rows, columns = np.nonzero(mask)
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert mask.sum() == height * width


def test_more_rectangles_are_drawn_when_more_are_allowed():
    draw = make_holes(RectangleHoles(most=4), 48, ratio=(0.1, 0.3))
    shapes = [draw(np.random.default_rng(seed)) for seed in range(30)]
    full = [mask.sum() == (np.ptp(np.nonzero(mask)[0]) + 1) * (np.ptp(np.nonzero(mask)[1]) + 1) for mask in shapes]
    assert 0 < sum(full) < 20  # one in four draws a single one


def test_the_four_halves_come_equally_often_and_leave_the_middle_of_an_odd_size_known():
    draw = make_holes(HalfHoles(), 5)
    sides = {draw(np.random.default_rng(seed)).tobytes() for seed in range(60)}
    assert len(sides) == 4
    assert {np.frombuffer(side, np.uint8).sum() for side in sides} == {10}  # two of five lines
    assert all(np.frombuffer(side, np.uint8).reshape(5, 5)[2, 2] == 0 for side in sides)


def test_the_context_encoders_hole_is_rows_and_columns_32_to_95_of_128():
    mask = centre_mask(128, hole=64)  # context encoder spec, acceptance fact 6
    assert mask.shape == (1, 1, 128, 128)
    assert torch.equal(mask[0, 0, 32:96, 32:96], torch.ones(64, 64))
    assert mask.sum() == 64 * 64
    drawn = make_holes(CentreHole(share=0.5), 128)(np.random.default_rng(0))
    assert np.array_equal(drawn, mask[0, 0].numpy())


@pytest.mark.parametrize("hole", [0, 16, 20])
def test_a_centre_hole_must_be_smaller_than_the_image(hole):
    with pytest.raises(ValueError, match="expected 1 to 15"):
        centre_mask(16, hole=hole)


def test_kinds_of_fixed_ratio_refuse_a_bin_and_a_single_pixel_is_no_image():
    with pytest.raises(ValueError, match="half have a fixed ratio"):
        make_holes(HalfHoles(), 16, ratio=(0.1, 0.2))
    with pytest.raises(ValueError, match="expected 2 or more"):
        make_holes(HalfHoles(), 1)


def test_bins_are_open_below_and_closed_above():
    assert counts_in((0.1, 0.2), 100) == (11, 20)
    assert counts_in((0.29, 0.3), 100) == (30, 30)  # 0.29 * 100 is 28.999... in floating point
    assert counts_in((0.0, 1.0), 100) == (1, 99)  # never nothing, never everything
    with pytest.raises(ValueError, match="widen the bin"):
        counts_in((0.501, 0.509), 100)
    with pytest.raises(ValueError, match="low <= high"):
        counts_in((0.5, 0.1), 100)
