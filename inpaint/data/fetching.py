"""Bringing the shards of a remote set to the node before they are needed.

Shards stand in a line in the order of first need. A sample whose shard is near the head of the line waits for it; one
whose shard is far down, or finds no room in the cache, is read alone by a ranged request, so that the first batch
after a start or a resume does not wait for gigabytes. A store that is away for a while delays samples and no more.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from inpaint import storage
from inpaint.data.cache import Busy
from inpaint.data.reading import Reader

log = logging.getLogger(__name__)

Result = TypeVar("Result")
PATIENCE_SECONDS = 120.0  # how long the store may be away; a worker that starts anew would lose about as much
WAIT_BYTES = 256 << 20  # a shard with no more than this ahead of it in the line is worth waiting for


@dataclass
class _Need:
    """Samples that somebody waits for together.

    Attributes:
        alone: bytes of the samples that were read without their shard.
        ready: called once, with an error or None, when everything is there.
    """

    ready: Callable[[dict[int, bytes], Exception | None], None]
    shards: set[int] = field(default_factory=set)
    singles: set[int] = field(default_factory=set)
    samples: list[int] = field(default_factory=list)
    alone: dict[int, bytes] = field(default_factory=dict)
    over: bool = False


class Fetcher:
    """Threads that fetch shards and single samples of one remote set.

    Args:
        reader: knows the index and the cache.
        threads: how many fetch at the same time.

    Attributes:
        hits, misses: samples whose shard was or was not in the cache when they were asked for.
        alone: samples that were read without their shard.
    """

    def __init__(self, reader: Reader, *, threads: int):
        self._reader, self._index, self._cache = reader, reader.index, reader.cache
        self.hits = self.misses = self.alone = 0
        self._shard_of = reader.index.shard
        self._present: set[int] = set()
        self._wanted: set[int] = set()
        self._spare: frozenset[str] = frozenset()  # digests of the wanted shards
        self._line: deque[int] = deque()
        self._ahead: dict[int, int] = {}  # shard in line or on its way → bytes that were asked for up to and with it
        self._asked = self._done = 0
        self._failed: dict[int, Exception] = {}
        self._again: set[int] = set()  # shards for which the store was away too long
        self._singles: deque[tuple[_Need, int]] = deque()
        self._needs: list[_Need] = []
        self._change = threading.Condition()
        self._closed = self._away = False
        self._threads = [threading.Thread(target=self._work, name=f"fetch-{i}", daemon=True) for i in range(threads)]
        reader.on_lost = self.lost
        for thread in self._threads:
            thread.start()

    def want(self, shards: Iterable[int]) -> None:
        """Make this the line, in order; shards that are here are left out, those that samples wait for are kept."""
        with self._change:
            shards = list(shards)
            self._wanted = set(shards)
            self._spare = frozenset(self._index.shards[shard].sha256 for shard in shards)
            waited_for = set().union(*(need.shards for need in self._needs))
            for shard in [s for s in self._line if s not in self._wanted and s not in waited_for]:
                self._line.remove(shard)
                self._ahead.pop(shard)
                self._done += self._index.shards[shard].bytes
            for shard in shards:
                self._queue(shard)
            self._change.notify_all()

    def lost(self, shard: int) -> None:
        """Fetch a shard again that the cache had to give away."""
        with self._change:
            self._present.discard(shard)
            if shard in self._wanted:
                self._queue(shard)
                self._change.notify_all()

    def call_when_here(
        self, samples: Iterable[int], ready: Callable[[dict[int, bytes], Exception | None], None]
    ) -> None:
        """Call `ready` when these samples can be read; it gets the bytes of those that came without their shard."""
        need = _Need(ready)
        with self._change:
            for sample in samples:
                self._place(need, sample, int(self._shard_of[sample]))
            self._needs.append(need)
            self._change.notify_all()
            over = self._settle()
        self._tell(over)

    def close(self) -> None:
        """Stop after the requests on their way."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(timeout=5)

    def _place(self, need: _Need, sample: int, shard: int) -> None:
        if shard in self._present or self._is_here(shard):
            self.hits += 1
            return
        self.misses += 1
        if shard in self._again:
            self._again.discard(shard)
            self._queue(shard)
        if self._ahead.get(shard, self._done + WAIT_BYTES + 1) - self._done <= WAIT_BYTES or shard in self._failed:
            need.shards.add(shard)
            need.samples.append(sample)
        else:
            need.singles.add(sample)
            self._singles.append((need, sample))

    def _queue(self, shard: int) -> None:
        if shard not in self._ahead and not self._is_here(shard):
            self._asked += self._index.shards[shard].bytes
            self._ahead[shard] = self._asked
            self._line.append(shard)

    def _is_here(self, shard: int) -> bool:
        info = self._index.shards[shard]
        if shard not in self._present and self._cache.has(info.sha256, info.bytes):
            self._present.add(shard)
        return shard in self._present

    def _work(self) -> None:
        while True:
            with self._change:
                while not self._closed and not self._singles and not self._line:
                    self._change.wait()
                if self._closed:
                    return
                single = self._singles.popleft() if self._singles else None
                shard = None if single else self._line.popleft()
            if single:
                self._fetch_single(*single)
            else:
                self._fetch_shard(shard)

    def _fetch_single(self, need: _Need, sample: int) -> None:
        error = None
        try:
            data = self._patiently(lambda: self._reader.read_alone(sample))
        except Exception as failure:
            error = failure
        with self._change:
            self.alone += 1
            need.singles.discard(sample)
            if error is None:
                need.alone[sample] = data
            over = self._settle(need if error else None)
        self._tell(over, error)

    def _fetch_shard(self, shard: int) -> None:
        info, error, here = self._index.shards[shard], None, False
        threads = max(1, len(self._threads) // (1 + len(self._line)))
        try:
            here = self._patiently(lambda: self._cache.fetch(
                self._index.shard_url(shard), info.sha256, info.bytes, threads=threads, spare=self._spare
            ))  # fmt: skip
        except Busy:
            with self._change:
                self._line.append(shard)
                self._change.wait(0.02)
            return
        except Exception as failure:
            error = failure
        with self._change:
            self._done += info.bytes
            self._ahead.pop(shard, None)
            if here:
                self._present.add(shard)
            elif error:
                self._failed[shard] = error
            else:
                self._read_singly(shard)
            over = self._settle()
            if isinstance(error, storage.Unavailable):  # the store may be back when the shard is wanted next
                del self._failed[shard]
                self._again.add(shard)
        self._tell(over)

    def _patiently(self, read: Callable[[], Result]) -> Result:
        """What `read` returns, which is tried again while the store is away."""
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                result = read()
            except storage.Unavailable as error:
                if self._closed or time.monotonic() > until:
                    raise
                if not self._away:
                    log.warning("%s; asking again for %.0f s", error, PATIENCE_SECONDS)
                self._away = True
            else:
                self._away = False
                return result

    def _read_singly(self, shard: int) -> None:
        """There is no room for a shard: those who wait for it get their samples alone."""
        for need in self._needs:
            if shard in need.shards:
                need.shards.discard(shard)
                mine = {sample for sample in need.samples if self._shard_of[sample] == shard}
                need.singles |= mine
                self._singles.extend((need, sample) for sample in mine)
        self._change.notify_all()

    def _settle(self, failed: _Need | None = None) -> list[tuple[_Need, Exception | None]]:
        """Take out the needs that are met or cannot be."""
        over: list[tuple[_Need, Exception | None]] = []
        for need in self._needs:
            need.shards -= self._present
            error = next((self._failed[shard] for shard in need.shards if shard in self._failed), None)
            if need is failed or error or not (need.shards or need.singles):
                over.append((need, error))
        self._needs = [need for need in self._needs if not any(need is done for done, _ in over)]
        return over

    @staticmethod
    def _tell(over: list[tuple[_Need, Exception | None]], error: Exception | None = None) -> None:
        for need, reason in over:
            met = not (need.shards or need.singles)
            need.ready(need.alone, None if met else reason or error)
