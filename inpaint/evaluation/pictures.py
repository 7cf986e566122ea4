"""Truth images for scoring: a folder, an archive or a shard set; cropped to the centred square and resized."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from isal import isal_zlib
from PIL import Image

from inpaint import archives, storage
from inpaint.data.pictures import Refused, read_picture, read_size
from inpaint.errors import DataError, EvaluationError

HEAD_BYTES = 64 << 10  # of a file, in which its header lies as a rule
JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
_FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}


@dataclass(frozen=True)
class Pictures:
    """Photographs by name.

    Attributes:
        name: where they are from, for tables and messages.
        ids: names without suffix, sorted, unique.
        read: one of them, uint8 [H, W, 3].
        fingerprint: changes when the files change; for resuming, not for comparing.
        size: height and width of one of them, from its header.
    """

    name: str
    ids: tuple[str, ...]
    read: Callable[[str], np.ndarray]
    fingerprint: str
    size: Callable[[str], tuple[int, int]]

    def __len__(self) -> int:
        return len(self.ids)


def open_pictures(url: str) -> Pictures:
    """The photographs of a shard set, a folder, a tar or a zip.

    Raises:
        EvaluationError: nothing there, no images, or two of the same name.
    """
    if storage.exists(storage.join(url, "index.json")):
        return _from_shards(url)
    return _from_files(url)


def decode(data: bytes, *, name: str) -> np.ndarray:
    """An image file as uint8 RGB [H, W, 3], read as the shard writer reads it.

    Raises:
        EvaluationError: not a usable image, with the reason.
    """
    try:
        return read_picture(data).pixels
    except Refused as error:
        raise EvaluationError(f"{name}: {error}; remove it or write it anew") from error


def header_size(read: Callable[[int | None], bytes], *, name: str) -> tuple[int, int]:
    """Height and width of an image file as `decode` gives it, without decoding it.

    The first bytes tell the size of a JPEG, and of a square PNG. Of another PNG, what turns it may stand at the end.

    Args:
        read: gives the file's first bytes, or all where they are None.
        name: for messages.

    Raises:
        EvaluationError: not a usable image, with the reason.
    """
    start = read(HEAD_BYTES)
    if start.startswith((JPEG, PNG)):
        with suppress(Refused):
            height, width = read_size(start)
            if start.startswith(JPEG) or height == width:
                return height, width
    try:
        return read_size(read(None))
    except Refused as error:
        raise EvaluationError(f"{name}: {error}; remove it or write it anew") from error


def square(image: np.ndarray, *, size: int, resize: str) -> np.ndarray:
    """The centred square of a photograph at `size` pixels, uint8 [size, size, 3]; untouched when it is that already.

    Args:
        image: uint8 [H, W, 3].
        size: pixels of both sides.
        resize: `lanczos`, `bicubic` or `bilinear`, antialiased when they shrink.
    """
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    image = image[top : top + side, left : left + side]
    if side == size:
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), _FILTERS[resize]))


def choose(ids: Sequence[str], count: int, *, seed: int) -> tuple[str, ...]:
    """`count` of the names, drawn by seed and sorted; a smaller draw is part of every larger one."""
    ranked = sorted(ids, key=lambda key: hashlib.sha256(f"{seed}/{key}".encode()).digest())
    return tuple(sorted(ranked[:count]))


def _from_files(url: str) -> Pictures:
    try:
        with archives.open_source(url) as entries:
            found = [entry for entry in entries if is_picture(entry.name)]
    except DataError as error:
        raise EvaluationError(str(error)) from error
    if not found:
        raise EvaluationError(f"{url}: no images here; expected {', '.join(SUFFIXES[:3])} files or a shard set")
    by_id = {entry.name.rpartition(".")[0]: entry for entry in found}
    if len(by_id) < len(found):
        raise EvaluationError(f"{url}: {len(found)} images share {len(by_id)} names; keep one file per name")
    digest = hashlib.sha256("\n".join(f"{e.name} {e.size} {e.tag}" for e in found).encode()).hexdigest()

    def place(key: str) -> str:
        return f"{url}: {by_id[key].name}"

    return Pictures(
        url,
        tuple(sorted(by_id)),
        lambda key: decode(archives.read(by_id[key]), name=place(key)),
        digest,
        lambda key: header_size(lambda most: _read(by_id[key], most), name=place(key)),
    )


def _read(entry: archives.Entry, most: int | None) -> bytes:
    """A file's first bytes, or all of it where `most` is None or it lies compressed in a zip."""
    if most is None or entry.size <= most or entry.method != 0:
        return archives.read(entry)
    return storage.read_range(entry.url, entry.offset, most)


def _from_shards(url: str) -> Pictures:
    from inpaint.data.index import load_index

    index = load_index(url)
    samples = {index.key(sample): sample for sample in range(len(index))}

    def data(key: str, most: int | None = None) -> bytes:
        sample = samples[key]
        shard = index.shard_url(int(index.shard[sample]))
        offset, length = int(index.offset[sample]), int(index.length[sample])
        if most is not None and most < length:
            return storage.read_range(shard, offset, most)
        found = storage.read_range(shard, offset, length)
        if isal_zlib.crc32(found) != index.crc32[sample]:
            raise EvaluationError(
                f"{shard}: sample {key} is not as the index describes it (its CRC-32 differs); bring the shard back "
                f"or, if it was written anew, run `inpaint shards index {url}`"
            )
        return found

    return Pictures(
        url,
        tuple(sorted(samples)),
        lambda key: decode(data(key), name=f"{url}: {key}"),
        index.digest,
        lambda key: header_size(lambda most: data(key, most), name=f"{url}: {key}"),
    )


def is_picture(name: str) -> bool:
    """Whether a file's name is that of an image, and not of a file manager's leftovers."""
    last = name.rsplit("/", 1)[-1].lower()
    return last.endswith(SUFFIXES) and not last.startswith(".") and "__MACOSX/" not in name
