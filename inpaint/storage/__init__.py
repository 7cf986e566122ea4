"""The one door to objects: `s3://bucket/key` and local paths behind the same functions.

Every write is atomic: an object is there whole or not at all. Reads from S3 are retried with exponential backoff and
jitter, go on at the byte where a connection was cut, and never mix two versions of an object. Credentials come from
the default chain of the AWS client and are renewed when they expire; the endpoint comes from AWS_ENDPOINT_URL_S3 or
AWS_ENDPOINT_URL.

    StorageError
    ├── MissingObject     there is no such object
    ├── AlreadyExists     `write_bytes(..., if_absent=True)` found one
    ├── ChangedMeanwhile  `write_if_match` found another version than the one it was given
    ├── OutOfSpace        the local disk is full
    └── Unavailable       the store could not be reached, or was too busy, in all attempts
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from inpaint.errors import StorageError
from inpaint.storage import disk, s3, s3_client
from inpaint.storage.disk import walk
from inpaint.storage.objects import (
    AlreadyExists,
    ChangedMeanwhile,
    MissingObject,
    ObjectInfo,
    OutOfSpace,
    Progress,
    Unavailable,
    is_remote,
    join,
    name_of,
)

__all__ = [
    "AlreadyExists", "ChangedMeanwhile", "MissingObject", "ObjectInfo", "OutOfSpace", "Progress",
    "Unavailable", "check_writable", "delete", "delete_tree", "download", "exists", "is_remote", "join", "list_folders",
    "list_objects", "local_path", "name_of", "read_bytes", "read_into", "read_range", "sha256_file", "stat", "traffic",
    "upload", "walk", "write_bytes", "write_if_match",
]  # fmt: skip

_thread = threading.local()
WINDOW_BYTES = 32 << 20  # a download is extended by this much at a time, in parallel ranges
ABANDONED_SECONDS = 86_400
DOWNLOAD_ATTEMPTS = 2  # whole downloads, when the object is replaced meanwhile or its bytes have the wrong checksum


def exists(url: str) -> bool:
    """Whether there is an object at `url`; a folder is not an object."""
    try:
        stat(url)
    except MissingObject:
        return False
    return True


def stat(url: str) -> ObjectInfo:
    """Size, time and tag of an object.

    Raises:
        MissingObject: there is none.
    """
    return _side(url).stat(url)


def list_objects(url: str) -> Iterator[ObjectInfo]:
    """Every object below the folder `url`, at any depth, sorted by URL; nothing when the folder is not there."""
    return _side(url).list_objects(url)


def list_folders(url: str) -> list[str]:
    """Names of the folders directly below `url`, sorted; empty when it is not there."""
    return _side(url).list_folders(url)


def read_bytes(url: str) -> bytes:
    """A whole object.

    Raises:
        MissingObject: there is none.
    """
    return _side(url).read_bytes(url)


def read_range(url: str, start: int, length: int) -> bytes:
    """`length` bytes from byte `start`.

    Raises:
        StorageError: the object ends before that.
    """
    buffer = bytearray(length)
    read_into(url, start, buffer)
    return bytes(buffer)


def read_into(url: str, start: int, buffer: bytearray | memoryview) -> None:
    """Fill `buffer` with the bytes from `start` on.

    Raises:
        StorageError: the object ends before the buffer does.
    """
    _side(url).read_into(url, start, memoryview(buffer).cast("B"))


def write_bytes(url: str, data: bytes, *, if_absent: bool = False) -> str:
    """Write a whole object and return its tag.

    Raises:
        AlreadyExists: with `if_absent`, when there is one already.
    """
    return _side(url).write_bytes(url, data, if_absent=if_absent)


def write_if_match(url: str, data: bytes, etag: str) -> str:
    """Replace the version of an object that has this tag, and return the new tag.

    Raises:
        ChangedMeanwhile: the object has another tag by now, or is gone.
    """
    return _side(url).write_if_match(url, data, etag)


def upload(path: str | os.PathLike[str], url: str, *, progress: Progress | None = None) -> None:
    """Copy a local file to `url`, in parallel parts when it is large.

    Args:
        progress: gets the bytes done since last time.
    """
    _side(url).upload(Path(path), url, progress or _ignore)


def download(
    url: str,
    path: str | os.PathLike[str],
    *,
    sha256: str | None = None,
    progress: Progress | None = None,
    threads: int = 4,
) -> None:
    """Copy an object to a local file, which appears only when it is whole.

    What an interrupted download left in `.<name>.<tag>.part` is continued as long as the object is unchanged.

    Args:
        sha256: digest the bytes must have; with a wrong one the object is fetched once more, as it is when it is
            replaced meanwhile.
        progress: gets the bytes done since last time.
        threads: ranges fetched at the same time.

    Raises:
        StorageError: not there, unreachable, twice replaced meanwhile, or twice another checksum.
        OutOfSpace: the local disk is full.
    """
    path = Path(path)
    for attempt in range(DOWNLOAD_ATTEMPTS):
        info = stat(url)
        with _part_of(info, path) as (part, file):
            try:
                passed = _continue(info, file, progress or _ignore, threads, hashlib.sha256() if sha256 else None)
            except ChangedMeanwhile:
                part.unlink()
                if attempt + 1 < DOWNLOAD_ATTEMPTS:
                    continue
                raise
            found = sha256_file(part) if sha256 and passed is None else passed
            if found == sha256:
                os.replace(part, path)
                return
            part.unlink()
    raise StorageError(
        f"{url}: the bytes have sha256 {str(found)[:12]}…, expected {str(sha256)[:12]}…, twice; "
        "the object was altered or truncated after it was listed; write it again"
    )


def delete(url: str) -> None:
    """Remove an object; one that is not there is no error."""
    _side(url).delete(url)


def delete_tree(url: str) -> None:
    """Remove everything below the folder `url`."""
    _side(url).delete_tree(url)


def check_writable(url: str) -> None:
    """Write and remove a small object below `url`.

    Raises:
        StorageError: it cannot be written, with the reason.
    """
    probe = join(url, f"write-check-{uuid.uuid4().hex}")
    write_bytes(probe, b"")
    delete(probe)


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Hex digest of a local file."""
    with disk.errors(str(path)), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def local_path(url: str) -> Path:
    """The path behind a local URL."""
    return disk.path_of(url)


def traffic() -> dict[str, int]:
    """What this process has asked of S3 so far: `requests`, `retries`, `bytes_read`."""
    return s3_client.traffic()


def _side(url: str):  # the two modules have the same functions
    return s3 if is_remote(url) else disk


def _ignore(done: int) -> None:
    pass


@contextmanager
def _part_of(info: ObjectInfo, path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """The file beside `path` that gathers this version of an object, opened at its end and locked for this process."""
    tag = hashlib.sha256(f"{info.url} {info.etag} {info.size}".encode()).hexdigest()[:16]
    part = path.parent / f".{path.name}.{tag}.part"
    with disk.errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path, keep=part)
        while True:
            with open(part, "ab", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if part.exists() and os.path.samestat(part.stat(), os.fstat(file.fileno())):
                    yield part, file
                    return


def _continue(info: ObjectInfo, file: BinaryIO, progress: Progress, threads: int, digest: Any) -> str | None:
    """Add to a part what it still lacks of the object; returns the digest of the whole if all of it came just now."""
    done = min(file.tell(), info.size)
    file.truncate(done)
    progress(done)
    digest = None if done else digest
    buffer = _window(min(WINDOW_BYTES, info.size - done))
    while done < info.size:
        window = buffer[: info.size - done]
        _side(info.url).read_window(info, done, window, threads)
        written = 0
        while written < len(window):
            written += file.write(window[written:])
        if digest:
            digest.update(window)
        done += len(window)
        progress(len(window))
    return digest.hexdigest() if digest else None


def _window(size: int) -> memoryview:
    """This thread's memory for a piece of a download; new memory would cost as much as filling it."""
    if len(getattr(_thread, "window", b"")) < size:
        _thread.window = bytearray(size)
    return memoryview(_thread.window)[:size]


def _remove_abandoned(path: Path, *, keep: Path) -> None:
    """Remove parts of other versions that nobody has touched for a day."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        with suppress(OSError):
            if part != keep and time.time() - part.stat().st_mtime > ABANDONED_SECONDS:
                part.unlink()
