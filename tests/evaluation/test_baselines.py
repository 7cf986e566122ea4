from __future__ import annotations

import numpy as np
import pytest
import torch

from inpaint.evaluation.baselines import BASELINES, mean_colour
from inpaint.evaluation.telea import telea_inpaint


def ramp(size=24):
    columns = torch.arange(size) / size
    return columns.expand(1, 3, size, size).clone()


def square_hole(size=24, low=8, high=15):
    mask = torch.zeros(1, 1, size, size)
    mask[..., low:high, low:high] = 1
    return mask


def test_mean_colour_is_the_mean_of_the_known_pixels_of_each_channel():
    image = torch.zeros(1, 3, 4, 4)
    image[:, 0, :2] = 0.8
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., 3, :] = 1
    filled = mean_colour(image, mask)
    assert filled[0, :, 3, 0].tolist() == pytest.approx([0.8 * 8 / 12, 0, 0])
    assert mean_colour(image, torch.ones(1, 1, 4, 4)).unique().tolist() == [0.5]


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_ignores_what_lies_in_the_hole_and_keeps_its_shape_and_range(name):
    image, mask = ramp(), square_hole()
    filled = BASELINES[name](image * (1 - mask), mask)
    assert torch.equal(filled, BASELINES[name](image * (1 - mask) + mask, mask))
    assert filled.shape == image.shape
    assert filled.min() >= 0
    assert filled.max() <= 1


@pytest.mark.parametrize("name", ["biharmonic", "telea"])
def test_smooth_fills_continue_a_constant_exactly_and_a_ramp_nearly(name):
    mask = square_hole()
    flat = torch.full((1, 3, 24, 24), 0.3)
    assert BASELINES[name](flat * (1 - mask), mask).numpy() == pytest.approx(0.3, abs=1e-5)
    error = (BASELINES[name](ramp() * (1 - mask), mask) - ramp()).abs().max()
    assert error < 2.5 / 24


@pytest.mark.parametrize("name", BASELINES)
def test_no_hole_and_nothing_but_hole_are_filled_without_complaint(name):
    image = ramp()
    assert torch.isfinite(BASELINES[name](image, torch.zeros(1, 1, 24, 24))).all()
    assert torch.isfinite(BASELINES[name](image * 0, torch.ones(1, 1, 24, 24))).all()


def test_telea_marches_inward_so_a_hole_one_pixel_wide_takes_its_neighbours():
    """A line between 0.2 on the left and 0.6 on the right: symmetric weights give the middle."""
    image = np.full((9, 9, 1), 0.2)
    image[:, 5:] = 0.6
    hole = np.zeros((9, 9), bool)
    hole[:, 4] = True
    filled = telea_inpaint(image, hole, radius=2)
    assert filled[4, 4, 0] == pytest.approx(0.4, abs=0.03)
    assert np.array_equal(filled[~hole], image[~hole])
