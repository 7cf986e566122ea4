"""A bounded folder of shards on the node's own disk, shared by its ranks and runs.

A file is named by the SHA-256 of what is in it, so it can never be served for another set's shard; it appears only when
it is whole and verified; the least recently used ones make room. Locks between processes are locks on files, which the
kernel drops when a process dies.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from inpaint import storage
from inpaint.errors import StorageError

log = logging.getLogger(__name__)


class Busy(Exception):
    """Another process of this node is fetching the same shard."""


def default_folder() -> Path:
    """A folder under the system's temporary one that belongs to this user."""
    return Path(tempfile.gettempdir()) / f"inpaint-cache-{os.getuid()}"


class ShardCache:
    """Shards on local disk, at most `limit_bytes` of them.

    Args:
        folder: made when it is not there.
        limit_bytes: over all processes that use the folder.

    Raises:
        StorageError: the folder cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str], limit_bytes: int):
        self.folder, self.limit_bytes = Path(folder) / "shards", limit_bytes
        self._warned = False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / ".lock").touch()
        except OSError as error:
            said = f"data.cache_dir {folder}: {error.strerror}; choose a folder that can be written"
            raise StorageError(said) from error

    def path(self, sha256: str) -> Path:
        """Where a shard lies when it is there."""
        return self.folder / f"{sha256}.tar"

    def has(self, sha256: str, size: int) -> bool:
        """Whether a whole shard is there; marks it as used."""
        try:
            path = self.path(sha256)
            if path.stat().st_size != size:
                return False
            os.utime(path)
            return True
        except FileNotFoundError:
            return False

    def fetch(
        self, url: str, sha256: str, size: int, *, threads: int = 1, spare: Collection[str] = frozenset()
    ) -> bool:
        """Bring a shard in; True when it is there, False when there is no room for it.

        Args:
            threads: ranges fetched at the same time.
            spare: digests of shards that must not make room for it, since they are needed as much.

        Raises:
            Busy: another process is at it.
            StorageError: it cannot be read, or has another content than the index says.
        """
        try:
            with self._locked(f"{sha256}.lock", wait=False) as lock:
                if self.has(sha256, size):
                    return True
                with suppress(OSError):  # a full disk; older shards may make room yet
                    os.pwrite(lock, str(size).encode(), 0)  # others count it while it is on its way
                try:
                    return self._download(url, sha256, size, threads, spare)
                finally:
                    os.ftruncate(lock, 0)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self._warn_full()
            return False

    def drop(self, sha256: str) -> None:
        """Remove a shard whose bytes turned out to be wrong."""
        self.path(sha256).unlink(missing_ok=True)

    def _download(self, url: str, sha256: str, size: int, threads: int, spare: Collection[str]) -> bool:
        room = self._make_room(sha256, size, spare)
        while room:
            try:
                if shutil.disk_usage(self.folder).free < size:
                    raise storage.OutOfSpace(f"{self.folder}: {size} bytes do not fit")
                storage.download(url, self.path(sha256), sha256=sha256, threads=threads)
                return True
            except storage.OutOfSpace:
                room = self._make_room(sha256, size, spare, at_least=1)
                if not room:
                    self._warn_full()
        self._remove_part(sha256)
        return False

    def _make_room(self, sha256: str, size: int, spare: Collection[str], *, at_least: int = 0) -> bool:
        """Remove the least recently used shards until `size` more bytes fit, and no fewer than `at_least`."""
        with self._locked(".lock", wait=True):
            removable, kept = self._contents(sha256, spare)
            if kept + size > self.limit_bytes:
                return False
            used = kept + sum(found.st_size for _, found in removable)
            removed = 0
            for path, found in sorted(removable, key=lambda entry: entry[1].st_mtime):
                if used + size <= self.limit_bytes and removed >= at_least:
                    break
                path.unlink(missing_ok=True)
                used, removed = used - found.st_size, removed + 1
            return used + size <= self.limit_bytes and removed >= at_least

    def _contents(self, sha256: str, spare: Collection[str]) -> tuple[list[tuple[Path, os.stat_result]], int]:
        """Files that may go (whole shards, parts that nobody is filling), and the bytes of those that stay or come."""
        coming = {name: size for name, size in self._coming() if name != sha256}
        removable, kept = [], sum(coming.values())
        for path in self.folder.iterdir():
            name = path.name.lstrip(".").split(".")[0]
            if path.suffix not in (".tar", ".part") or name == sha256 or name in coming:
                continue
            with suppress(FileNotFoundError):
                if name in spare:
                    kept += path.stat().st_size
                else:
                    removable.append((path, path.stat()))
        return removable, kept

    def _coming(self) -> Iterator[tuple[str, int]]:
        """Digests and sizes of shards that are on their way."""
        for path in self.folder.glob("*.lock"):
            if path.stat().st_size == 0:
                continue
            with open(path, "rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    yield path.stem, int(file.read() or 0)

    def _remove_part(self, sha256: str) -> None:
        for part in self.folder.glob(f".{sha256}.*.part"):
            part.unlink(missing_ok=True)

    @contextmanager
    def _locked(self, name: str, *, wait: bool) -> Iterator[int]:
        file = os.open(self.folder / name, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            yield file
        except BlockingIOError:
            raise Busy(name) from None
        finally:
            os.close(file)

    def _warn_full(self) -> None:
        if not self._warned:
            log.warning(
                "the disk under %s is full: samples are read from the store one by one; free some space or set "
                "data.cache_dir to another disk", self.folder,
            )  # fmt: skip
        self._warned = True
