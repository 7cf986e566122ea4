"""Decoded images of earlier epochs on the node's disk, as luma and halved colour planes (YUV 4:2:0).

Most JPEGs store exactly this; RGB only interpolates it. The image that comes back differs from the JPEG's by less than
one of 255 levels on average and by fewer than eight anywhere (tests/data/test_decoding.py). With the cache switched on
every image takes this way, cached or not, so what a run sees does not depend on what an earlier one left.

One memory-mapped file serves all ranks of a node: a flag and a checksum per sample, then size²·3/2 bytes each. It is
reserved as a whole when it is made, so a full disk shows then and not in the middle of an epoch.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from isal import isal_zlib

log = logging.getLogger(__name__)


def plane_bytes(size: int) -> int:
    """Bytes of one image's planes."""
    return size * size * 3 // 2


def _let_go(file: BinaryIO | None) -> None:
    """Let others remove the file; closing alone does not, as the map keeps a handle of its own."""
    if file is not None:
        fcntl.flock(file, fcntl.LOCK_UN)
        file.close()


def to_planes(pixels: np.ndarray, planes: np.ndarray) -> None:
    """Write [size, size, 3] RGB as luma, blue and red planes, size²·3/2 bytes, as JPEG (JFIF) defines them."""
    from PIL import Image

    size = len(pixels)
    image = Image.frombuffer("RGB", (size, size), pixels, "raw", "RGB", 0, 1).convert("YCbCr")
    luma, blue, red = image.split()
    quarter = size * size // 4
    planes[: 4 * quarter] = np.asarray(luma).reshape(-1)
    planes[4 * quarter : 5 * quarter] = np.asarray(blue.reduce(2)).reshape(-1)
    planes[5 * quarter :] = np.asarray(red.reduce(2)).reshape(-1)


class PlanesCache:
    """Planes of the first samples of a set, as many as fit into `limit_bytes`.

    Args:
        folder: shared by the ranks of a node; other sets' files there make room, unless somebody has them open.
        name: of the file; must tell everything that the pixels depend on.
        samples: of the set.
        size: side of the images, even.
        limit_bytes: of all such files in the folder.

    Attributes:
        slots: how many samples have a place; 0 when there is no room on the disk.
    """

    def __init__(self, folder: str | os.PathLike[str], name: str, *, samples: int, size: int, limit_bytes: int):
        self.folder, self._each = Path(folder) / "planes", plane_bytes(size)
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / ".lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.slots, file = self._open(name, samples, limit_bytes)
        self.close = weakref.finalize(self, _let_go, file)
        whole = np.frombuffer(mmap.mmap(file.fileno(), 0) if file else b"", np.uint8)
        self._flags, sums, planes = np.split(whole, [self.slots, 5 * self.slots])
        self._sums = sums.view(np.uint8).reshape(self.slots, 4)
        self._planes = planes.reshape(self.slots, self._each)
        self._verified = np.zeros(self.slots, bool)

    def has(self, samples: np.ndarray) -> np.ndarray:
        """Which of these samples are here and whole, bool."""
        placed = samples < self.slots
        if not self.slots:
            return placed
        places = np.where(placed, samples, 0)
        found = placed & (self._flags[places] == 1)
        for i in np.flatnonzero(found & ~self._verified[places]):
            found[i] = self._verify(int(places[i]))
        return found

    def read(self, samples: np.ndarray, rows: np.ndarray) -> None:
        """Copy the planes of samples that are here into rows, [samples, size²·3/2]."""
        np.take(self._planes, samples, axis=0, out=rows, mode="clip")

    def write(self, sample: int, planes: np.ndarray) -> None:
        """Keep a sample's planes, if it has a place."""
        if sample < self.slots and not self._flags[sample]:
            self._planes[sample] = planes
            self._sums[sample] = np.frombuffer(isal_zlib.crc32(planes).to_bytes(4, "little"), np.uint8)
            self._verified[sample] = True
            self._flags[sample] = 1  # last: other processes trust it

    def _verify(self, sample: int) -> bool:
        right = isal_zlib.crc32(self._planes[sample]) == int.from_bytes(self._sums[sample].tobytes(), "little")
        self._verified[sample] = right
        if not right:
            self._flags[sample] = 0
        return right

    def _open(self, name: str, samples: int, limit_bytes: int) -> tuple[int, BinaryIO | None]:
        """How many places there are, and the file with them; made if it is not there."""
        slots = self._room(limit_bytes, samples, self._others(lambda other: _name(other) == name))
        path = self._place(name, slots)
        taken = self._others(lambda other: other == path)  # now also files of other bounds
        if slots > (left := self._room(limit_bytes, samples, taken)):
            slots, path = left, self._place(name, left)
        if not slots:
            log.warning("%s: no room for decoded images; raise data.decoded_cache_gib", self.folder)
            return 0, None
        length = slots * (self._each + 5)
        file = open(path, "a+b")  # noqa: SIM115 (stays open, and locked, as long as the map is used)
        fcntl.flock(file, fcntl.LOCK_SH)
        try:
            if os.fstat(file.fileno()).st_size != length:
                os.ftruncate(file.fileno(), 0)
                os.posix_fallocate(file.fileno(), 0, length)
        except OSError as error:
            file.close()
            path.unlink(missing_ok=True)
            log.warning("%s: %s; images are decoded anew in each epoch", self.folder, error.strerror)
            return 0, None
        return slots, file

    def _place(self, name: str, slots: int) -> Path:
        return self.folder / f"{name}-{slots}.planes"

    def _room(self, limit_bytes: int, samples: int, taken: int) -> int:
        return max(0, min(samples, (limit_bytes - taken) // (self._each + 5)))

    def _others(self, ours: Callable[[Path], bool]) -> int:
        """Bytes of files that are not ours and that somebody has open; the rest of them is removed."""
        taken = 0
        for other in self.folder.glob("*.planes"):
            if ours(other):
                continue
            with open(other, "rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    other.unlink()
                except BlockingIOError:
                    taken += other.stat().st_size
        return taken


def _name(path: Path) -> str:
    """A file's name without its number of slots."""
    return path.name.rpartition("-")[0]
