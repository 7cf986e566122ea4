"""Threads that turn numbers of global batches into a rank's pixels and masks, some batches ahead.

A batch is planned (which samples), its shards are waited for, and its rows are decoded in small parts, several threads
at a time, into one of a few reusable slots of memory. There are no worker processes: decoding leaves Python's lock
free, and handing pixels between processes would cost more than decoding them.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from inpaint.data.decoding import Decoder, UndecodableImage
from inpaint.data.fetching import Fetcher
from inpaint.data.order import Batches, Order, key_of, mix
from inpaint.data.planes import PlanesCache, to_planes
from inpaint.data.reading import Reader
from inpaint.data.ring import HostBatch, Slot
from inpaint.errors import DataError

log = logging.getLogger(__name__)

PART_ROWS = 16  # rows that one thread decodes before it looks for other work
MOST_SUBSTITUTES = 100
HoleMaker = Callable[[np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Plan:
    """What the loader is to do, apart from where bytes come from.

    Attributes:
        order, batches: which samples make which batch.
        rank, world_size: this process's share of each batch.
        seed: of mirroring, crops and holes.
        decoder: of one image.
        holes: draws one sample's mask; None when all masks are one.
        mirror: turn half of the images.
        random_crop: choose the square of a sample that is not one at random.
        max_bad_share: of samples that may be unreadable before the run fails.
        decode_threads: 0 decodes in the thread that asks for the batch.
        prefetch_batches: decoded ahead of the one in use.
    """

    order: Order
    batches: Batches
    rank: int
    world_size: int
    seed: int
    decoder: Decoder
    holes: HoleMaker | None
    mirror: bool
    random_crop: bool
    max_bad_share: float
    decode_threads: int
    prefetch_batches: int


@dataclass(eq=False)
class _Job:
    """One batch on its way."""

    number: int
    slot: Slot
    epoch: int = 0
    positions: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    samples: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    mirrored: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    parts: int = 0  # still to be decoded
    fetching: int = 0  # of these, waiting for shards
    hits: int = 0  # samples in the decoded cache
    done: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None


class Loader:
    """Decodes batches `start`, `start + 1`, ... for one rank.

    Args:
        reader: of the set's samples.
        fetcher: brings shards to the node; None for a local set.
        wanted: called with epoch and position whenever a batch is planned, to have the right shards fetched.
        planes: decoded images of earlier epochs; None when images are handed on as pixels.
        slots: memory for `prefetch_batches + 1` batches.

    Attributes:
        seconds: spent by threads, by what they did: `decode`, `holes`; and by the caller: `wait_fetch`, `wait_decode`.
        seen, skipped: samples read, and those of them that could not be decoded.
        planes_hits: samples that came from the decoded cache.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        reader: Reader,
        fetcher: Fetcher | None,
        wanted: Callable[[int, int], None],
        planes: PlanesCache | None,
        slots: list[Slot],
        start: int,
    ):
        self.plan, self._reader, self._fetcher, self._wanted, self._planes = plan, reader, fetcher, wanted, planes
        self.seconds = dict.fromkeys(("decode", "holes", "wait_fetch", "wait_decode"), 0.0)
        self.seen = self.skipped = self.planes_hits = 0
        self._reported: set[int] = set()
        self._augment: dict[int, tuple[int, int]] = {}
        self._free, self._next, self._in_use = deque(slots), start, None
        self._jobs: deque[_Job] = deque()
        self._work_items: queue.SimpleQueue[tuple[_Job, Callable[[bytearray], None]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._scratch = bytearray(1 << 16)
        self._closed = False
        self._threads = [
            threading.Thread(target=self._run, name=f"decode-{i}", daemon=True) for i in range(plan.decode_threads)
        ]
        for thread in self._threads:
            thread.start()
        self._schedule()

    def next(self) -> HostBatch:
        """The next batch; the memory of the one before is used again.

        Raises:
            DataError: a shard is damaged, or too many images are.
            StorageError: a shard cannot be reached.
        """
        if self._closed:
            raise DataError("the stream is closed; open another one")
        if self._in_use is not None:
            self._free.append(self._in_use)
            self._in_use = None
        self._schedule()
        job = self._jobs[0]
        self._wait(job)
        if job.error is not None:
            raise job.error
        self._jobs.popleft()
        self._in_use = job.slot
        self.seen += len(job.samples)
        self.planes_hits += job.hits
        return HostBatch(job.slot, job.mirrored, self._reader.index.keys_of(job.samples))

    def wait_until_ahead(self) -> None:
        """Until every batch that may be decoded ahead is; with no threads there is nothing to wait for."""
        for job in self._jobs if self._threads else ():
            job.done.wait()

    def close(self) -> None:
        """Stop the threads; what was decoded ahead is dropped."""
        self._closed = True
        for _ in self._threads:
            self._work_items.put(None)
        if self._fetcher:
            self._fetcher.close()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(timeout=5)
        if self._planes:
            self._planes.close()

    def _schedule(self) -> None:
        while self._free:
            job = _Job(self._next, self._free.popleft())
            self._next += 1
            self._jobs.append(job)
            self._work_items.put((job, partial(self._plan_job, job)))

    def _wait(self, job: _Job) -> None:
        while not job.done.is_set():
            since, cause = time.perf_counter(), "wait_fetch" if job.fetching else "wait_decode"
            if self._threads:
                job.done.wait(0.05)
            else:
                self._run_one(timeout=0.05)
            self.seconds[cause] += time.perf_counter() - since

    def _run(self) -> None:
        scratch = bytearray(1 << 16)
        while (item := self._work_items.get()) is not None:
            if not self._closed:
                self._do(*item, scratch)

    def _run_one(self, timeout: float) -> None:
        try:
            item = self._work_items.get(timeout=timeout)
        except queue.Empty:
            return
        if item is not None:
            self._do(*item, self._scratch)

    def _do(self, job: _Job, work: Callable[[bytearray], None], scratch: bytearray) -> None:
        try:
            if job.error is None:
                work(scratch)
        except BaseException as error:
            self._fail(job, error)

    @staticmethod
    def _fail(job: _Job, error: BaseException) -> None:
        job.error = job.error or error
        job.done.set()

    def _plan_job(self, job: _Job, scratch: bytearray) -> None:
        """Decide a batch's samples and hand its rows out."""
        plan = self.plan
        job.slot.wait_until_free()
        job.epoch, job.positions = plan.batches.positions(job.number, plan.rank, plan.world_size)
        job.samples = plan.order.samples(job.epoch, job.positions)
        bits = mix(job.samples, self._keys(job.epoch)[0])
        job.mirrored = (bits & np.uint64(1)).astype(bool) if plan.mirror else np.zeros(len(bits), bool)
        here = self._planes.has(job.samples) if self._planes else np.zeros(len(bits), bool)
        job.hits = int(here.sum())
        if self._fetcher:
            self._wanted(job.epoch, int(job.positions[0]))
        rows = max(1, min(PART_ROWS, -(-len(bits) // max(1, plan.decode_threads))))
        parts = [(low, min(low + rows, len(bits))) for low in range(0, len(bits), rows)]
        job.parts, job.fetching = len(parts), len(parts) if self._fetcher else 0
        for low, high in parts:
            if self._fetcher:
                needed = job.samples[low:high][~here[low:high]].tolist()
                self._fetcher.call_when_here(needed, partial(self._arrived, job, low, high, here))
            else:
                self._work_items.put((job, partial(self._fill, job, low, high, here, {})))

    def _arrived(
        self, job: _Job, low: int, high: int, here: np.ndarray, alone: dict[int, bytes], error: Exception | None
    ) -> None:
        if error is not None:
            self._fail(job, error)
            return
        with self._lock:
            job.fetching -= 1
        self._work_items.put((job, partial(self._fill, job, low, high, here, alone)))

    def _fill(
        self, job: _Job, low: int, high: int, here: np.ndarray, alone: dict[int, bytes], scratch: bytearray
    ) -> None:
        """Decode rows `low` to `high` of a batch and draw their masks."""
        since = time.perf_counter()
        if self._planes:
            self._copy_planes(job, low + np.flatnonzero(here[low:high]))
        for row in range(low, high):
            if not here[row]:
                self._decode(job, row, alone, scratch)
        decoded = time.perf_counter()
        if self.plan.holes:
            for row in range(low, high):
                job.slot.rows["masks"][row] = self.plan.holes(self._generator(job.epoch, int(job.samples[row])))
        drawn = time.perf_counter()
        with self._lock:
            self.seconds["decode"] += decoded - since
            self.seconds["holes"] += drawn - decoded
            job.parts -= 1
            if not job.parts:
                job.done.set()

    def _copy_planes(self, job: _Job, rows: np.ndarray) -> None:
        planes, count = job.slot.rows["planes"], len(rows)
        if count and rows[-1] - rows[0] + 1 == count:
            self._planes.read(job.samples[rows], planes[rows[0] : rows[-1] + 1])
        else:
            for row in rows:
                self._planes.read(job.samples[row : row + 1], planes[row : row + 1])

    def _decode(self, job: _Job, row: int, alone: dict[int, bytes], scratch: bytearray) -> None:
        """Decode one sample, or the one that stands in for it when its image is damaged."""
        for attempt in range(1, MOST_SUBSTITUTES + 1):
            sample = int(job.samples[row])
            data = alone.get(sample) or self._reader.read(sample, scratch)
            try:
                self._decode_into(job, row, sample, data)
                return
            except UndecodableImage as error:
                self._skip(sample, error)
            job.samples[row] = self.plan.order.substitute(job.epoch, int(job.positions[row]), attempt)
            if self.plan.mirror:
                job.mirrored[row] = mix(job.samples[row : row + 1], self._keys(job.epoch)[0])[0] & np.uint64(1)
        raise DataError(f"{self._reader.index.url}: {MOST_SUBSTITUTES} unreadable images in a row; check the set")

    def _decode_into(self, job: _Job, row: int, sample: int, data: bytes | memoryview) -> None:
        across = down = 0.5
        if self.plan.random_crop:
            bits = int(mix(np.array([sample]), self._keys(job.epoch)[0])[0])
            across, down = (bits >> 1 & 0xFFFFF) / 0xFFFFF, (bits >> 21 & 0xFFFFF) / 0xFFFFF
        if self._planes is None:
            self.plan.decoder.into(job.slot.rows["pixels"][row], data, across, down)
            return
        size = self.plan.decoder.size
        pixels, planes = np.empty((size, size, 3), np.uint8), job.slot.rows["planes"][row]
        square = self.plan.decoder.into(pixels, data, across, down)
        to_planes(pixels, planes)
        if square or not self.plan.random_crop:
            self._planes.write(sample, planes)

    def _skip(self, sample: int, reason: UndecodableImage) -> None:
        """Count a bad image; an epoch's worth of samples must have been seen before a share says anything."""
        index, plan = self._reader.index, self.plan
        with self._lock:
            self.skipped += 1
            share_of = max(self.seen, len(index) // plan.world_size)
            first_time = sample not in self._reported
            self._reported.add(sample)
        if first_time:
            shard = index.shards[index.shard[sample]].name
            log.warning("%s: skipped %s in %s: %s", index.url, index.key(sample), shard, reason)
        if self.skipped > plan.max_bad_share * share_of:
            raise DataError(
                f"{index.url}: {self.skipped} of {share_of} images cannot be decoded, more than data.max_bad_share "
                f"{plan.max_bad_share:g}; the last one is {index.key(sample)} ({reason}); write the set again without "
                "them, or allow more"
            )

    def _keys(self, epoch: int) -> tuple[int, int]:
        """Keys of mirroring and crops, and of holes."""
        keys = self._augment.get(epoch)
        if keys is None:
            seed = self.plan.seed
            keys = self._augment[epoch] = key_of(seed, epoch, "augment"), key_of(seed, epoch, "holes")
        return keys

    def _generator(self, epoch: int, sample: int) -> np.random.Generator:
        """Random numbers of one sample's mask, the same in every run and on every rank."""
        return np.random.Generator(np.random.Philox(key=np.array([self._keys(epoch)[1], sample], np.uint64)))
