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
from inpaint.data.planes import PlanesCache, to_planes
from inpaint.data.reading import Reader, Scratch
from inpaint.data.ring import HostBatch, Slot
from inpaint.data.rows import Planner, Rows
from inpaint.errors import DataError

log = logging.getLogger(__name__)

PART_ROWS = 16  # rows that one thread decodes before it looks for other work
MOST_SUBSTITUTES = 100
HoleMaker = Callable[[np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Plan:
    """What the loader is to do, apart from where bytes come from.

    Attributes:
        planner: which samples make which batch, and how they are looked at.
        decoder: of one image.
        holes: draws one sample's mask; None when all masks are one.
        max_bad_share: of samples that may be unreadable before the run fails.
        decode_threads: 0 decodes in the thread that asks for the batch.
        prefetch_batches: decoded ahead of the one in use.
    """

    planner: Planner
    decoder: Decoder
    holes: HoleMaker | None
    max_bad_share: float
    decode_threads: int
    prefetch_batches: int


@dataclass(eq=False)
class _Job:
    """One batch on its way."""

    number: int
    slot: Slot
    rows: Rows | None = None
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
        self._free, self._next, self._in_use = deque(slots), start, None
        self._jobs: deque[_Job] = deque()
        self._work_items: queue.SimpleQueue[tuple[_Job, Callable[[Scratch], None]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._scratch = Scratch()
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
        rows = job.rows
        self.seen += len(rows.samples)
        self.planes_hits += job.hits
        return HostBatch(job.slot, rows.mirrored, self._reader.index.keys_of(rows.samples))

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
        scratch = Scratch()
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

    def _do(self, job: _Job, work: Callable[[Scratch], None], scratch: Scratch) -> None:
        try:
            if job.error is None:
                work(scratch)
        except BaseException as error:
            self._fail(job, error)

    @staticmethod
    def _fail(job: _Job, error: BaseException) -> None:
        job.error = job.error or error
        job.done.set()

    def _plan_job(self, job: _Job, scratch: Scratch) -> None:
        """Decide a batch's samples and hand its rows out."""
        plan = self.plan
        job.slot.wait_until_free()
        job.rows = plan.planner.rows(job.number)
        samples = job.rows.samples
        here = self._planes.has(samples) if self._planes else np.zeros(len(samples), bool)
        job.hits = int(here.sum())
        if self._fetcher:
            self._wanted(job.rows.epoch, int(job.rows.positions[0]))
        size = max(1, min(PART_ROWS, -(-len(samples) // max(1, plan.decode_threads))))
        parts = [(low, min(low + size, len(samples))) for low in range(0, len(samples), size)]
        job.parts, job.fetching = len(parts), len(parts) if self._fetcher else 0
        for low, high in parts:
            if self._fetcher:
                needed = samples[low:high][~here[low:high]].tolist()
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
        self, job: _Job, low: int, high: int, here: np.ndarray, alone: dict[int, bytes], scratch: Scratch
    ) -> None:
        """Decode rows `low` to `high` of a batch and draw their masks."""
        since = time.perf_counter()
        decoded_before, to_decode = _split(here, low, high)
        if len(decoded_before):
            self._copy_planes(job, decoded_before)
        if len(to_decode):
            self._decode(job, to_decode, alone, scratch)
        decoded = time.perf_counter()
        if self.plan.holes:
            for row in range(low, high):
                job.slot.rows["masks"][row] = self.plan.holes(self.plan.planner.generator(job.rows, row))
        drawn = time.perf_counter()
        with self._lock:
            self.seconds["decode"] += decoded - since
            self.seconds["holes"] += drawn - decoded
            job.parts -= 1
            if not job.parts:
                job.done.set()

    def _copy_planes(self, job: _Job, rows: np.ndarray) -> None:
        planes, samples = job.slot.rows["planes"], job.rows.samples
        if rows[-1] - rows[0] + 1 == len(rows):
            self._planes.read(samples[rows], planes[rows[0] : rows[-1] + 1])
        else:
            for row in rows:
                self._planes.read(samples[row : row + 1], planes[row : row + 1])

    def _decode(self, job: _Job, rows: np.ndarray, alone: dict[int, bytes], scratch: Scratch) -> None:
        images = self._reader.read(job.rows.samples[rows], scratch, alone)
        for row, data in zip(rows.tolist(), images, strict=True):
            try:
                self._decode_into(job, row, data)
            except UndecodableImage as error:
                self._substitute(job, row, error, scratch)

    def _substitute(self, job: _Job, row: int, error: UndecodableImage, scratch: Scratch) -> None:
        """Put another sample where one is whose image is damaged."""
        rows = job.rows
        for attempt in range(1, MOST_SUBSTITUTES):
            self._skip(int(rows.samples[row]), error)
            self.plan.planner.substitute(rows, row, attempt)
            try:
                return self._decode_into(job, row, next(self._reader.read(rows.samples[row : row + 1], scratch, {})))
            except UndecodableImage as another:
                error = another
        raise DataError(f"{self._reader.index.url}: {MOST_SUBSTITUTES} unreadable images in a row; check the set")

    def _decode_into(self, job: _Job, row: int, data: bytes | memoryview) -> None:
        rows, decoder = job.rows, self.plan.decoder
        across, down = float(rows.across[row]), float(rows.down[row])
        if self._planes is None:
            decoder.into(job.slot.rows["pixels"][row], data, across, down)
            return
        pixels, planes = np.empty((decoder.size, decoder.size, 3), np.uint8), job.slot.rows["planes"][row]
        square = decoder.into(pixels, data, across, down)
        to_planes(pixels, planes)
        if square or not self.plan.planner.random_crop:
            self._planes.write(int(rows.samples[row]), planes)

    def _skip(self, sample: int, reason: UndecodableImage) -> None:
        """Count a bad image; an epoch's worth of samples must have been seen before a share says anything."""
        index, plan = self._reader.index, self.plan
        with self._lock:
            self.skipped += 1
            share_of = max(self.seen, len(index) // plan.planner.world_size)
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


def _split(here: np.ndarray, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows from `low` to `high` that are in the decoded cache, and the others."""
    return low + here[low:high].nonzero()[0], low + (~here[low:high]).nonzero()[0]
