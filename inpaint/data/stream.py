"""The stream that feeds training: exact, elastic, resumable at any global batch, and about as fast as its decoder.

Global batch b is the same list of samples, masks and crops on any number of ranks and threads; a rank decodes its share
of it. What has to be remembered to go on is how many global batches were used.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from inpaint import storage
from inpaint.config.holes import CentreHole, HolesConfig
from inpaint.config.run import DataConfig, RunConfig
from inpaint.data.cache import ShardCache, default_folder
from inpaint.data.decoding import Decoder
from inpaint.data.fetching import Fetcher
from inpaint.data.index import Index, load_index
from inpaint.data.loader import Loader, Plan
from inpaint.data.order import Batches, Order
from inpaint.data.planes import PlanesCache
from inpaint.data.reading import Reader
from inpaint.data.ring import HostBatch, make_slots, to_batch
from inpaint.data.rows import Planner
from inpaint.errors import ConfigError, DataError
from inpaint.imaging import Batch
from inpaint.masks import make_holes

log = logging.getLogger(__name__)

GIB = 1 << 30
RECENT_BATCHES = 100  # over which the share of waiting is taken
WAIT_LIMIT = 0.1  # share of waiting that is worth a warning
WARN_AFTER_BATCHES = 50
WARN_EVERY_SECONDS = 300


class Stream:
    """A rank's batches of a shard set, endlessly, epoch after epoch.

    Args:
        index: of the set.
        data: how shards become batches.
        holes: what masks to draw; None for masks of zeros.
        seed: of order, mirroring, crops and masks.
        global_batch: samples per batch over all ranks.
        rank, world_size: which share of each batch is this process's.
        start: global batches used before; the first one that is given is number `start`.
        device: where batches are put.

    Raises:
        ConfigError: settings that do not fit the set or the ranks.
    """

    def __init__(
        self,
        index: Index,
        data: DataConfig,
        holes: HolesConfig | None,
        *,
        seed: int,
        global_batch: int,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        device: torch.device | str = "cpu",
    ):
        if global_batch % world_size:
            raise ConfigError(
                f"training.global_batch {global_batch} does not divide among {world_size} ranks; choose a multiple"
            )
        self._index, self._data, self._seed, self._device = index, data, seed, torch.device(device)
        self._batches = Batches(len(index), global_batch, data.last_batch)
        self._order = Order(index.first, seed=seed, shuffle=data.shuffle, window_shards=data.window_shards)
        self._used = start
        self._mask = _one_mask(holes, data.image_size, self._device)
        self._reader, self._fetcher = Reader(index, self._shard_cache()), None
        self._window: object = None
        self._asking = threading.Lock()
        self._warned_room = False
        if self._reader.cache:
            self._fetcher = Fetcher(self._reader, threads=data.fetch_threads)
        planes = self._planes_cache()
        share = global_batch // world_size
        plan = Plan(
            planner=Planner(
                self._order, self._batches, rank=rank, world_size=world_size, seed=seed, mirror=data.flip,
                random_crop=data.crop == "random", looks=data.looks,
            ),
            decoder=_decoder(data, as_planes=planes is not None),
            holes=None if self._mask is not None else make_holes(holes, data.image_size),
            max_bad_share=data.max_bad_share,
            decode_threads=data.decode_threads,
            prefetch_batches=data.prefetch_batches,
        )
        slots = make_slots(
            data.prefetch_batches + 1, share, data.image_size, as_planes=planes is not None,
            with_masks=self._mask is None, device=self._device,
        )  # fmt: skip
        self._loader = Loader(
            plan, reader=self._reader, fetcher=self._fetcher, wanted=self._fetch_ahead, planes=planes, slots=slots,
            start=start,
        )  # fmt: skip
        self._traffic = storage.traffic()
        self._recent: deque[tuple[float, float]] = deque(maxlen=RECENT_BATCHES)  # seconds waited, seconds in all
        self._asked_at: float | None = None
        self._next_warning = 0.0
        self._finalizer = weakref.finalize(self, self._loader.close)

    def __iter__(self) -> Iterator[Batch]:
        """This rank's share of each global batch, float on the device."""
        while True:
            yield next(self)

    def __next__(self) -> Batch:
        host = self.next_host()
        return to_batch(
            host, size=self._data.image_size, smooth=self._data.decode == "exact", mask=self._mask, device=self._device
        )

    def next_host(self) -> HostBatch:
        """The next batch before it goes to the device: 8-bit, not yet mirrored, valid until the next call."""
        asked = time.perf_counter()
        host = self._loader.next()
        self._used += 1
        self._note_wait(asked, time.perf_counter())
        return host

    def wait_until_ahead(self) -> None:
        """Until the batches that are prefetched are there, so that what follows runs from a full ring."""
        self._loader.wait_until_ahead()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop all threads."""
        self._finalizer()

    @property
    def batches_per_epoch(self) -> int:
        """Global batches of an epoch, the same on every rank."""
        return self._batches.per_epoch

    def state_dict(self) -> dict[str, int | str]:
        """What a checkpoint needs so that another stream goes on with the very next global batch."""
        return {"batches": self._used} | self._identity()

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Refuse a state that another sequence of batches belongs to.

        Raises:
            DataError: names what differs.
        """
        advice = {"index": "the shards are others than those the run began with; bring them back or start a new run"}
        for name, value in self._identity().items():
            if state.get(name) != value:
                what = advice.get(name, "set it back or start a new run")
                raise DataError(f"{self._index.url}: cannot go on: {name} was {state.get(name)}, is {value}; {what}")

    def stats(self) -> dict[str, float]:
        """Numbers for the tracker: waiting (recent share), cache, network, skipped samples."""
        now, loader, fetcher = storage.traffic(), self._loader, self._fetcher
        asked = fetcher.hits + fetcher.misses if fetcher else 0
        return {
            "wait_share": self._wait_share(),
            "cache_hit_share": fetcher.hits / asked if fetcher and asked else 1.0,
            "decoded_hit_share": loader.planes_hits / loader.seen if loader.seen else 0.0,
            "read_alone": float(fetcher.alone) if fetcher else 0.0,
            "retries": float(now["retries"] - self._traffic["retries"]),
            "refetched_shards": float(self._reader.refetched),
            "bytes_read": float(now["bytes_read"] - self._traffic["bytes_read"]),
            "samples": float(loader.seen),
            "skipped_samples": float(loader.skipped),
            "epoch": self._used / self._batches.per_epoch,
        }

    def hint(self) -> str:
        """Why the run waits for data and what to do, or an empty string when it does not."""
        share = self._wait_share()
        if share <= WAIT_LIMIT or len(self._recent) < 10:
            return ""
        seconds, data = self._loader.seconds, self._data
        if seconds["wait_fetch"] > seconds["wait_decode"]:
            retries = storage.traffic()["retries"] - self._traffic["retries"]
            cause = (
                f"shards arrive too slowly from {self._index.url} ({retries} retries); raise data.fetch_threads "
                f"(now {data.fetch_threads}), data.cache_gib, or set data.shuffle: window"
            )
        elif seconds["holes"] > seconds["decode"]:
            cause = f"drawing holes; raise data.decode_threads (now {data.decode_threads}) or choose simpler holes"
        else:
            cause = (
                f"decoding; raise data.decode_threads (now {data.decode_threads}, {os.cpu_count()} cores here) or keep "
                "decoded images with data.decoded_cache_gib"
            )
        return f"{share:.0%} of the time is spent waiting for data; likely cause: {cause}"

    def _identity(self) -> dict[str, int | str]:
        data = self._data
        return {
            "index": self._index.digest,
            "seed": self._seed,
            "global_batch": self._batches.global_batch,
            "window_shards": data.window_shards if data.shuffle == "window" else 0,
            "wrap": int(data.last_batch == "wrap"),
        }

    def _note_wait(self, asked: float, given: float) -> None:
        if self._asked_at is not None:  # the first batch waits for the start, not for the rate
            self._recent.append((given - asked, given - self._asked_at))
        self._asked_at = given
        if len(self._recent) < WARN_AFTER_BATCHES or given < self._next_warning:
            return
        if hint := self.hint():
            self._next_warning = given + WARN_EVERY_SECONDS
            log.warning("%s", hint)

    def _wait_share(self) -> float:
        total = sum(seconds for _, seconds in self._recent)
        return sum(waited for waited, _ in self._recent) / total if total else 0.0

    def _cache_folder(self) -> str:
        return self._data.cache_dir or str(default_folder())

    def _shard_cache(self) -> ShardCache | None:
        if not storage.is_remote(self._index.url):
            return None
        return ShardCache(self._cache_folder(), int(self._data.cache_gib * GIB))

    def _planes_cache(self) -> PlanesCache | None:
        data = self._data
        if not data.decoded_cache_gib:
            return None
        if data.image_size % 2:
            raise ConfigError(f"data.decoded_cache_gib needs an even data.image_size, not {data.image_size}")
        settings = f"{data.image_size}-{data.crop}-{data.decode}{'-scaled' if data.dct_scaling else ''}"
        return PlanesCache(
            self._cache_folder(),
            f"{self._index.digest[:32]}-{settings}",
            samples=len(self._index),
            size=data.image_size,
            limit_bytes=int(data.decoded_cache_gib * GIB),
        )

    def _fetch_ahead(self, epoch: int, position: int) -> None:
        """Have the shards fetched that this batch and the next ones need, as many as the cache may hold."""
        window = self._order.window_of(epoch, position)
        with self._asking:  # nobody asks for samples before their shards stand in the line
            if window != self._window:
                self._window = window
                self._want(epoch, position)

    def _want(self, epoch: int, position: int) -> None:
        wanted, room = [], self._reader.cache.limit_bytes
        for shard in self._order.shards_needed(epoch, position):
            room -= self._index.shards[shard].bytes
            if room < 0:
                break
            wanted.append(shard)
        now = self._order.shards_needed(epoch, position, ahead=False)
        if len(wanted) < len(now):
            self._warn_room()
        self._fetcher.want(wanted)
        self._reader.keep_open(wanted)

    def _warn_room(self) -> None:
        if not self._warned_room:
            what = "the set" if self._data.shuffle == "global" else f"{self._data.window_shards} shards"
            log.warning(
                "%s: %s do not fit into data.cache_gib %g: the rest is read sample by sample; raise data.cache_gib, or "
                "shuffle within fewer shards (data.shuffle: window, data.window_shards)",
                self._index.url, what, self._data.cache_gib,
            )  # fmt: skip
        self._warned_room = True


def open_stream(
    run: RunConfig, *, rank: int = 0, world_size: int = 1, start: int = 0, device: torch.device | str = "cpu"
) -> Stream:
    """The stream of a run's training set.

    Raises:
        DataError: no set there, or an index that does not belong to it.
    """
    return Stream(
        load_index(run.train_url),
        run.data,
        run.holes,
        seed=run.seed,
        global_batch=run.training.global_batch,
        rank=rank,
        world_size=world_size,
        start=start,
        device=device,
    )


def _decoder(data: DataConfig, *, as_planes: bool) -> Decoder:
    fast = data.decode == "fast"
    return Decoder(
        data.image_size, fast_dct=fast, repeat_colours=fast or as_planes, dct_scaling=data.dct_scaling,
        crop_share=data.crop_share,
    )  # fmt: skip


def _one_mask(holes: HolesConfig | None, size: int, device: torch.device) -> torch.Tensor | None:
    """The mask of every sample, when there is only one."""
    if holes is None:
        return torch.zeros(1, 1, size, size, device=device)
    if isinstance(holes, CentreHole):
        import numpy as np

        drawn = make_holes(holes, size)(np.random.default_rng(0))
        return torch.from_numpy(drawn)[None, None].float().to(device)
    return None
