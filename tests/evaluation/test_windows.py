"""SSIM of planes: both ways to compute it beside scikit-image's, the border, and that a batch moves no digit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, uniform_filter
from skimage.metrics import structural_similarity
from torch.nn import functional as F

from inpaint.evaluation import windows
from inpaint.evaluation.windows import gaussian_ssim, gaussian_ssim_map, uniform_ssim, wholly_inside

GAUSSIANS = [windows._gaussian_on_cpu, windows._gaussian_on_device]
UNIFORMS = [windows._uniform_on_cpu, windows._uniform_on_device]


@pytest.fixture(scope="module")
def planes():
    return torch.rand(1, 3, 70, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def noisy(planes):
    return (planes + 0.1 * torch.randn(planes.shape, generator=torch.Generator().manual_seed(2))).clamp(0, 1)


def of_scikit_image(one, other, taps, **how):
    """SSIM around every pixel of one channel, and without the pixels whose window reaches over the border."""
    one, other = one.double().numpy(), other.double().numpy()
    _, full = structural_similarity(one, other, data_range=1, win_size=taps, full=True, **how)
    margin = taps // 2
    return full[margin:-margin, margin:-margin]


@pytest.mark.parametrize("form", GAUSSIANS)
def test_the_gaussian_window_gives_scikit_images_mean_ssim_over_whole_windows(planes, noisy, form):
    how = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    expected = [of_scikit_image(planes[0, c], noisy[0, c], 11, **how).mean() for c in range(3)]
    assert form(planes, noisy)[1].item() == pytest.approx(np.mean(expected), abs=2e-6)


@pytest.mark.parametrize("form", GAUSSIANS)
def test_over_all_pixels_windows_reach_into_zeros_beyond_the_border(planes, noisy, form):
    padded = [F.pad(image, (10,) * 4) for image in (planes, noisy)]
    expected = _scores(*padded)[:, 10:-10, 10:-10].mean()
    assert form(planes, noisy)[0].item() == pytest.approx(expected, abs=2e-6)


def _scores(a, b):
    """scikit-image's SSIM of each channel around every pixel, [3, H, W]."""
    how = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1, "full": True}
    pairs = [(a[0, c].double().numpy(), b[0, c].double().numpy()) for c in range(3)]
    return np.stack([structural_similarity(*pair, win_size=11, **how)[1] for pair in pairs])


def test_the_map_is_scikit_images(planes, noisy):
    found = gaussian_ssim_map(planes, noisy)[0].numpy()
    assert found[:, 5:-5, 5:-5] == pytest.approx(_scores(planes, noisy)[:, 5:-5, 5:-5], abs=2e-5)


@pytest.mark.parametrize("form", GAUSSIANS)
def test_an_image_without_room_for_a_window_has_no_mean_over_whole_ones(form):
    everywhere, inside = form(torch.rand(1, 1, 10, 40), torch.rand(1, 1, 10, 40))
    assert 0 < abs(everywhere.item()) < 1
    assert inside.isnan().all()


@pytest.mark.parametrize("form", UNIFORMS)
@pytest.mark.parametrize("taps", [7, 11, 51])
def test_uniform_windows_give_scikit_images_mean_ssim(planes, noisy, form, taps):
    expected = [of_scikit_image(planes[0, c], noisy[0, c], taps).mean() for c in range(3)]
    assert form(planes, noisy, taps).item() == pytest.approx(np.mean(expected), abs=2e-6)


@pytest.mark.parametrize("taps", [7, 11, 51])
def test_a_uniform_window_is_scipys_mean_over_whole_windows_in_one_stage_or_two(planes, taps):
    margin = taps // 2
    whole = np.s_[:, margin : 70 - margin, margin : 64 - margin]
    expected = uniform_filter(planes[0].double().numpy(), (0, taps, taps))[whole]
    assert windows._filtered(planes, windows._stages(taps))[0].numpy() == pytest.approx(expected, abs=1e-6)


def test_a_window_of_51_pixels_takes_twenty_taps():
    assert [(len(weights), dilation) for weights, dilation in windows._stages(51)] == [(3, 1), (17, 3)]
    assert [(len(weights), dilation) for weights, dilation in windows._stages(11)] == [(11, 1)]


def test_the_gaussian_window_is_scipys_cut_at_five_pixels(planes):
    expected = gaussian_filter(planes[0].double().numpy(), (0, 1.5, 1.5), truncate=3.4)[:, 5:-5, 5:-5]
    assert windows._filtered(planes, ((windows._gaussian(), 1),))[0].numpy() == pytest.approx(expected, abs=1e-6)


def test_equal_planes_have_an_ssim_of_exactly_one(planes):
    assert all(score.item() == 1 for form in GAUSSIANS for score in form(planes, planes))
    assert all(form(planes, planes, 7).item() == 1 for form in UNIFORMS)


def test_images_that_differ_in_places_have_the_scores_of_all_their_windows():
    rng = np.random.default_rng(5)
    for case in range(150):
        height, width = rng.integers(1, 60, 2)
        a = torch.from_numpy(rng.random((1, 2, height, width), np.float32))
        b = a.clone()
        for _ in range(case % 4):
            top, left = rng.integers(0, height), rng.integers(0, width)
            b[:, case % 3 % 2 :, top : top + rng.integers(1, 20), left : left + rng.integers(1, 20)] *= 0.5
        for expected, found in zip(windows._gaussian_on_device(a, b), gaussian_ssim(a, b), strict=True):
            assert found.item() == pytest.approx(expected.item(), abs=3e-6, nan_ok=True)
        for taps in (3, 7, 11):
            if min(height, width) >= taps:
                expected = windows._uniform_on_device(a, b, taps).item()
                assert uniform_ssim(a, b, taps).item() == pytest.approx(expected, abs=3e-6)


@pytest.mark.parametrize("taps", [7, 11, 51])
def test_flat_rows_below_many_noisy_ones_keep_the_digits_of_float64(taps):
    rng = np.random.default_rng(0)
    a, b = (np.r_[rng.integers(0, 2, (1500, 64)), np.full((500, 64), level)].astype(np.float32) for level in (1, 0.99))
    expected = structural_similarity(a.astype(float), b.astype(float), data_range=1, win_size=taps)
    found = uniform_ssim(*(torch.from_numpy(plane)[None, None] for plane in (a, b)), taps)
    assert found.item() == pytest.approx(expected, abs=2e-6)


def test_planes_in_a_batch_have_the_digits_that_each_has_alone():
    generator = torch.Generator().manual_seed(3)
    a, b = (torch.rand(40, 1, 40, 300, generator=generator) for _ in range(2))
    ones = [(a[i : i + 1], b[i : i + 1]) for i in range(40)]
    for part in (0, 1):
        assert torch.equal(gaussian_ssim(a, b)[part], torch.cat([gaussian_ssim(*one)[part] for one in ones]))
    assert torch.equal(uniform_ssim(a, b, 7), torch.cat([uniform_ssim(*one, 7) for one in ones]))


def test_a_window_larger_than_the_image_is_refused():
    small = torch.rand(1, 3, 10, 64)
    with pytest.raises(ValueError, match="image is 64×10; this SSIM needs at least 11 pixels a side"):
        uniform_ssim(small, small, 11)


def test_only_windows_without_a_known_pixel_lie_wholly_inside():
    mask = torch.zeros(1, 1, 20, 20)
    mask[:, :, 3:15, 4:16] = 1  # twelve pixels a side: windows of eleven fit at two by two places
    expected = torch.zeros(1, 1, 10, 10)
    expected[:, :, 3:5, 4:6] = 1
    assert torch.equal(wholly_inside(mask, 11), expected)
