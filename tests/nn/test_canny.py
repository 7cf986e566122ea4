"""Canny on batches against scikit-image's, and what precision and recall count."""

import numpy as np
import pytest
import torch
from skimage import data
from skimage.feature import canny as reference

from inpaint.nn.canny import canny, grey, precision_recall


def photo(size=96):
    pixels = data.astronaut()[:256:, 100 : 100 + 256]
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
    return torch.nn.functional.interpolate(image, (size, size), mode="area")


def same_as_reference(image, valid=None, sigma=2.0):
    mask = None if valid is None else valid[0, 0].numpy() > 0
    expected = reference(image[0, 0].numpy(), sigma=sigma, low_threshold=0.1, high_threshold=0.2, mask=mask)
    found = canny(image, valid, sigma=sigma)[0, 0].numpy() > 0
    assert expected.sum() > 50
    return np.mean(expected != found)


@pytest.mark.parametrize("sigma", [1.0, 2.0])
def test_edges_are_those_of_scikit_image(sigma):
    assert same_as_reference(grey(photo()), sigma=sigma) < 2e-4  # a tie broken by float32 rounding at most


def test_edges_beside_invalid_pixels_are_those_of_scikit_image():
    image, valid = grey(photo()), torch.ones(1, 1, 96, 96)
    valid[..., 30:60, 20:70] = 0
    assert same_as_reference(image, valid) < 2e-4
    assert (canny(image, valid)[..., 30:60, 20:70] == 0).all()


def test_invalid_pixels_have_no_influence_at_all():
    image, valid = grey(photo()), torch.ones(1, 1, 96, 96)
    valid[..., 30:60, 20:70] = 0
    noise = torch.where(valid > 0, image, torch.rand(image.shape, generator=torch.Generator().manual_seed(0)))

    assert torch.equal(canny(noise, valid), canny(image, valid))


def test_each_sample_of_a_batch_is_alone():
    image = grey(photo())
    batch = torch.cat((image, 1 - image.flip(3), torch.full_like(image, 0.5)))

    for place in range(3):
        assert torch.equal(canny(batch)[place], canny(batch[place : place + 1])[0])


def test_blank_image_has_no_edges():
    assert canny(torch.full((2, 1, 32, 32), 0.7)).sum() == 0


def test_grey_is_the_luma_of_three_primaries():
    primaries = torch.eye(3).view(3, 3, 1, 1)

    assert grey(primaries).flatten().tolist() == pytest.approx([0.2125, 0.7154, 0.0721])


def test_precision_and_recall_count_pixels_of_the_region_alone():
    predicted = torch.tensor([[[[0.9, 0.9, 0.4, 0.9]]]])
    true = torch.tensor([[[[1.0, 0.0, 1.0, 0.0]]]])
    region = torch.tensor([[[[1.0, 1.0, 1.0, 0.0]]]])  # the last wrong pixel is outside

    precision, recall = precision_recall(predicted, true, region)
    assert (precision.item(), recall.item()) == (0.5, 0.5)
    assert precision_recall(predicted, true, region, threshold=0.3)[1].item() == 1.0


def test_without_an_edge_there_is_no_precision_and_no_recall():
    nothing = torch.zeros(1, 1, 4, 4)

    precision, recall = precision_recall(nothing, nothing, torch.ones_like(nothing))
    assert precision.isnan()
    assert recall.isnan()
