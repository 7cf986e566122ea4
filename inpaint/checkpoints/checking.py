"""Checksums of a checkpoint's files: what is written into the manifest, and a check that runs beside the loading.

A file has a SHA-256, by which a pulled copy is verified, and a CRC-32 of every piece, by which a resuming run finds
damage at a fraction of the cost: pieces are checked in parallel and straight from the mapped file.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from isal import isal_zlib

from inpaint import storage
from inpaint.checkpoints.layout import CheckpointInfo
from inpaint.errors import CheckpointError

PIECE_BYTES = 8 << 20
THREADS = 4


def describe(path: Path) -> dict[str, Any]:
    """A file's entry in the manifest: size, SHA-256, and CRC-32 per piece."""
    size = path.stat().st_size
    pieces = [_crc32(path, start) for start in range(0, size, PIECE_BYTES)]
    return {"bytes": size, "sha256": storage.sha256_file(path), "crc32": pieces}


class Checks:
    """Checks files against a manifest in threads of its own, while they are used.

    Args:
        info: what they ought to be.
        here: which of them, and where they are.
        afterwards: closed when the check is over, for instance the folder they are in.
    """

    def __init__(
        self, info: CheckpointInfo, here: Mapping[str, Path], *, afterwards: ExitStack | None = None
    ) -> None:
        self._info, self._afterwards = info, afterwards or ExitStack()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="checksum")
        self._found: list[tuple[str, int, Future[int]]] = []
        for name, path in here.items():
            entry = info.files[name]
            if not path.is_file() or path.stat().st_size != entry["bytes"] or "crc32" not in entry:
                self._threads.shutdown()
                with self._afterwards:
                    self._refuse(name)
            for number, expected in enumerate(entry["crc32"]):
                job = self._threads.submit(_crc32, path, number * PIECE_BYTES)
                self._found.append((name, expected, job))

    def wait(self) -> None:
        """Return when every piece has proved right.

        Raises:
            CheckpointError: names the file that is damaged.
        """
        with self._afterwards:
            try:
                for name, expected, job in self._found:
                    if job.result() != expected:
                        self._refuse(name)
            finally:
                self._threads.shutdown(cancel_futures=True)

    def _refuse(self, name: str) -> None:
        raise CheckpointError(
            f"{self._info.place(name)} is missing or not what its manifest says; take another checkpoint"
        )


def _crc32(path: Path, start: int) -> int:
    """CRC-32 of the piece that begins at `start`, which must be a multiple of the page size."""
    with path.open("rb") as file:
        length = min(PIECE_BYTES, os.fstat(file.fileno()).st_size - start)
        flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)  # all its pages at once, on Linux
        with mmap.mmap(file.fileno(), length, flags, mmap.PROT_READ, offset=start) as piece:
            return isal_zlib.crc32(piece)
