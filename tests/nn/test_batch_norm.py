"""Batch statistics of the global batch: alone as torch does it, over ranks as one process does it."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from inpaint.nn.batch_norm import GlobalBatchNorm

FEATURES = torch.linspace(-3, 5, 4 * 3 * 2 * 2).sin().reshape(4, 3, 2, 2) + 2


def plain(layer):
    """torch's own batch norm with the same scale and shift."""
    norm = nn.BatchNorm2d(layer.num_features, track_running_stats=layer.track_running_stats)
    norm.load_state_dict(layer.state_dict())
    return norm


def weighted_sum(out):
    return (out * torch.linspace(-1, 1, out[0].numel()).reshape(out[0].shape)).square().sum(dim=(1, 2, 3)).mean()


@pytest.mark.parametrize("running", [True, False])
def test_alone_it_is_torchs_batch_norm(running):
    layer = GlobalBatchNorm(3, running=running)
    norm = plain(layer)
    assert torch.equal(layer(FEATURES), norm(FEATURES))
    assert torch.equal(layer.eval()(FEATURES), norm.eval()(FEATURES))


def test_a_single_value_per_channel_is_refused():
    layer = GlobalBatchNorm(3)
    with pytest.raises(ValueError, match=r"need 2 values per channel and found 1; train with training.global_batch"):
        layer(torch.rand(1, 3, 1, 1))
    assert layer.eval()(torch.rand(1, 3, 1, 1)).shape == (1, 3, 1, 1)


def _rank(rank, address, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=2)
    torch.manual_seed(0)
    layer = GlobalBatchNorm(3)
    features = FEATURES[2 * rank : 2 * rank + 2].clone().requires_grad_()
    weighted_sum(layer(features)).backward()
    results[rank] = {
        "features": features.grad / 2,  # the joined loss is the mean of both ranks' losses
        "weight": layer.weight.grad,
        "mean": layer.running_mean,
        "variance": layer.running_var,
    }
    dist.destroy_process_group()


def test_two_ranks_see_the_statistics_and_gradients_of_the_joined_batch(tmp_path):
    torch.manual_seed(0)
    norm = plain(GlobalBatchNorm(3))
    features = FEATURES.clone().requires_grad_()
    weighted_sum(norm(features)).backward()

    with mp.get_context("spawn").Manager() as manager:
        results = manager.dict()
        mp.spawn(_rank, args=(tmp_path / "meeting", results), nprocs=2)
        first, second = results[0], results[1]

    torch.testing.assert_close(torch.cat((first["features"], second["features"])), features.grad)
    torch.testing.assert_close((first["weight"] + second["weight"]) / 2, norm.weight.grad)
    for rank in (first, second):
        torch.testing.assert_close(rank["mean"], norm.running_mean)
        torch.testing.assert_close(rank["variance"], norm.running_var)
