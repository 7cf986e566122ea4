import numpy as np
import pytest
from PIL import Image, ImageDraw

from inpaint.config.holes import ComodHoles, FreeFormHoles, LamaHoles
from inpaint.masks import make_holes
from inpaint.masks.published import COMOD, LAMA

KINDS = [
    *(LamaHoles(thickness=thickness) for thickness in ("thin", "medium", "thick")),
    *(ComodHoles(extent=extent) for extent in ("small", "large")),
]


@pytest.mark.parametrize("config", KINDS, ids=str)
def test_every_mask_lies_in_the_programs_own_range_and_comes_from_its_generator(config):
    draw = make_holes(config, 64)
    masks = [draw(np.random.default_rng(seed)) for seed in range(30)]
    assert all(config.ratio[0] < mask.mean() <= config.ratio[1] for mask in masks)
    assert {mask.tobytes() for mask in masks} == {draw(np.random.default_rng(seed)).tobytes() for seed in range(30)}
    assert len({mask.tobytes() for mask in masks}) > 25


@pytest.mark.parametrize("config", KINDS, ids=str)
def test_a_bin_is_hit_by_drawing_again(config):
    draw = make_holes(config, 64, ratio=(0.2, 0.3))
    assert all(0.2 < draw(np.random.default_rng(seed)).mean() <= 0.3 for seed in range(5))


def test_thicker_kinds_have_thicker_holes():
    def thickness(kind):
        """Hole pixels per pixel of outline."""
        draw = make_holes(LamaHoles(thickness=kind), 256)
        masks = [draw(np.random.default_rng(seed)) for seed in range(20)]
        outline = sum(np.count_nonzero(np.diff(mask.astype(int), axis=axis)) for mask in masks for axis in (0, 1))
        return sum(int(mask.sum()) for mask in masks) / outline

    assert thickness("thin") < thickness("medium") < thickness("thick")


def drawn_with_pillow(rng, size, boxes, strokes):
    """The free-form recipe once more, with Pillow's lines and discs: an independent hole to compare ratios with."""
    image = Image.new("L", (size, size))
    draw = ImageDraw.Draw(image)
    for most, side in ((boxes[0], size // 2), (boxes[1], size)):
        for _ in range(rng.integers(most)):
            w, h = rng.integers(side), rng.integers(side)
            if w and h:
                x, y = rng.integers(-(w // 2), size - w + w // 2), rng.integers(-(h // 2), size - h + h // 2)
                draw.rectangle((x, y, x + w - 1, y + h - 1), fill=1)
    for _ in range(rng.integers(strokes)):
        spread = rng.uniform(0, 2 * np.pi / 15, 2)
        width, points = int(rng.uniform(12, 48)), [rng.integers(0, size, 2).astype(float)]
        for i in range(rng.integers(4, 18)):
            angle = rng.uniform(2 * np.pi / 5 - spread[0], 2 * np.pi / 5 + spread[1]) * (1 if i % 2 else -1)
            mean = size * np.sqrt(2) / 8
            reach = np.clip(rng.normal(mean, mean // 2), 0, 2 * mean)
            points.append(np.clip(points[-1] + reach * np.array([np.cos(angle), np.sin(angle)]), 0, size).astype(int))
        corners = [tuple(map(float, point)) for point in points]
        draw.line(corners, fill=1, width=width)
        for x, y in corners:
            draw.ellipse((x - width // 2, y - width // 2, x + width // 2, y + width // 2), fill=1)
    return np.asarray(image).mean()


@pytest.mark.parametrize(("extent", "boxes", "strokes"), [("small", (2, 2), 3), ("large", (10, 5), 20)])
def test_free_form_holes_are_as_large_as_those_drawn_with_pillow(extent, boxes, strokes):
    draw = make_holes(ComodHoles(extent=extent), 256)
    ours = [draw(np.random.default_rng(seed)).mean() for seed in range(200)]
    rng = np.random.default_rng(1)
    theirs = [ratio for ratio in (drawn_with_pillow(rng, 256, boxes, strokes) for _ in range(300)) if 0 < ratio < 1]
    assert np.mean(ours) == pytest.approx(np.mean(theirs), abs=0.05)
    assert np.std(ours) == pytest.approx(np.std(theirs), abs=0.05)


def test_the_published_numbers_are_those_of_the_programs():
    assert LAMA["thick", 256].box_side == (30, 150)  # random_thick_256.yaml: bbox_min_size, bbox_max_size
    assert LAMA["thin", 512].length == 100  # random_thin_512.yaml: max_len
    assert COMOD["large", 512] == (10, 5, 20)  # mask_generator.py: MultiFill(10), MultiFill(5), RandomBrush(20)
    assert COMOD["small", 256] == (2, 2, 3)  # mask_generator_256_small.py


def test_a_bin_that_the_kind_never_hits_is_an_error_before_training():
    with pytest.raises(ValueError, match="lama thick: none of 300 masks has a ratio in"):
        make_holes(LamaHoles(thickness="thick"), 64, ratio=(0.0, 0.0005))


def test_a_bin_that_is_upside_down_is_a_wrong_setting():
    with pytest.raises(ValueError, match=r"\[0\.5, 0\.1\] is upside down"):
        FreeFormHoles(ratio=(0.5, 0.1))
