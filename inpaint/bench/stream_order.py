"""How well an order mixes, against a full permutation: to choose between a global shuffle and windows of K shards."""

from __future__ import annotations

import time

import numpy as np

from inpaint.data.order import Batches, Order

SAMPLES, SHARDS, BATCH = 1_803_460, 4_000, 256  # Places2's training set
WINDOWS = (16, 64, 256, 1024)


def shuffle_quality() -> dict[str, dict[str, float | None]]:
    """For each order, over one epoch: `shards`, distinct ones in a batch (mean); `travel`, how far a sample moves, as a
    share of the epoch (a full permutation: 1/3); `neighbours`, share of neighbours in a shard that are at most a batch
    apart; `milliseconds` for any one batch.
    """
    first = np.linspace(0, SAMPLES, SHARDS + 1).astype(np.int64)
    orders = {"global": Order(first, seed=0, shuffle="global", window_shards=1)}
    orders |= {f"window of {k} shards": Order(first, seed=0, shuffle="window", window_shards=k) for k in WINDOWS}
    results = {}
    for name, order in orders.items():
        samples = order.samples(0, np.arange(SAMPLES))
        results[name] = mixing(samples, first) | {"milliseconds": _batch_seconds(order) * 1000}
    full = np.random.default_rng(0).permutation(SAMPLES)
    return results | {"full permutation (numpy)": mixing(full, first) | {"milliseconds": None}}


def mixing(samples: np.ndarray, first: np.ndarray, *, batch: int = BATCH) -> dict[str, float]:
    """Measures of one epoch's order, `samples[position]`."""
    whole = samples[: len(samples) // batch * batch].reshape(-1, batch)[:: max(1, len(samples) // batch // 500)]
    shards = np.searchsorted(first, whole, side="right")
    position = np.empty(len(samples), np.int64)
    position[samples] = np.arange(len(samples))
    inside = np.ones(len(samples) - 1, bool)
    inside[first[1:-1] - 1] = False  # the last sample of a shard has its neighbour in another
    apart = np.abs(np.diff(position))[inside]
    return {
        "shards": float(np.mean([len(np.unique(row)) for row in shards])),
        "travel": float(np.abs(position - np.arange(len(samples))).mean() / len(samples)),
        "neighbours": float((apart < batch).mean()),
    }


def _batch_seconds(order: Order) -> float:
    """Median time for one batch anywhere in an epoch."""
    batches = Batches(SAMPLES, BATCH, "drop")
    order.samples(*batches.positions(0))
    seconds = []
    for number in np.random.default_rng(0).integers(0, batches.per_epoch, 100).tolist():
        began = time.perf_counter()
        order.samples(*batches.positions(number))
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds))
