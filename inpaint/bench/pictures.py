"""Photographs for benchmarks: cuts of those bundled with scikit-image, so that nothing has to be downloaded."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image

from inpaint.demo_photos import HELD_OUT, TRAINING, photo

COLOURED = ("rocket.jpg", "coffee.png", "hubble_deep_field.jpg", "motorcycle_left.png")
QUALITY = 85  # makes the cuts about as heavy as Places2's 256-px images: 24 GB for 1.8 million
TILE = 170  # pixels of a photograph that fill 256 of a large picture, whose detail is coarser than a small one's


def cuts(count: int, *, size: int, seed: int = 0) -> list[Image.Image]:
    """Random squares of `size` pixels of the coloured photographs."""
    rng = np.random.default_rng(seed)
    photos = [photo(name) for name in (*COLOURED, *HELD_OUT) if name in (*TRAINING, *HELD_OUT)]
    photos = [image for image in photos if min(image.size) >= size]
    squares = []
    for i in range(count):
        image = photos[i % len(photos)]
        left, top = rng.integers(0, image.width - size + 1), rng.integers(0, image.height - size + 1)
        squares.append(image.crop((left, top, left + size, top + size)))
    return squares


def mosaics(count: int, *, width: int = 1024, height: int = 683) -> list[Image.Image]:
    """Large pictures put together from enlarged cuts, about as detailed as photographs of that size."""
    tiles = [tile.resize((256, 256), Image.Resampling.BICUBIC) for tile in cuts(12 * count, size=TILE, seed=1)]
    pictures = []
    for number in range(count):
        whole = Image.new("RGB", (width, height))
        for i, tile in enumerate(tiles[12 * number : 12 * number + 12]):
            whole.paste(tile, (256 * (i % 4), 256 * (i // 4)))
        pictures.append(whole)
    return pictures


def jpeg(image: Image.Image) -> bytes:
    """The picture as a JPEG, 4:2:0."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def write_set(folder: Path, images: list[bytes], *, samples: int, shards: int) -> None:
    """A set as plain WebDataset writes it; images repeat when there are more samples than images."""
    folder.mkdir(parents=True)
    per_shard = -(-samples // shards)
    with webdataset.ShardWriter(f"{folder}/%06d.tar", maxcount=per_shard, verbose=0) as writer:
        for i in range(samples):
            writer.write({"__key__": f"{i:08d}", "jpg": images[i % len(images)], "json": {"number": i}})
