"""The sums behind errors, beside numpy's in float64, in the form for a CPU and in the one for a GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from inpaint.evaluation import sums
from inpaint.evaluation.sums import luma, sum_pixels


@pytest.fixture(scope="module")
def scene():
    generator = torch.Generator().manual_seed(5)
    predicted, truth = (torch.rand(3, 3, 37, 50, generator=generator) for _ in range(2))
    mask = (torch.rand(3, 1, 37, 50, generator=generator) > 0.6).float()
    return predicted, truth, mask


def expected_of(predicted, truth, mask):
    predicted, truth, mask = (tensor.double().numpy() for tensor in (predicted, truth, mask))
    error = predicted - truth
    return {
        "absolute": np.abs(error),
        "square": error**2,
        "hole": mask,
        "absolute_in_hole": mask * np.abs(error),
        "square_in_hole": mask * error**2,
        "predicted": predicted,
        "truth": truth,
    }


@pytest.mark.parametrize("form", [sums._on_cpu, sums._on_device])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_sum_is_numpys(scene, form, channels):
    predicted, truth, mask = (tensor[:, :channels] for tensor in scene)
    found = form(predicted, truth, mask)
    for name, values in expected_of(predicted, truth, mask).items():
        assert getattr(found, name).numpy() == pytest.approx(values.reshape(3, -1).sum(axis=1), rel=1e-6), name


def test_luma_is_numpys(scene):
    weights = np.array([0.2125, 0.7154, 0.0721])[:, None, None]
    expected = (weights * scene[0].double().numpy()).sum(axis=1)
    assert luma(scene[0])[:, 0].numpy() == pytest.approx(expected, abs=1e-6)


def test_an_image_in_a_batch_has_the_digits_that_it_has_alone(scene):
    together = sum_pixels(*scene)
    for i in range(3):
        alone = sum_pixels(*(tensor[i : i + 1] for tensor in scene))
        assert all(torch.equal(together.__dict__[name][i : i + 1], alone.__dict__[name]) for name in vars(alone))


def test_strided_images_are_summed_as_they_look(scene):
    turned = [tensor.contiguous(memory_format=torch.channels_last) for tensor in scene]
    one, other = sum_pixels(*scene), sum_pixels(*turned)
    assert all(torch.equal(one.__dict__[name], other.__dict__[name]) for name in vars(one))
