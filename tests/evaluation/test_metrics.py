"""Each score against an independent implementation or a number worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.color import rgb2gray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import structural_similarity_index_measure

from inpaint.evaluation.metrics import METRICS, Comparison, to_levels


@pytest.fixture(scope="module")
def seen():
    """Four smooth pictures with noise, on 8-bit levels, and free-form-like holes."""
    generator = torch.Generator().manual_seed(7)
    truth = torch.nn.functional.interpolate(torch.rand(4, 3, 9, 9, generator=generator), size=(72, 80), mode="bicubic")
    truth = to_levels(truth.clamp(0, 1), "rounded")
    noise = 0.2 * (torch.rand(truth.shape, generator=generator) - 0.5)
    predicted = to_levels((truth + noise).clamp(0, 1), "rounded")
    mask = (torch.rand(4, 1, 72, 80, generator=generator) < 0.3).float()
    mask[..., 10:30, 20:50] = 1
    return Comparison(predicted, truth, mask)


def pictures(seen):
    for predicted, truth in zip(seen.predicted, seen.truth, strict=True):
        yield predicted.permute(1, 2, 0).double().numpy(), truth.permute(1, 2, 0).double().numpy()


def agrees(name, seen, expected, tolerance=1e-6):
    assert METRICS[name].compute(seen).tolist() == pytest.approx(expected, abs=tolerance)


def test_psnr_rgb_and_grey_equal_scikit_image(seen):
    agrees("psnr_rgb", seen, [peak_signal_noise_ratio(t, p, data_range=1) for p, t in pictures(seen)], 1e-4)
    grey = [peak_signal_noise_ratio(rgb2gray(t), rgb2gray(p), data_range=1) for p, t in pictures(seen)]
    agrees("psnr_grey", seen, grey, 1e-4)


@pytest.mark.parametrize("window", [11, 51])
def test_grey_uniform_ssim_equals_scikit_image(seen, window):
    expected = [
        structural_similarity(rgb2gray(t), rgb2gray(p), win_size=window, data_range=1) for p, t in pictures(seen)
    ]
    agrees(f"ssim_grey_uniform_{window}", seen, expected)


def test_rgb_uniform_ssim_equals_scikit_image(seen):
    expected = [structural_similarity(t, p, win_size=7, channel_axis=2, data_range=1) for p, t in pictures(seen)]
    agrees("ssim_rgb_uniform_7", seen, expected)


def test_gaussian_ssim_valid_equals_scikit_image_and_torchmetrics(seen):
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
    expected = [structural_similarity(t, p, channel_axis=2, win_size=11, **options) for p, t in pictures(seen)]
    agrees("ssim_gaussian_valid", seen, expected)
    _, full = structural_similarity_index_measure(
        seen.predicted, seen.truth, data_range=1.0, kernel_size=11, sigma=1.5, reduction="none", return_full_image=True
    )
    # torchmetrics also averages windows over a reflected border; those inside the image are the valid crop
    agrees("ssim_gaussian_valid", seen, full[..., 5:-5, 5:-5].mean(dim=(1, 2, 3)).tolist(), 1e-5)


def test_gaussian_ssim_padded_equals_a_direct_convolution_with_zeros(seen):
    """The published form, written out: five zero-padded depthwise convolutions in float64 with one 11×11 kernel."""
    line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    kernel = torch.from_numpy(np.outer(line, line) / line.sum() ** 2).expand(3, 1, 11, 11)

    def blur(x):
        return torch.nn.functional.conv2d(x, kernel, padding=5, groups=3)

    a, b = seen.predicted.double(), seen.truth.double()
    ma, mb = blur(a), blur(b)
    va, vb, cov = blur(a * a) - ma**2, blur(b * b) - mb**2, blur(a * b) - ma * mb
    ssim = ((2 * ma * mb + 1e-4) * (2 * cov + 9e-4)) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
    agrees("ssim_gaussian_padded", seen, ssim.mean(dim=(1, 2, 3)).tolist())


def test_hole_ssim_of_a_square_hole_is_the_ssim_of_the_hole_cut_out(seen):
    mask = torch.zeros(4, 1, 72, 80)
    mask[..., 20:52, 24:56] = 1
    cut = Comparison(seen.predicted[..., 20:52, 24:56], seen.truth[..., 20:52, 24:56], mask[..., 20:52, 24:56])
    whole = Comparison(seen.predicted, seen.truth, mask)
    assert METRICS["ssim_gaussian_hole"].compute(whole).tolist() == pytest.approx(
        METRICS["ssim_gaussian_valid"].compute(cut).tolist(), abs=1e-6
    )


def test_one_grey_level_everywhere_is_48_13_decibels_and_identical_images_are_perfect():
    truth = torch.full((2, 3, 64, 64), 100 / 255)
    predicted = truth.clone()
    predicted[0] = 101 / 255
    seen = Comparison(predicted, truth, torch.ones(2, 1, 64, 64))
    for name in ("psnr_rgb", "psnr_grey", "psnr_hole"):
        first, second = METRICS[name].compute(seen).tolist()
        assert first == pytest.approx(48.1308, abs=1e-3)  # 20 log10(255)
        assert second == math.inf
    for name in (name for name in METRICS if name.startswith("ssim")):
        assert METRICS[name].compute(seen)[1].item() == pytest.approx(1, abs=1e-6)
    for name in (name for name in METRICS if name.startswith("l1")):
        assert METRICS[name].compute(seen)[1].item() == 0


def test_the_four_published_l1_scores_of_a_hand_worked_image():
    """Truth 0.4 everywhere, predicted 0.6 in a hole of a quarter: mean 0.05, hole 0.2, over sum 0.05/0.85."""
    truth = torch.full((1, 3, 64, 64), 0.4)
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., :32, :32] = 1
    seen = Comparison(truth + 0.2 * mask, truth, mask)
    expected = {
        "l1_rgb": 0.05,
        "l1_fraction": 0.05,
        "l1_grey": 0.05,
        "l1_hole": 0.2,
        "l1_over_sum_rgb": 0.05 / 0.85,
        "l1_over_sum_grey": 0.05 / 0.85,
    }
    assert {name: METRICS[name].compute(seen).item() for name in expected} == pytest.approx(expected, abs=1e-6)


def test_whole_image_psnr_is_6_02_decibels_above_that_of_a_quarter_hole():
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(3, 3, 64, 64, generator=generator)
    mask = torch.zeros(3, 1, 64, 64)
    mask[..., 16:48, 16:48] = 1
    seen = Comparison(truth * (1 - mask) + 0.5 * mask, truth, mask)
    gap = METRICS["psnr_rgb"].compute(seen) - METRICS["psnr_hole"].compute(seen)
    assert gap.tolist() == pytest.approx([10 * math.log10(4)] * 3, abs=1e-4)


def test_grey_weights_are_those_of_rgb2gray():
    truth = torch.zeros(1, 3, 64, 64)
    predicted = truth.clone()
    predicted[:, 1] = 0.5
    seen = Comparison(predicted, truth, torch.ones(1, 1, 64, 64))
    assert METRICS["l1_grey"].compute(seen).item() == pytest.approx(0.5 * 0.7154, abs=1e-6)


def test_rounding_and_truncation_keep_every_8_bit_level_and_differ_between_levels():
    levels = (torch.arange(256) / 255).view(1, 1, 16, 16)
    for how in ("rounded", "truncated", "float"):
        assert torch.equal(to_levels(levels, how), levels)
    between = torch.tensor([10.7 / 255])
    assert to_levels(between, "rounded").item() == pytest.approx(11 / 255)
    assert to_levels(between, "truncated").item() == pytest.approx(10 / 255)


def test_a_picture_smaller_than_the_window_is_refused():
    small = torch.rand(1, 3, 40, 40)
    with pytest.raises(ValueError, match="40×40"):
        METRICS["ssim_grey_uniform_51"].compute(Comparison(small, small, torch.ones(1, 1, 40, 40)))


def test_scores_do_not_depend_on_the_batch_they_came_in(seen):
    for name, metric in METRICS.items():
        together = metric.compute(seen)
        alone = [
            metric.compute(Comparison(seen.predicted[i : i + 1], seen.truth[i : i + 1], seen.mask[i : i + 1]))
            for i in range(4)
        ]
        assert torch.equal(together, torch.cat(alone)), name
