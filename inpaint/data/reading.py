"""The bytes of one sample, from a local or a cached shard, checked against the index the first time they are read."""

from __future__ import annotations

import logging
import os
import resource
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
from isal import isal_zlib

from inpaint import storage
from inpaint.data.cache import Busy, ShardCache
from inpaint.data.index import Index
from inpaint.errors import DataError

log = logging.getLogger(__name__)


class _Open:
    """An open shard; closed when the last thread that reads from it lets go."""

    def __init__(self, file: int):
        self.file = file

    def __del__(self) -> None:
        os.close(self.file)


class Scratch:
    """A thread's memory for one image file, exchanged for more when a file does not fit."""

    def __init__(self) -> None:
        self._bytes = bytearray(1 << 16)

    def room(self, length: int) -> memoryview:
        """`length` bytes of it."""
        if len(self._bytes) < length:
            self._bytes = bytearray(length)
        return memoryview(self._bytes)[:length]


class Reader:
    """Reads samples of a set by number; safe to use from many threads.

    Args:
        cache: where a remote set's shards are kept; None for a local set, whose shards are read in place.

    Attributes:
        refetched: cached shards that had to be fetched again because their bytes were wrong.
        on_lost: called with a shard that the cache had to give away.
    """

    def __init__(self, index: Index, cache: ShardCache | None):
        self.index, self.cache = index, cache
        self.refetched = 0
        self._open: dict[int, _Open] = {}
        self._changing = threading.Lock()  # that dict, by several decoding threads
        self._most_open = min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
        self._verified = np.zeros(len(index), bool)
        self.on_lost: Callable[[int], None] = lambda shard: None

    def read(self, samples: np.ndarray, scratch: Scratch, alone: Mapping[int, bytes]) -> Iterator[memoryview | bytes]:
        """Each sample's image file, in `scratch` until the next one is asked for, or in bytes of its own.

        Args:
            alone: samples whose bytes are here already.

        Raises:
            DataError: a shard is missing, truncated or altered, also after it was fetched again.
            StorageError: it cannot be reached.
        """
        index = self.index
        columns = (samples, index.shard[samples], index.offset[samples], index.length[samples], self._verified[samples])
        for sample, shard, offset, length, verified in zip(*(column.tolist() for column in columns), strict=True):
            if sample in alone:
                yield alone[sample]
                continue
            try:
                data = self._read_open(shard, offset, length, scratch)
            except FileNotFoundError:
                yield self._without_shard(sample, shard)
                continue
            if not verified:
                if not self._is_right(sample, data):
                    data = self._mend(sample, scratch)
                self._verified[sample] = True
            yield data

    def read_alone(self, sample: int) -> bytes:
        """A sample's image file by a ranged read of its own, without the rest of its shard.

        Raises:
            DataError: not the bytes that the index knows, twice.
        """
        shard, offset, length = self._place(sample)
        for _ in range(2):
            data = storage.read_range(self.index.shard_url(shard), offset, length)
            if self._is_right(sample, data):
                return data
        raise self._altered(sample)

    def keep_open(self, shards: Iterable[int]) -> None:
        """Close every other shard, so that the cache can give its room away."""
        kept = set(shards)
        with self._changing:
            for shard in [shard for shard in self._open if shard not in kept]:
                self._open.pop(shard, None)

    def _without_shard(self, sample: int, shard: int) -> bytes:
        """A sample whose shard is not on the disk."""
        if self.cache:  # somebody else's shards needed the room
            self.on_lost(shard)
            return self.read_alone(sample)
        raise DataError(
            f"{self.index.shard_url(shard)}: the shard is missing; bring it back or index the set again"
        ) from None

    def _place(self, sample: int) -> tuple[int, int, int]:
        index = self.index
        return int(index.shard[sample]), int(index.offset[sample]), int(index.length[sample])

    def _read_open(self, shard: int, offset: int, length: int, scratch: Scratch) -> memoryview:
        handle = self._open.get(shard) or self._opened(shard)
        view = scratch.room(length)
        done = os.preadv(handle.file, [view], offset)
        while 0 < done < length:
            more = os.preadv(handle.file, [view[done:]], offset + done)
            if not more:
                break
            done += more
        return view[:done]

    def _opened(self, shard: int) -> _Open:
        if self.cache:
            info = self.index.shards[shard]
            if not self.cache.has(info.sha256, info.bytes):
                raise FileNotFoundError(info.name)
            path = self.cache.path(info.sha256)
        else:
            path = storage.local_path(self.index.shard_url(shard))
        handle = _Open(os.open(path, os.O_RDONLY))
        with self._changing:
            while len(self._open) >= self._most_open:
                self._open.pop(next(iter(self._open)))
            self._open[shard] = handle
        return handle

    def _is_right(self, sample: int, data: memoryview | bytes) -> bool:
        return len(data) == self.index.length[sample] and isal_zlib.crc32(data) == self.index.crc32[sample]

    def _mend(self, sample: int, scratch: Scratch) -> memoryview | bytes:
        """Read a damaged sample again, from a shard that was fetched again when it came from the cache."""
        shard, offset, length = self._place(sample)
        with self._changing:
            self._open.pop(shard, None)
        url, key = self.index.shard_url(shard), self.index.key(sample)
        log.warning("%s: sample %s is damaged here; reading it again", url, key)
        if self.cache:
            info = self.index.shards[shard]
            self.cache.drop(info.sha256)
            self.refetched += 1
            if not self._fetch_again(shard):
                return self.read_alone(sample)
        try:
            data = self._read_open(shard, offset, length, scratch)
        except FileNotFoundError:
            return self._without_shard(sample, shard)
        if not self._is_right(sample, data):
            raise self._altered(sample)
        return data

    def _fetch_again(self, shard: int) -> bool:
        info = self.index.shards[shard]
        while True:
            try:
                return self.cache.fetch(self.index.shard_url(shard), info.sha256, info.bytes)
            except Busy:
                time.sleep(0.02)

    def _altered(self, sample: int) -> DataError:
        shard, offset, length = self._place(sample)
        return DataError(
            f"{self.index.shard_url(shard)}: truncated or altered: sample {self.index.key(sample)} "
            f"(bytes {offset}..{offset + length}) has another checksum than in the index; "
            f"bring the shard back, or `inpaint shards index {self.index.url}` if the change is wanted"
        )
