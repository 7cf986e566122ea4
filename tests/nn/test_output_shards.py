"""Outputs of a frozen network that are kept as shards."""

import copy
import io
import tarfile

import numpy as np
import pytest
import torch
from torch import nn

from inpaint.nn.output_shards import OutputShards


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Conv2d(4, 3, 3, padding=1).eval()


def inputs(samples=3, seed=0):
    return torch.rand(samples, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def never(given):
    raise AssertionError("computed again")


def test_an_output_is_computed_once_and_read_bit_for_bit_by_later_processes(tmp_path):
    layer, given = network(), inputs()
    first = OutputShards(str(tmp_path), layer)
    computed = first.recall(given, layer)
    assert torch.equal(first.recall(given, never), computed)  # before its shard is written
    first.flush()

    later = OutputShards(str(tmp_path), layer)
    assert torch.equal(later.recall(given, never), computed)
    assert torch.equal(later.recall(given.flip(0), never), computed.flip(0))  # whatever the order
    assert (first.computed, later.computed, later.read) == (3, 0, 6)


def test_a_batch_with_one_new_sample_is_computed_and_only_that_sample_is_kept_anew(tmp_path):
    layer, given = network(), inputs(4)
    shards = OutputShards(str(tmp_path), layer, per_shard=3)
    shards.recall(given[:3], layer)
    shards.recall(given[1:], layer)
    shards.flush()

    counts = []
    for path in tmp_path.glob("*.tar"):
        with tarfile.open(path) as tar:
            counts.append(len(tar.getnames()))
    assert sorted(counts) == [1, 3]


def test_a_shard_is_a_tar_of_numpy_arrays_that_any_reader_can_read(tmp_path):
    layer, given = network(), inputs(1)
    shards = OutputShards(str(tmp_path), layer, per_shard=1)
    computed = shards.recall(given, layer)

    (tar,) = tmp_path.glob("*.tar")
    with tarfile.open(tar) as file:
        (member,) = file.getmembers()
        array = np.load(io.BytesIO(file.extractfile(member).read()))
    assert member.name.endswith(".npy")
    assert np.array_equal(array, computed[0].detach().numpy())


@pytest.mark.parametrize("change", ["network", "input", "precision"])
def test_another_network_input_or_precision_never_meets_these_outputs(tmp_path, change):
    layer, given = network(), inputs(1)
    OutputShards(str(tmp_path), layer, per_shard=1).recall(given, layer)

    shards = OutputShards(str(tmp_path), network(1) if change == "network" else layer)
    given = given + 1e-6 if change == "input" else given
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=change == "precision"):
        shards.recall(given, layer)
    assert shards.computed == 1


def test_half_written_shards_do_not_count_and_a_copy_shares_the_place(tmp_path):
    layer, given = network(), inputs(1)
    shards = OutputShards(str(tmp_path), layer, per_shard=1)
    shards.recall(given, layer)
    assert copy.deepcopy({"a": shards})["a"] is shards

    (index,) = tmp_path.glob("*.json")
    index.unlink()
    assert OutputShards(str(tmp_path), layer).recall(given, lambda given: layer(given) * 0).abs().max() == 0
