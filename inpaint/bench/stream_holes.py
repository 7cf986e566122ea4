"""What a sample's hole costs beside its image: each kind that is drawn, and lines painted with Pillow."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from inpaint.bench.measure import Cost, Work, interleaved
from inpaint.config.holes import ComodHoles, FreeFormHoles, HolesConfig, LamaHoles, RectangleHoles
from inpaint.masks import make_holes
from inpaint.masks.published import LAMA, LAMA_SEGMENTS

SIZE, MASKS = 256, 400
LINES_WITH_PILLOW = "lama thin, with Pillow's lines and discs"
KINDS: dict[str, HolesConfig] = {
    "strokes": FreeFormHoles(),
    "rectangles": RectangleHoles(),
    "lama thin": LamaHoles(thickness="thin"),
    "lama thick": LamaHoles(thickness="thick"),
    "comod large": ComodHoles(extent="large"),
}


def measure_holes(*, rounds: int) -> dict[str, Cost]:
    """Seconds per mask of 256 pixels in one thread, its random numbers included."""
    draws = {name: make_holes(config, SIZE) for name, config in KINDS.items()}
    return interleaved({n: _work(d) for n, d in (draws | {LINES_WITH_PILLOW: _lines}).items()}, rounds=rounds)


def _work(draw: Callable[[np.random.Generator], np.ndarray]) -> Work:
    draw(np.random.default_rng(0))  # compiles what is compiled

    def run() -> int:
        for number in range(MASKS):
            draw(np.random.default_rng(number))
        return MASKS

    return run


def _lines(rng: np.random.Generator) -> np.ndarray:
    """LaMa's thin lines with a library for drawing, and numbers as they are needed."""
    recipe = LAMA["thin", SIZE]
    image = Image.new("L", (SIZE, SIZE))
    draw = ImageDraw.Draw(image)
    for i in range(rng.integers(recipe.lines[0], recipe.lines[1] + 1)):
        x, y = rng.integers(SIZE, size=2).tolist()
        for _ in range(1 + rng.integers(LAMA_SEGMENTS)):
            angle = (0.01 + rng.integers(4)) * (1 if i % 2 else -1)
            length, width = 10 + rng.integers(recipe.length), int(5 + rng.integers(recipe.width))
            end_x = min(max(int(x + length * math.sin(angle)), 0), SIZE)
            end_y = min(max(int(y + length * math.cos(angle)), 0), SIZE)
            draw.line((x, y, end_x, end_y), fill=1, width=width)
            for a, b in ((x, y), (end_x, end_y)):
                draw.ellipse((a - width // 2, b - width // 2, a + width // 2, b + width // 2), fill=1)
            x, y = end_x, end_y
    return np.asarray(image)
