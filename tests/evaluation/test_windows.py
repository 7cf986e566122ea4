"""The two ways a window is filtered, the border, and that neither batch nor chunk moves a digit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, uniform_filter

from inpaint.evaluation.windows import Moments, Window, _convolved, _filtered, _shifted


@pytest.fixture(scope="module")
def planes():
    return torch.rand(1, 3, 70, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("taps", [7, 11, 51])
def test_a_uniform_window_is_scipys_mean_over_whole_windows_in_one_stage_or_two(planes, taps):
    margin = taps // 2
    whole = np.s_[:, margin : 70 - margin, margin : 64 - margin]
    expected = uniform_filter(planes[0].double().numpy(), (0, taps, taps))[whole]
    assert _filtered(planes, Window(taps))[0].numpy() == pytest.approx(expected, abs=1e-6)


def test_a_window_of_51_pixels_takes_twenty_taps():
    assert [(len(weights), dilation) for weights, dilation in Window(51).stages] == [(3, 1), (17, 3)]
    assert [(len(weights), dilation) for weights, dilation in Window(11).stages] == [(11, 1)]


def test_the_gaussian_window_is_scipys_cut_at_five_pixels(planes):
    expected = gaussian_filter(planes[0].double().numpy(), (0, 1.5, 1.5), truncate=3.4)[:, 5:-5, 5:-5]
    assert _filtered(planes, Window(11, sigma=1.5))[0].numpy() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("dilation", [1, 3])
def test_the_form_for_a_gpu_gives_what_the_form_for_a_cpu_gives(planes, dilation):
    weights = [0.5, 0.2, 0.2, 0.1]
    assert torch.allclose(_shifted(planes, weights, dilation), _convolved(planes, weights, dilation), atol=1e-6)


def test_equal_planes_have_an_ssim_of_exactly_one_and_the_border_adds_its_windows(planes):
    moments = Moments(planes, planes, border=5)
    scores = moments.ssim(Window(11, sigma=1.5))
    assert scores.chunks[0].shape == (1, 3, 70, 64)
    assert scores.means().item() == 1
    assert scores.means(crop=5).item() == 1


def test_forty_planes_in_chunks_of_sixteen_give_the_digits_of_each_alone():
    generator = torch.Generator().manual_seed(3)
    a, b = (torch.rand(40, 1, 40, 300, generator=generator) for _ in range(2))
    window = Window(7, sample=True)
    together = Moments(a, b).ssim(window).means()
    alone = [Moments(a[i : i + 1], b[i : i + 1]).ssim(window).means() for i in range(40)]
    assert torch.equal(together, torch.cat(alone))
