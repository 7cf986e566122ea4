"""Images of any size, and a method prepared for inference."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import pytest
import torch

from inpaint.config.methods import ISNetConfig
from inpaint.inference import fill, prepare, schedule
from inpaint.inference.filling import _spans
from inpaint.masks import centre_mask
from inpaint.methods.isnet import ISNet
from tests.inference.painters import CentreConfig, Mirror, Painter, PainterConfig


def image(*size: int) -> torch.Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(0))


def hole(height: int, width: int, rows: slice, columns: slice) -> torch.Tensor:
    mask = torch.zeros(1, 1, height, width)
    mask[..., rows, columns] = 1
    return mask


@pytest.fixture(scope="module")
def isnet() -> ISNet:
    torch.manual_seed(0)
    method = ISNet(ISNetConfig(blocks=1, width=4, discriminator_width=4), {"gan": 1}, {})
    for _ in range(25):  # until spectral norm's vectors have settled
        method.generator(image(1, 3, 32, 32))
    return method.eval()


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("size", [(64, 64), (37, 50), (16, 131)])
def test_any_size_is_filled_and_known_pixels_survive(isnet, size, progressive):
    picture, mask = image(1, 3, *size), hole(*size, slice(3, 13), slice(10, 40))
    completed = fill(isnet, picture, mask, progressive=progressive)
    assert completed.shape == picture.shape
    known = (mask == 0).expand_as(picture)
    assert torch.equal(completed[known], picture[known])
    assert not torch.equal(completed, picture)


def test_an_image_on_the_grid_is_given_as_it_is():
    painter, mask = Painter(), hole(48, 32, slice(8, 20), slice(8, 20))
    completed = fill(painter, image(1, 3, 48, 32), mask)
    assert painter.sizes == [(32, 48)]
    assert completed[0, :, 10, 10].tolist() == [1.0, 0.5, 0.0]


def test_an_image_off_the_grid_is_padded_to_it():
    painter, mask = Painter(), hole(37, 50, slice(8, 20), slice(8, 20))
    fill(painter, image(1, 3, 37, 50), mask)
    assert painter.sizes == [(64, 48)]


def test_a_large_image_is_filled_in_tiles_that_agree_with_one_piece():
    picture = image(1, 3, 150, 210)
    mask = (image(1, 1, 150, 210) < 0.3).float()
    whole = fill(Mirror(), picture, mask, tile=1000)
    tiles = fill(Mirror(), picture, mask, tile=64, overlap=32)
    inner = torch.zeros_like(mask)
    inner[..., 8:140, 8:200] = mask[..., 8:140, 8:200]
    # a tile's own border knows less than the whole image does; inside, its overlap lets the neighbour speak
    assert (whole - tiles).abs().mean(dim=1, keepdim=True)[inner == 1].median() < 0.01
    known = (mask == 0).expand_as(picture)
    assert torch.equal(tiles[known], picture[known])


@pytest.mark.parametrize("tile", [1000, 48])
def test_what_lies_in_the_hole_is_never_read(tile):
    picture, mask = image(1, 3, 80, 80), hole(80, 80, slice(20, 60), slice(20, 60))
    expected = fill(Mirror(), picture, mask, tile=tile, overlap=16)
    picture[..., 30:50, 30:50] = torch.nan
    assert torch.equal(fill(Mirror(), picture, mask, tile=tile, overlap=16), expected)


def test_progressive_rounds_follow_from_the_share_of_the_image_without_its_padding():
    """A hole of 49 % shrinks by 7 pixels a side each round until it is 20 % or less, on any grid."""
    mask = hole(70, 70, slice(10, 59), slice(10, 59))

    class Coarse(Painter):
        def inpaint(self, picture, mask):
            assert tuple(picture.shape[-2:]) == (128, 128)
            return super().inpaint(picture, mask)

    class CoarseConfig(PainterConfig):
        size_multiple: ClassVar[int] = 128

    painter = Coarse(config=CoarseConfig())
    fill(painter, image(1, 3, 70, 70), mask, progressive=True)
    assert len(painter.sizes) == schedule(mask).calls[0] == 3


@pytest.mark.parametrize("value", [0.4, float("nan"), 255.0])
def test_a_mask_that_is_not_0_or_1_is_refused(value):
    mask = hole(32, 32, slice(4, 8), slice(4, 8))
    mask[..., 8, 4:8] = value
    with pytest.raises(ValueError, match=r"mask has values between .*; expected 0 or 1"):
        fill(Painter(), image(1, 3, 32, 32), mask)


def test_blending_two_equal_predictions_changes_nothing():
    mask = hole(100, 300, slice(10, 90), slice(10, 290))
    completed = fill(Painter((0.25, 0.5, 0.75)), image(1, 3, 100, 300), mask, tile=64, overlap=16)
    drawn = completed[0].permute(1, 2, 0)[mask[0, 0] == 1]
    torch.testing.assert_close(drawn, torch.tensor([0.25, 0.5, 0.75]).expand_as(drawn))


def test_tiles_without_a_hole_are_not_drawn():
    painter = Painter()
    fill(painter, image(1, 3, 64, 640), hole(64, 640, slice(5, 9), slice(5, 9)), tile=64, overlap=0)
    assert painter.sizes == [(64, 64)]


@pytest.mark.parametrize(
    ("length", "tile", "overlap"), [(65, 64, 0), (1000, 64, 16), (768, 768, 128), (1537, 768, 128)]
)
def test_tiles_cover_everything_and_share_what_they_should(length, tile, overlap):
    spans = _spans(length, tile, overlap)
    assert (spans[0].start, spans[-1].stop) == (0, length)
    assert all(span.stop - span.start <= tile for span in spans)
    assert all(before.stop - after.start >= overlap for before, after in pairwise(spans))


def test_tiles_must_overlap_by_at_most_half():
    with pytest.raises(ValueError, match="overlap 40 of tiles of 64 pixels"):
        fill(Painter(), image(1, 3, 64, 200), hole(64, 200, slice(0, 9), slice(0, 9)), tile=64, overlap=40)


def test_a_method_for_centre_holes_is_given_the_image_whole():
    painter = Painter(config=CentreConfig())
    fill(painter, image(1, 3, 64, 64), centre_mask(64, 32), tile=32, overlap=0)
    assert painter.sizes == [(64, 64)]


def test_filling_leaves_the_method_as_it_was(isnet):
    isnet.train()
    before = {name: value.clone() for name, value in isnet.state_dict().items()}
    fill(isnet, image(1, 3, 32, 32), hole(32, 32, slice(4, 9), slice(4, 9)))
    assert isnet.training
    assert all(torch.equal(value, before[name]) for name, value in isnet.state_dict().items())
    isnet.eval()


def test_a_prepared_method_draws_the_same_without_spectral_norm(isnet):
    ready = prepare(isnet)
    picture, mask = image(2, 3, 64, 48), hole(64, 48, slice(4, 30), slice(4, 30)).expand(2, -1, -1, -1)
    with torch.no_grad():
        expected = isnet.inpaint(picture, mask)
    torch.testing.assert_close(ready.inpaint(picture, mask), expected, rtol=1e-5, atol=1e-6)
    assert not any("parametrizations" in name for name in ready.generator.state_dict())
    assert any("parametrizations" in name for name in isnet.generator.state_dict())


def test_bfloat16_draws_nearly_the_same(isnet):
    ready = prepare(isnet, precision="bfloat16")
    picture, mask = image(1, 3, 32, 32), hole(32, 32, slice(4, 20), slice(4, 20))
    with torch.no_grad():
        expected = isnet.inpaint(picture, mask)
    drawn = ready.inpaint(picture, mask)
    assert drawn.dtype == torch.float32
    assert ready.generator.head[0].weight.dtype == torch.bfloat16
    assert 0 < (drawn - expected).abs().max() < 0.02


def test_smaller_calls_are_filled_up_to_the_compiled_batch(monkeypatch):
    monkeypatch.setattr("inpaint.inference.preparing._compiled", lambda draw, name: draw)
    counts = []

    class Counted(Mirror):
        def inpaint(self, image, mask):
            counts.append(len(image))
            return super().inpaint(image, mask)

    picture, mask = image(5, 3, 32, 32), hole(32, 32, slice(4, 9), slice(4, 9)).expand(5, -1, -1, -1)
    drawn = prepare(Counted(), compiled_batch=2).inpaint(picture, mask)
    assert counts == [2, 2, 2]
    torch.testing.assert_close(drawn, Mirror().inpaint(picture, mask))
