"""The local side of the storage door: plain files, written through a hidden neighbour and renamed into place."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inpaint.errors import StorageError
from inpaint.storage.objects import (
    AlreadyExists,
    ChangedMeanwhile,
    MissingObject,
    ObjectInfo,
    OutOfSpace,
    Progress,
    join,
)

COPY_BYTES = 4 << 20
LOST = "lost+found"  # of a file system, at the root of a volume
HIDDEN_ENDINGS = (".tmp", ".lock", ".part")  # of hidden files that are no objects


def path_of(url: str) -> Path:
    """The path behind a local URL, with or without `file://`.

    Raises:
        StorageError: another scheme, or an S3 URL that lost its bucket on the way (`s3://` + `$UNSET`).
    """
    if url.startswith("s3:/"):
        raise StorageError(f"{url}: names no bucket; expected s3://bucket/key")
    scheme, separator, rest = url.partition("://")
    if not separator:
        return Path(url)
    if scheme != "file":
        raise StorageError(f"{url}: {scheme}:// is not supported; use s3://bucket/key or a local path")
    return Path(rest)


@contextmanager
def errors(place: str) -> Iterator[None]:
    """Turns what the operating system says about `place` into a StorageError of one line."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:  # what would lie below a file is not there either
        raise MissingObject(f"{place}: there is no such file; check the path") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutOfSpace(f"{place}: the disk is full; free some space or choose another place") from error
        raise StorageError(f"{place}: {error.strerror or error}; check the path and its permissions") from error


def stat(url: str) -> ObjectInfo:
    path = path_of(url)
    with errors(url):
        found = path.stat()
    if not path.is_file():
        raise MissingObject(f"{url}: is a folder, not a file")
    return _info(url, found)


def list_objects(url: str) -> Iterator[ObjectInfo]:
    root = str(path_of(url))
    names = []
    with errors(url):
        for folder, _, files in walk(root):
            base = os.path.relpath(folder, root)
            names += [os.path.normpath(os.path.join(base, name)) for name in files if not _is_hidden(name)]
    for name in sorted(names):
        try:
            yield _info(join(url, name), os.stat(os.path.join(root, name)))
        except FileNotFoundError:  # removed since the walk
            continue


def walk(root: str | Path, *, follow_links: bool = False) -> Iterator[tuple[str, list[str], list[str]]]:
    """`os.walk` from the top, where what cannot be listed is not empty: only what is not there holds nothing.

    Raises:
        StorageError: names the folder.
    """
    for folder, folders, files in os.walk(root, onerror=_refuse, followlinks=follow_links):
        folders[:] = [name for name in folders if name != LOST]
        yield folder, folders, files


def list_folders(url: str) -> list[str]:
    path = path_of(url)
    if not path.is_dir():
        return []
    with errors(url):
        return sorted(entry.name for entry in os.scandir(path) if entry.is_dir())


def read_bytes(url: str) -> bytes:
    with errors(url):
        return path_of(url).read_bytes()


def read_into(url: str, start: int, view: memoryview) -> None:
    with errors(url), open(path_of(url), "rb", buffering=0) as file:
        file.seek(start)
        done = 0
        while done < len(view):
            count = file.readinto(view[done:])
            if not count:
                raise StorageError(
                    f"{url}: ends at byte {start + done}, expected {start + len(view)}; the file was truncated"
                )
            done += count


def read_window(info: ObjectInfo, start: int, view: memoryview, threads: int) -> None:
    """`read_into`; the disk needs no parallel ranges."""
    read_into(info.url, start, view)


def write_bytes(url: str, data: bytes, *, if_absent: bool = False) -> str:
    path = path_of(url)
    with _beside(path) as temporary:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if not if_absent:
            os.replace(temporary, path)
        else:
            try:
                os.link(temporary, path)
            except FileExistsError:
                raise AlreadyExists(f"{url}: there is a file already; remove it or choose another name") from None
    return stat(url).etag


def write_if_match(url: str, data: bytes, etag: str) -> str:
    path = path_of(url)
    if not path.parent.is_dir():
        raise ChangedMeanwhile(f"{url}: is gone, expected version {etag}; read it again before writing")
    with errors(url), open(path.parent / f".{path.name}.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = stat(url).etag if path.is_file() else "nothing"
        if found != etag:
            raise ChangedMeanwhile(f"{url}: is version {found}, expected {etag}; read it again before writing")
        return write_bytes(url, data)


def upload(source: Path, url: str, progress: Progress) -> None:
    target = path_of(url)
    with errors(str(source)), open(source, "rb") as incoming, _beside(target) as temporary:
        with open(temporary, "wb") as outgoing:
            while chunk := incoming.read(COPY_BYTES):
                outgoing.write(chunk)
                progress(len(chunk))
            outgoing.flush()
            os.fsync(outgoing.fileno())
        os.replace(temporary, target)


def delete(url: str) -> None:
    with errors(url):
        path_of(url).unlink(missing_ok=True)


def delete_tree(url: str) -> None:
    path = path_of(url)
    if path.is_dir():
        with errors(url):
            shutil.rmtree(path)


def _refuse(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        place = f"{error.filename}: cannot be listed ({error.strerror})"
        raise StorageError(f"{place}; check it and its permissions") from error


def _info(url: str, found: os.stat_result) -> ObjectInfo:
    tag = f"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}"  # every atomic write makes a new inode
    return ObjectInfo(url, found.st_size, found.st_mtime, tag)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") and name.endswith(HIDDEN_ENDINGS)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A hidden name in the folder of `path`, removed afterwards if it is still there."""
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
    with errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)
