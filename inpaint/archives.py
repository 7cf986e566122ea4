"""The files inside a folder, a tar or a zip, local or in S3: one listing, and one way to read any of them.

A listing is plain data (name, where its bytes lie, how many), so a worker process or another machine reads a file with
one ranged read and needs neither the listing nor an open handle.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from inpaint import storage
from inpaint.errors import DataError

DECOMPRESSORS = {".gz": gzip.open, ".tgz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
LARGEST_FILE = 1 << 30  # bytes; a larger file is no photograph, and a zip can claim any size
READ_AHEAD = 1 << 20
LOCAL_HEADER = 0x04034B50  # of a file in a zip
BLOCK_BYTES = 512  # of a tar


@dataclass(frozen=True)
class Entry:
    """A file in a folder or an archive.

    Attributes:
        name: its path inside the source, with `/`.
        size: bytes of the file.
        url: the object its bytes lie in: the file itself, or the archive.
        offset: where they begin in it; for a zip, where the local header begins.
        stored: bytes they take there; None when the object is the file itself.
        method: 0 when stored as they are; a zip's compression method otherwise; -1 for a stored zip member.
        crc: CRC-32 of the file where the archive gives one.
        tag: changes when the object is written anew: its modification time, or its tag in S3.
    """

    name: str
    size: int
    url: str
    offset: int = 0
    stored: int | None = None
    method: int = 0
    crc: int | None = None
    tag: str = ""


def is_archive(url: str) -> bool:
    """Whether the name is that of a tar or a zip."""
    name = url.lower()
    return name.endswith((".tar", ".zip")) or _is_compressed_tar(name)


@contextmanager
def open_source(url: str) -> Iterator[list[Entry]]:
    """The files of a folder (with all its sub-folders), a tar or a zip, sorted by name.

    A compressed tar has no random access: it is unpacked into a temporary file, which is removed at the end. So are
    not-local tars of that kind, after their download.

    Raises:
        DataError: nothing there, or an archive that is damaged, cut short or encrypted.
    """
    if _is_compressed_tar(url.lower()):
        with tempfile.TemporaryDirectory(prefix="inpaint-unpack-") as folder:
            yield _sorted(_tar_entries(_unpack(url, Path(folder))), url)
    elif url.lower().endswith(".tar"):
        yield _sorted(_tar_entries(url), url)
    elif url.lower().endswith(".zip"):
        yield _sorted(_zip_entries(url), url)
    else:
        yield _sorted(_folder_entries(url), url)


def read(entry: Entry) -> bytes:
    """The bytes of a file.

    Raises:
        DataError: the file is larger than 1 GiB, damaged, or compressed in an unusual way.
        StorageError: the object cannot be read.
    """
    if entry.size > LARGEST_FILE:
        raise DataError(f"{entry.name}: {entry.size:,} bytes; files above {LARGEST_FILE:,} are not read")
    if entry.stored is None:
        return storage.read_bytes(entry.url)
    if not entry.size:
        return b""
    if entry.method == 0:
        return storage.read_range(entry.url, entry.offset, entry.stored)
    return _unzip(entry)


def _sorted(entries: Iterator[Entry], url: str) -> list[Entry]:
    try:
        found = {entry.name: entry for entry in entries}  # of two files of one name in a tar, the later one counts
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{url}: a damaged archive ({error}); fetch it again") from error
    if not found:
        raise DataError(f"{url}: no files here; expected a folder, .tar or .zip of images")
    return [found[name] for name in sorted(found)]


def _folder_entries(url: str) -> Iterator[Entry]:
    if storage.is_remote(url):
        prefix = url.rstrip("/") + "/"
        for info in storage.list_objects(url):
            yield Entry(info.url.removeprefix(prefix), info.size, info.url, tag=info.etag)
        return
    root = storage.local_path(url)
    if not root.is_dir():
        raise DataError(f"{url}: no such folder or archive; expected a folder, .tar or .zip of images")
    seen = set()
    for folder, folders, files in storage.walk(root, follow_links=True):
        folders[:] = [name for name in folders if _is_first_visit(Path(folder, name), seen)]
        for file in files:
            path = Path(folder, file)
            found = path.stat() if path.exists() else None  # a dangling link is an empty file
            size, tag = (found.st_size, str(found.st_mtime_ns)) if found else (0, "")
            yield Entry(path.relative_to(root).as_posix(), size, str(path), tag=tag)


def _is_first_visit(folder: Path, seen: set[tuple[int, int]]) -> bool:
    """Whether a linked folder was not walked yet; links may go in circles."""
    identity = (folder.stat().st_dev, folder.stat().st_ino)
    if identity in seen:
        return False
    seen.add(identity)
    return True


def _tar_entries(url: str) -> Iterator[Entry]:
    end, tag = 0, _tag(url)
    with _binary(url) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            tar.members = []  # or a tar of millions fills the memory
            stored = member.size if member.isreg() else 0
            end = member.offset_data + -(-stored // BLOCK_BYTES) * BLOCK_BYTES
            if not member.isdir():  # a link is an empty file, which whoever reads it will miss and name
                yield Entry(_clean(member.name), stored, url, member.offset_data, stored, tag=tag)
        file.seek(end)
        if file.read(BLOCK_BYTES) != bytes(BLOCK_BYTES):  # a tar cut between two files ends without a block of zeros
            raise tarfile.ReadError("it was cut off")


def _zip_entries(url: str) -> Iterator[Entry]:
    tag = _tag(url)
    with _binary(url) as file, zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            if info.flag_bits & 1:
                raise DataError(f"{url}: {info.filename} is encrypted; unpack the archive first")
            name, stored, method = _clean(info.filename), info.compress_size, info.compress_type or -1
            yield Entry(name, info.file_size, url, info.header_offset, stored, method, info.CRC, tag)


def _unzip(entry: Entry) -> bytes:
    """A member of a zip: a local header of unlisted length, and then its bytes."""
    assert entry.stored is not None
    try:
        # Behind a member lies at least its line in the list at the end, 46 bytes and the name, and that list's own end,
        # 22 bytes: so much can be read with it, which is enough for most headers.
        start = storage.read_range(entry.url, entry.offset, entry.stored + 30 + 2 * len(entry.name) + 64)
        signature, name_length, extra_length = *struct.unpack("<I", start[:4]), *struct.unpack("<HH", start[26:30])
        if signature != LOCAL_HEADER:
            raise DataError(f"{entry.name}: no zip header where the archive lists it")
        first, end = 30 + name_length + extra_length, 30 + name_length + extra_length + entry.stored
        if end > len(start):
            start += storage.read_range(entry.url, entry.offset + len(start), end - len(start))
        body = memoryview(start)[first:end]
        if entry.method == -1:
            content = bytes(body)
        elif entry.method == zipfile.ZIP_DEFLATED:
            content = zlib.decompressobj(-15).decompress(body, entry.size)
        elif entry.method == zipfile.ZIP_BZIP2:
            content = bz2.BZ2Decompressor().decompress(bytes(body), entry.size)
        else:
            raise DataError(f"{entry.name}: zip compression {entry.method} is not read here; unpack the archive first")
    except (struct.error, zlib.error, OSError) as error:
        raise DataError(f"{entry.name}: damaged inside {storage.name_of(entry.url)} ({error})") from error
    if len(content) != entry.size or zlib.crc32(content) != entry.crc:
        raise DataError(f"{entry.name}: its checksum in {storage.name_of(entry.url)} does not match")
    return content


def _unpack(url: str, folder: Path) -> str:
    """A compressed tar as a plain tar in `folder`."""
    if storage.is_remote(url):
        source = folder / storage.name_of(url)
        storage.download(url, source)
    else:
        source = storage.local_path(url)
    target = folder / "unpacked.tar"
    opener = next(opener for suffix, opener in DECOMPRESSORS.items() if url.lower().endswith(suffix))
    try:
        with opener(source, "rb") as packed, target.open("wb") as plain:
            shutil.copyfileobj(packed, plain, 1 << 20)
    except FileNotFoundError as error:
        raise DataError(f"{url}: no such folder or archive") from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{url}: cannot be unpacked ({error}); fetch it again") from error
    return str(target)


def _is_compressed_tar(name: str) -> bool:
    return name.endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"))


def _tag(url: str) -> str:
    if storage.is_remote(url):
        return storage.stat(url).etag
    path = storage.local_path(url)
    return str(path.stat().st_mtime_ns) if path.exists() else ""


def _clean(name: str) -> str:
    return name.removeprefix("./").lstrip("/")


def _binary(url: str) -> IO[bytes]:
    if storage.is_remote(url):
        return io.BufferedReader(_Ranged(url), READ_AHEAD)
    try:
        return open(storage.local_path(url), "rb")
    except OSError as error:
        raise DataError(f"{url}: cannot be opened ({error.strerror})") from error


class _Ranged(io.RawIOBase):
    """An object in S3 as a file that can be read and sought."""

    def __init__(self, url: str) -> None:
        self._url, self._position, self._size = url, 0, storage.stat(url).size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        length = max(0, min(len(buffer), self._size - self._position))
        if length:
            buffer[:length] = storage.read_range(self._url, self._position, length)
            self._position += length
        return length
