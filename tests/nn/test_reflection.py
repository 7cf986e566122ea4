"""Padding by reflection is the same, and has the same gradient, whichever kernels compute it."""

import pytest
import torch
import torch.nn.functional as F

from inpaint.nn.reflection import reflection_pad


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_border_pixels_are_mirrored_about_not_repeated(deterministic):
    row = torch.arange(5.0).expand(1, 1, 5, 5)

    assert reflection_pad(row, 2)[0, 0, 4].tolist() == [2, 1, 0, 1, 2, 3, 4, 3, 2]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("pixels", [1, 2, 3])
def test_deterministic_padding_equals_pytorchs(deterministic, layout, pixels):
    features = torch.rand(2, 3, 5, 7, dtype=torch.double).to(memory_format=layout)
    ours, theirs = (features.clone(memory_format=torch.preserve_format).requires_grad_() for _ in range(2))
    weights = torch.rand(2, 3, 5 + 2 * pixels, 7 + 2 * pixels, dtype=torch.double)

    padded, expected = reflection_pad(ours, pixels), F.pad(theirs, (pixels,) * 4, mode="reflect")
    (padded * weights).sum().backward()
    (expected * weights).sum().backward()

    assert torch.equal(padded, expected)
    assert padded.is_contiguous(memory_format=layout)
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("strict", [False, True])
def test_a_side_too_short_to_mirror_is_refused(strict):
    torch.use_deterministic_algorithms(strict)
    try:
        with pytest.raises(RuntimeError):
            reflection_pad(torch.rand(1, 1, 3, 3), 3)
    finally:
        torch.use_deterministic_algorithms(False)
