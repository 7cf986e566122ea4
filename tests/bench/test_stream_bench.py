"""What the stream's benchmark counts: mixing by hand, turns in order, and one small run from end to end."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from inpaint.bench.measure import interleaved, read_all
from inpaint.bench.stream_order import mixing
from inpaint.cli import app


def test_an_untouched_order_mixes_nothing():
    first = np.array([0, 4, 8])
    assert mixing(np.arange(8), first, batch=4) == {"shards": 1.0, "travel": 0.0, "neighbours": 1.0}


def test_a_riffle_puts_both_shards_into_every_batch():
    """0 4 1 5 2 6 3 7: neighbours are 2 apart, and the moves are 0 1 2 3 3 2 1 0."""
    first, samples = np.array([0, 4, 8]), np.array([0, 4, 1, 5, 2, 6, 3, 7])
    assert mixing(samples, first, batch=2) == {"shards": 2.0, "travel": 12 / 64, "neighbours": 0.0}
    assert mixing(samples, first, batch=4)["neighbours"] == 1.0


def test_candidates_take_turns_and_cost_per_unit():
    turns = []

    def work(name, units):
        turns.append(name)
        sum(range(300_000))
        return units

    costs = interleaved({"one": lambda: work("one", 1), "ten": lambda: work("ten", 10)}, rounds=3)
    assert turns == ["one", "ten"] * 3
    assert costs["one"].cpu > 4 * costs["ten"].cpu > 0


def test_a_batch_of_any_type_is_read_to_be_counted():
    assert read_all(np.ones((5, 3, 8, 8), np.float32)) == 5
    assert read_all(np.ones((4, 96), np.uint8)) == 4


@pytest.mark.slow
def test_bench_stream_prints_costs_floors_and_what_is_not_installed():
    result = CliRunner().invoke(app, ["bench", "stream", "--samples", "512", "--rounds", "1", "--no-s3", "--json"])
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert values["disk"]["stream, decoded cache"]["cpu"] < values["disk"]["bare decoding"]["cpu"]
    assert values["holes"]["lama thin"]["cpu"] < values["holes"]["lama thin, with Pillow's lines and discs"]["cpu"]
    assert set(values["not_installed"]) <= {"mosaicml-streaming", "litdata", "ffcv"}
    assert all(floor["side"] in ("least", "most") for floor in values["floors"])
