"""Small shard sets for tests, written by WebDataset itself, and streams over them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image

from inpaint.config.holes import FreeFormHoles
from inpaint.config.run import DataConfig
from inpaint.data.index import Index, index_set
from inpaint.data.stream import Stream


def picture(number: int, *, width: int = 16, height: int = 16, kind: str = "JPEG") -> bytes:
    """An image that only this number has."""
    pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 90} if kind == "JPEG" else {}))
    return file.getvalue()


def write_tar(path: Path, samples: list[dict]) -> None:
    """A tar with these samples, as `webdataset.TarWriter` writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as writer:
        for sample in samples:
            writer.write(sample)


def write_shards(folder: Path, sizes: list[int], *, offset: int = 0, **options) -> None:
    """Shards with so many samples each; the sample's number is its key and decides its image."""
    number = offset
    for shard, count in enumerate(sizes):
        numbers = range(number, number + count)
        samples = [{"__key__": f"k{i:04d}", "jpg": picture(i, **options), "json": {"number": i}} for i in numbers]
        write_tar(folder / f"{shard:06d}.tar", samples)
        number += count


def make_set(folder: Path, sizes: list[int], **options) -> Index:
    """`write_shards` and its index."""
    write_shards(folder, sizes, **options)
    return index_set(str(folder))


def open_set(index: Index, *, holes=FreeFormHoles(), seed=0, global_batch=4, rank=0, world_size=1, start=0, **settings):
    """A stream of 16-pixel images with few threads; `settings` are of `data`, a window's only where there is one."""
    if settings.get("shuffle", "global") == "global":
        settings.pop("window_shards", None)
    data = DataConfig(**{"dataset": "toy", "image_size": 16, "decode_threads": 1, "prefetch_batches": 1} | settings)
    world = {"rank": rank, "world_size": world_size, "start": start}
    return Stream(index, data, holes, seed=seed, global_batch=global_batch, **world)


def take(stream: Stream, count: int) -> list:
    """The next batches of a stream, which is closed afterwards."""
    with stream:
        return [next(stream) for _ in range(count)]
