"""Total variation at a hand-worked value and at its zero."""

import pytest
import torch

from inpaint.losses.variation import total_variation


def hole():
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 3:5, 3:5] = 1
    return mask


def test_ramp_under_a_small_hole_is_worked_by_hand():
    ramp = torch.arange(8.0).expand(1, 3, 8, 8)
    # the hole grown by one pixel is 4 × 4; 3 steps of 1 in each of 4 rows and 3 channels, over 3·8·8
    assert total_variation(ramp, hole()).item() == pytest.approx(36 / 192) == pytest.approx(0.1875)


def test_constant_image_and_absent_hole_have_none():
    assert total_variation(torch.full((2, 3, 8, 8), 0.3), hole().expand(2, -1, -1, -1)).item() == 0
    assert total_variation(torch.rand(1, 3, 8, 8), torch.zeros(1, 1, 8, 8)).item() == 0


def test_gradient_reaches_only_the_grown_hole():
    image = torch.rand(1, 3, 8, 8).requires_grad_()
    total_variation(image, hole()).backward()
    reached = image.grad.abs().sum((0, 1)) > 0

    assert reached[2:6, 2:6].sum() > 8  # opposite steps may cancel at a pixel
    reached[2:6, 2:6] = False
    assert not reached.any()
