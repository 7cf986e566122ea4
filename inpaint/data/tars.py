"""Walking one WebDataset tar: its samples, where their images lie, and whether the tar is whole."""

from __future__ import annotations

import os
import re
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from isal import isal_zlib

from inpaint import storage
from inpaint.errors import DataError

# The image of a sample is the member with the first of these endings; `img.png` or `image.jpg` serve as well.
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "ppm", "tif", "tiff", "gif")
IMAGE_NAMES = ("image", "img")
MEMBER = re.compile(r"^((?:.*/)?[^./][^./]*)\.([^/]*)$", re.DOTALL)  # key up to the first dot of the file name
BLOCK_BYTES = 512


@dataclass(frozen=True, eq=False)
class ShardRecord:
    """What the index says of one tar; entry i of every column is sample i.

    Attributes:
        name: file name of the tar.
        bytes: its size.
        sha256: of the whole file.
        keys: of the samples, in the order of the tar.
        offsets, lengths: of each sample's image, in bytes, int64 and int32.
        crc32: of each sample's image, uint32.
        exts: file ending of each sample's image.
    """

    name: str
    bytes: int
    sha256: str
    keys: tuple[str, ...]
    offsets: np.ndarray
    lengths: np.ndarray
    crc32: np.ndarray
    exts: tuple[str, ...]


@dataclass(frozen=True)
class _Member:
    ext: str
    offset: int
    length: int


def index_tar(path: str | os.PathLike[str], *, place: str | None = None) -> ShardRecord:
    """Read one local tar from end to end.

    Args:
        place: how messages name it; its path when None.

    Raises:
        DataError: not a whole tar, a sample without an image, or a key that comes twice.
    """
    path, place = Path(path), place or str(path)
    size = path.stat().st_size
    samples = _samples(path, size, place)
    images = [_image(members, key, place) for key, members in samples.items()]
    sums = np.empty(len(images), np.uint32)
    with open(path, "rb") as file:
        for i, image in enumerate(images):
            file.seek(image.offset)
            sums[i] = isal_zlib.crc32(file.read(image.length))
    return ShardRecord(
        name=storage.name_of(place),
        bytes=size,
        sha256=storage.sha256_file(path),
        keys=tuple(samples),
        offsets=np.array([image.offset for image in images], np.int64),
        lengths=np.array([image.length for image in images], np.int32),
        crc32=sums,
        exts=tuple(image.ext for image in images),
    )


def index_tar_at(url: str) -> ShardRecord:
    """`index_tar` for a tar anywhere; one in S3 passes through a temporary file."""
    if not storage.is_remote(url):
        return index_tar(storage.local_path(url), place=url)
    with tempfile.TemporaryDirectory(prefix="inpaint-index-") as folder:
        path = Path(folder) / storage.name_of(url)
        storage.download(url, path)
        return index_tar(path, place=url)


def _samples(path: Path, size: int, place: str) -> dict[str, list[_Member]]:
    """The members of each key."""
    samples: dict[str, list[_Member]] = {}
    last, end = None, 0
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                end = member.offset_data + -(-member.size // BLOCK_BYTES) * BLOCK_BYTES
                parts = MEMBER.match(member.name)
                if not member.isreg() or not parts or _is_meta(member.name):
                    continue
                key, ext = parts.group(1), parts.group(2).lower()
                if key != last and key in samples:
                    raise DataError(f"{place}: key {key} comes twice; keys must be unique, write the shard again")
                if any(other.ext == ext for other in samples.setdefault(key, [])):
                    raise DataError(f"{place}: {key}.{ext} comes twice; keys must be unique, write the shard again")
                samples[key].append(_Member(ext, member.offset_data, member.size))
                last = key
    except tarfile.TarError as error:
        raise DataError(f"{place}: not a whole tar ({error}); write or copy the shard again") from error
    _refuse_truncated(path, size, end, place)
    return samples


def _refuse_truncated(path: Path, size: int, end: int, place: str) -> None:
    """A whole tar ends in a block of zeros; one cut between two members does not."""
    with open(path, "rb") as file:
        file.seek(end)
        if end + BLOCK_BYTES > size or any(file.read(BLOCK_BYTES)):
            raise DataError(f"{place}: the tar is cut off after {size} bytes; write or copy the shard again")


def _image(members: list[_Member], key: str, place: str) -> _Member:
    """The member that is the sample's image."""
    by_ext = {member.ext: member for member in members}
    for ext in IMAGE_EXTENSIONS:
        for name in (ext, *(f"{name}.{ext}" for name in IMAGE_NAMES)):
            if name in by_ext:
                return by_ext[name]
    named = [member for member in members if member.ext.rsplit(".", 1)[-1] in IMAGE_EXTENSIONS]
    if len(named) == 1:
        return named[0]
    found = ", ".join(sorted(by_ext)) or "nothing"
    what = "several images" if named else "no image"
    raise DataError(
        f"{place}: sample {key} has {what} (members: {found}); expected one named {key}.jpg or another of "
        f"{', '.join(IMAGE_EXTENSIONS)}; write the shard again"
    )


def _is_meta(name: str) -> bool:
    return any(part.startswith("__") and part.endswith("__") for part in name.split("/"))
