"""The hole generators of LaMa and CoModGAN with their published numbers, drawn from an explicit generator.

They follow the recipes, not the random streams or the line rasteriser of the original programs, so single masks differ
while their statistics agree. A bin of ratios is hit by drawing again, as both programs do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from inpaint.masks.ratios import Ratio, counts_in

Draw = Callable[[np.random.Generator], np.ndarray]

LAMA_SEGMENTS, COMOD_SEGMENTS = 5, 17  # most of one line
PROBES = 300  # masks drawn to see whether a bin can be hit at all
MOST_TRIES = 100_000


@dataclass(frozen=True)
class LamaRecipe:
    """Lines and boxes of one kind at one size; lengths in pixels.

    Attributes:
        lines: fewest and most lines of up to five segments.
        width, length: a segment is 5 up to 5 + `width` wide and 10 up to 10 + `length` long.
        box_chance: of a mask of boxes instead of lines.
        boxes: most boxes.
        box_side: least and most side of a box.
        margin: known pixels that are kept around boxes.
    """

    lines: tuple[int, int]
    width: int
    length: int
    box_chance: float = 0.3 / 1.3
    boxes: int = 0
    box_side: tuple[int, int] = (0, 0)
    margin: int = 0


LAMA: dict[tuple[str, int], LamaRecipe] = {  # LaMa configs/data_gen/random_{kind}_{size}.yaml
    ("thin", 256): LamaRecipe((4, 51), width=10, length=40, box_chance=0),
    ("medium", 256): LamaRecipe((4, 6), width=50, length=100, boxes=5, box_side=(10, 50)),
    ("thick", 256): LamaRecipe((1, 6), width=100, length=200, boxes=3, box_side=(30, 150), margin=10),
    ("thin", 512): LamaRecipe((4, 71), width=20, length=100, box_chance=0),
    ("medium", 512): LamaRecipe((4, 11), width=100, length=200, boxes=5, box_side=(30, 150)),
    ("thick", 512): LamaRecipe((1, 6), width=250, length=450, boxes=4, box_side=(30, 300), margin=10),
}
COMOD: dict[tuple[str, int], tuple[int, int, int]] = {  # one more than the most small boxes, boxes and strokes
    ("large", 256): (10, 5, 20),  # CoModGAN training/mask_generator.py
    ("large", 512): (10, 5, 20),
    ("small", 256): (2, 2, 3),  # MAT datasets/mask_generator_256_small.py
    ("small", 512): (3, 2, 4),  # MAT datasets/mask_generator_512_small.py
}


def lama_holes(thickness: str, ratio: Ratio, size: int) -> Draw:
    """A maker of LaMa's thin, medium or thick masks, uint8 [size, size], 1 = hole.

    Sizes other than 256 and 512 scale the lengths of the nearer of the two.

    Raises:
        ValueError: a bin that these masks do not hit.
    """
    base = _nearer(size)
    recipe, scale = LAMA[thickness, base], size / base

    def draw(rng: np.random.Generator) -> np.ndarray:
        boxes = rng.random() < recipe.box_chance
        return _lama_boxes(recipe, scale, size, rng) if boxes else _lama_lines(recipe, scale, size, rng)

    return _drawn_into(draw, ratio, size, f"lama {thickness}")


def comod_holes(extent: str, ratio: Ratio, size: int) -> Draw:
    """A maker of CoModGAN's free-form masks (large), or MAT's small ones, uint8 [size, size], 1 = hole.

    Raises:
        ValueError: a bin that these masks do not hit.
    """
    # Fewer for low bins, as in CoModGAN; but where that would leave nothing to draw, up to one of each.
    most = [max(2, int(number * min(sum(ratio), 1.0))) for number in COMOD[extent, _nearer(size)]]

    def draw(rng: np.random.Generator) -> np.ndarray:
        mask = np.zeros((size, size), dtype=np.uint8)
        for number, side in ((most[0], size // 2), (most[1], size)):
            for _ in range(rng.integers(number)):
                width, height = rng.integers(side, size=2).tolist()
                x = int(rng.integers(-(width // 2), size - width + width // 2))
                y = int(rng.integers(-(height // 2), size - height + height // 2))
                mask[max(y, 0) : y + height, max(x, 0) : x + width] = 1
        strokes = np.zeros((size, size), dtype=np.uint8)
        _comod_strokes(strokes, int(rng.integers(most[2])), rng)
        down, across = (1 if coin > 0.5 else -1 for coin in rng.random(2))
        return mask | strokes[::down, ::across]  # all strokes run one way; they are mirrored together

    return _drawn_into(draw, ratio, size, f"comod {extent}")


def _nearer(size: int) -> int:
    return 256 if size <= 384 else 512


def _drawn_into(draw: Draw, ratio: Ratio, size: int, name: str) -> Draw:
    """Draw until the hole lies in the bin."""
    least, most = counts_in(ratio, size * size)

    def fits(mask: np.ndarray) -> bool:
        return least <= np.count_nonzero(mask) <= most

    probe = np.random.default_rng(0)
    if not any(fits(draw(probe)) for _ in range(PROBES)):
        raise ValueError(f"{name}: none of {PROBES} masks has a ratio in ({ratio[0]:g}, {ratio[1]:g}]; widen the bin")

    def drawn(rng: np.random.Generator) -> np.ndarray:
        for _ in range(MOST_TRIES):
            mask = draw(rng)
            if fits(mask):
                return mask
        raise ValueError(f"{name}: {MOST_TRIES} masks in a row missed ({ratio[0]:g}, {ratio[1]:g}]; widen the bin")

    return drawn


def _lama_lines(recipe: LamaRecipe, scale: float, size: int, rng: np.random.Generator) -> np.ndarray:
    from inpaint.masks.segments import paint_lines  # its compiler takes half a second to start

    mask = np.zeros((size, size), dtype=np.uint8)
    lines = int(rng.integers(recipe.lines[0], recipe.lines[1] + 1))
    starts = rng.integers(size, size=(lines, 2))
    segments = 1 + rng.integers(LAMA_SEGMENTS, size=lines)
    angles = 0.01 + rng.integers(4, size=(lines, LAMA_SEGMENTS))
    lengths = scale * (10 + rng.integers(recipe.length, size=angles.shape))
    widths = np.rint(scale * (5 + rng.integers(recipe.width, size=angles.shape))).clip(1).astype(np.int64)
    angles[::2] *= -1
    paint_lines(mask, starts, segments, math.pi / 2 - angles, lengths, widths)  # LaMa's begin at the y axis
    return mask


def _lama_boxes(recipe: LamaRecipe, scale: float, size: int, rng: np.random.Generator) -> np.ndarray:
    mask = np.zeros((size, size), dtype=np.uint8)
    margin = round(scale * recipe.margin)
    least, most = max(1, round(scale * recipe.box_side[0])), round(scale * (recipe.box_side[1] + 1))
    most = max(min(most, size - 2 * margin), least + 1)
    for _ in range(rng.integers(1, recipe.boxes + 1)):
        width, height = rng.integers(least, most, size=2).tolist()
        x = int(rng.integers(margin, size - margin - width + 1))
        y = int(rng.integers(margin, size - margin - height + 1))
        mask[y : y + height, x : x + width] = 1
    return mask


def _comod_strokes(mask: np.ndarray, strokes: int, rng: np.random.Generator) -> None:
    """Brush strokes of 4 to 17 segments, zigzags towards larger x."""
    from inpaint.masks.segments import paint_lines  # its compiler takes half a second to start

    size = mask.shape[0]
    mean_length = math.sqrt(2) * size / 8
    starts = rng.integers(size, size=(strokes, 2))
    segments = rng.integers(4, 1 + COMOD_SEGMENTS, size=strokes)
    spread = rng.uniform(0, 2 * math.pi / 15, (2, strokes, 1))
    angles = rng.uniform(2 * math.pi / 5 - spread[0], 2 * math.pi / 5 + spread[1], (strokes, COMOD_SEGMENTS))
    lengths = rng.normal(mean_length, mean_length // 2, angles.shape).clip(0, 2 * mean_length)
    widths = np.repeat(rng.uniform(12, 48, (strokes, 1)).astype(np.int64), COMOD_SEGMENTS, axis=1)
    angles[:, ::2] *= -1
    paint_lines(mask, starts, segments, angles, lengths, widths)
