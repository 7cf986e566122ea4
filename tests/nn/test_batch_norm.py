"""Batch statistics of the global batch: alone as torch does it, over ranks as one process does it."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
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


class TwoThreads:
    """Stands in for torch.distributed with two ranks that are threads; only what the layer calls."""

    def __init__(self):
        self.meeting, self.slots, self.mine = threading.Barrier(2, timeout=60), [None, None], threading.local()

    def is_available(self):
        return True

    is_initialized = is_available

    def get_world_size(self):
        return 2

    def all_reduce(self, tensor):
        self.slots[self.mine.rank] = tensor.clone()
        self.meeting.wait()
        tensor.copy_(self.slots[0] + self.slots[1])
        self.meeting.wait()


def test_two_ranks_see_the_statistics_and_gradients_of_the_joined_batch(monkeypatch):
    torch.manual_seed(0)
    layers = [GlobalBatchNorm(3)]
    layers.append(copy.deepcopy(layers[0]))
    norm, features = plain(layers[0]), FEATURES.clone().requires_grad_()
    weighted_sum(norm(features)).backward()
    halves = [half.clone().requires_grad_() for half in FEATURES.chunk(2)]
    group = TwoThreads()
    monkeypatch.setattr("inpaint.nn.batch_norm.dist", group)

    def work(rank):
        group.mine.rank = rank
        weighted_sum(layers[rank](halves[rank])).backward()

    with ThreadPoolExecutor(2) as ranks:
        list(ranks.map(work, range(2)))

    # the joined loss is the mean of both ranks' losses
    torch.testing.assert_close(torch.cat([half.grad for half in halves]) / 2, features.grad)
    torch.testing.assert_close((layers[0].weight.grad + layers[1].weight.grad) / 2, norm.weight.grad)
    for layer in layers:
        torch.testing.assert_close(layer.running_mean, norm.running_mean)
        torch.testing.assert_close(layer.running_var, norm.running_var)
