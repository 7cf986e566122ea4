"""Checksums of a checkpoint's files: what is written into the manifest, and the check before they are used.

A file has a SHA-256, by which a pulled copy is verified, and a CRC-32 of every piece, by which a resuming run finds
damage at a small part of the cost: pieces are checked in parallel and straight from the mapped file.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
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


def check(info: CheckpointInfo, here: Mapping[str, Path]) -> None:
    """Compare files with what the manifest says of them.

    Args:
        info: the checkpoint.
        here: which of its files, and where they are.

    Raises:
        CheckpointError: names the file that is missing or damaged.
    """
    pieces: list[tuple[str, int, int]] = []
    for name, path in here.items():
        entry = info.files[name]
        if not path.is_file() or path.stat().st_size != entry["bytes"] or "crc32" not in entry:
            raise _refused(info, name)
        pieces += [(name, number * PIECE_BYTES, expected) for number, expected in enumerate(entry["crc32"])]
    with ThreadPoolExecutor(THREADS, thread_name_prefix="checksum") as threads:
        sums = threads.map(lambda piece: _crc32(here[piece[0]], piece[1]), pieces)
        for (name, _, expected), found in zip(pieces, sums, strict=True):
            if found != expected:
                raise _refused(info, name)


def _refused(info: CheckpointInfo, name: str) -> CheckpointError:
    return CheckpointError(f"{info.place(name)} is missing or not what its manifest says; take another checkpoint")


def _crc32(path: Path, start: int) -> int:
    """CRC-32 of the piece that begins at `start`, which must be a multiple of the page size."""
    with path.open("rb") as file:
        length = min(PIECE_BYTES, os.fstat(file.fileno()).st_size - start)
        flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)  # all its pages at once, on Linux
        with mmap.mmap(file.fileno(), length, flags, mmap.PROT_READ, offset=start) as piece:
            return isal_zlib.crc32(piece)
