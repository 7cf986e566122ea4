"""A run so small that a test or a soak can train it in seconds: drawn pictures, a narrow ISNet, a few steps."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from inpaint.config import RunConfig, apply_overrides, parse_overrides
from inpaint.config.base import validate
from inpaint.data.index import index_set

SIDE = 40  # pixels of a picture; the run crops 32 of them
# A large eps keeps Adam from turning the rounding of tiny gradients into whole steps, so that runs can be compared.
ADAM = {"kind": "adam", "learning_rate": 0.0003, "betas": [0.5, 0.9], "eps": 0.01}
SETTINGS = {
    "method": {
        "name": "isnet",
        "blocks": 1,
        "width": 4,
        "discriminator_width": 4,
        "weights": {"l1": 1, "adversarial": 0.01, "perceptual": 0, "style": 0},
        "generator_optimizer": ADAM,
        "discriminator_optimizer": ADAM,
    },
    "stages": {"gan": {"steps": 12}},
    "data": {"dataset": "toy", "image_size": 32},
    "holes": {"kind": "strokes", "ratio": [0.1, 0.5]},
    "training": {"global_batch": 4, "log_every": 2, "check_every": 2, "deterministic": True},
    "checkpoints": {"every": 4},
    "evaluation": {"every": 4, "images": 4, "batch": 2},
    "tracking": {"mode": "disabled"},
}


def toy_run(root: str | Path, name: str, *settings: str, workers: int = 1) -> RunConfig:
    """Settings of a toy run; further `path=value` settings on top."""
    given = {"name": name, "root": str(root), "resources.num_workers": workers}
    values = apply_overrides(SETTINGS, given | parse_overrides(settings))
    return validate(RunConfig, values, place="toy run")


def write_toy_shards(root: str | Path, *, train: int = 24, held_out: int = 6) -> None:
    """Two shard sets of drawn pictures under a local root."""
    pictures = _pictures(np.random.default_rng(0))
    for split, count in (("train", train), ("test", held_out)):
        folder = Path(root) / "shards" / "toy" / split
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(folder / "000000.tar", "w") as tar:
            for number, picture in zip(range(count), pictures, strict=False):
                _add(tar, f"{number:06d}.jpg", picture)
        index_set(str(folder))


def _pictures(generator: np.random.Generator) -> Iterable[np.ndarray]:
    """Colour ramps with a disc, each another one; uint8 [SIDE, SIDE, 3]."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    while True:
        low, high, disc = generator.integers(0, 256, (3, 3))
        centre_y, centre_x, radius = generator.uniform(0.2, 0.8, 3)
        picture = low + (high - low) * (x * radius + y * (1 - radius))[..., None]
        picture[(y - centre_y) ** 2 + (x - centre_x) ** 2 < (radius / 3) ** 2] = disc
        yield picture.astype(np.uint8)


def _add(tar: tarfile.TarFile, name: str, picture: np.ndarray) -> None:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=92)
    entry = tarfile.TarInfo(name)
    entry.size = file.tell()
    file.seek(0)
    tar.addfile(entry, file)
