"""A rank's rows of each global batch: which samples, how each is looked at, what its mask is drawn from.

All of it is a pure function of the run's seed and the batch's number, whoever asks and in whichever order.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np

from inpaint.data.order import Batches, Order, key_of, mix

AHEAD_SAMPLES = 1024  # are planned at once: a batch alone would pay more for the calls than for the numbers
FRACTION = 0xFFFFF  # 20 bits of a place between 0 and 1


@dataclass(frozen=True)
class Rows:
    """One rank's rows of a batch.

    Attributes:
        epoch: the batch's.
        positions, samples: in the epoch and in the set, int64.
        mirrored: turned left to right, bool.
        across, down: where the square that is looked at lies in the image, from 0 (left, top) to 1.
    """

    epoch: int
    positions: np.ndarray
    samples: np.ndarray
    mirrored: np.ndarray
    across: np.ndarray
    down: np.ndarray


class Planner:
    """Plans batches for one rank; safe to use from many threads.

    Args:
        order, batches: which samples make which batch.
        rank, world_size: this process's share of each batch.
        seed: of mirroring, crops and holes.
        mirror: turn half of the images.
        random_crop: choose that square at random.
        looks: epochs after which a sample is mirrored, cropped and masked as before; None for never.
    """

    def __init__(
        self, order: Order, batches: Batches, *, rank: int, world_size: int, seed: int, mirror: bool, random_crop: bool,
        looks: int | None = None,
    ):  # fmt: skip
        self.order, self.batches, self.random_crop = order, batches, random_crop
        self.rank, self.world_size, self._seed, self._mirror = rank, world_size, seed, mirror
        self._recur_after = looks
        self._planned: dict[int, Rows] = {}
        self._lock = threading.Lock()

    def rows(self, number: int) -> Rows:
        """The rows of global batch `number`; to be asked for once, for damaged samples are replaced in them."""
        with self._lock:
            if number not in self._planned:
                self._planned = self._plan(number)
            return self._planned.pop(number)

    def substitute(self, rows: Rows, row: int, attempt: int) -> None:
        """Put another sample into a row whose image is damaged."""
        one = slice(row, row + 1)
        rows.samples[row] = self.order.substitute(rows.epoch, int(rows.positions[row]), attempt)
        rows.mirrored[one], rows.across[one], rows.down[one] = self._looks(rows.epoch, rows.samples[one])

    def generator(self, rows: Rows, row: int) -> np.random.Generator:
        """Random numbers of one sample's mask, the same in every run and on every rank."""
        key = np.array([key_of(self._seed, self._look(rows.epoch), "holes"), rows.samples[row]], np.uint64)
        return np.random.Generator(np.random.Philox(key=key))

    def _plan(self, number: int) -> dict[int, Rows]:
        """Batches from `number` to the end of its epoch, but about AHEAD_SAMPLES at most."""
        batches = self.batches
        share = batches.global_batch // self.world_size
        left = batches.per_epoch - number % batches.per_epoch
        numbers = range(number, number + min(left, max(1, AHEAD_SAMPLES // share)))
        epoch = number // batches.per_epoch
        positions = np.stack([batches.positions(each, self.rank, self.world_size)[1] for each in numbers])
        samples = self.order.samples(epoch, positions.reshape(-1)).reshape(positions.shape)
        columns = (positions, samples, *self._looks(epoch, samples))
        return {each: Rows(epoch, *(column[i] for column in columns)) for i, each in enumerate(numbers)}

    def _look(self, epoch: int) -> int:
        """Which of its looks a sample has in an epoch."""
        return epoch if self._recur_after is None else epoch % self._recur_after

    def _looks(self, epoch: int, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For each sample whether it is mirrored, and where its square lies across and down."""
        bits = mix(samples, key_of(self._seed, self._look(epoch), "augment"))
        mirrored = (bits & np.uint64(1)).astype(bool) & self._mirror
        if not self.random_crop:
            return mirrored, np.full(samples.shape, 0.5), np.full(samples.shape, 0.5)
        across, down = ((bits >> np.uint64(shift) & np.uint64(FRACTION)) / FRACTION for shift in (1, 21))
        return mirrored, across, down
