"""Batch normalisation whose statistics are those of the global batch, on any backend."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


class GlobalBatchNorm(nn.BatchNorm2d):
    """Batch norm over all ranks: N ranks with B samples each give what one process gives with N·B.

    torch's SyncBatchNorm does the same for CUDA alone; this one also runs where tests do. On one rank it is torch's own
    batch norm. Scale starts at N(1, 0.02²), shift at 0 (DCGAN).

    Args:
        channels: of the input.
        running: keep running statistics for evaluation mode; without them the batch's own are always used.
    """

    def __init__(self, channels: int, *, running: bool = True) -> None:
        super().__init__(channels, track_running_stats=running)
        nn.init.normal_(self.weight, 1.0, 0.02)

    def forward(self, features: Tensor) -> Tensor:
        """Raises ValueError when a channel has a single value, whose deviation is no number."""
        if not (self.training or self.running_mean is None):
            return super().forward(features)
        ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        count = features.numel() // self.num_features * ranks
        if count < 2:
            raise ValueError(
                "batch statistics need 2 values per channel and found 1; train with training.global_batch of 2 or more"
            )
        return super().forward(features) if ranks == 1 else self._over_ranks(features, count)

    def _over_ranks(self, features: Tensor, count: int) -> Tensor:
        values = features.to(torch.promote_types(features.dtype, torch.float32))
        mean = _MeanOverRanks.apply(values.mean(dim=(0, 2, 3), keepdim=True))
        centred = values - mean
        variance = _MeanOverRanks.apply(centred.square().mean(dim=(0, 2, 3), keepdim=True))
        if self.training and self.running_mean is not None:
            self.num_batches_tracked += 1
            unbiased = variance.detach().flatten() * (count / (count - 1))
            self.running_mean.lerp_(mean.detach().flatten(), self.momentum)
            self.running_var.lerp_(unbiased, self.momentum)
        scale = torch.rsqrt(variance + self.eps) * self.weight.view(1, -1, 1, 1)
        return (centred * scale + self.bias.view(1, -1, 1, 1)).to(features.dtype)


class _MeanOverRanks(torch.autograd.Function):
    """Mean of a tensor over ranks that hold equally many samples.

    Every rank's loss depends on every rank's input, so the gradient is the mean over ranks too.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, value: Tensor) -> Tensor:
        return _mean_over_ranks(value)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        return _mean_over_ranks(gradient)


def _mean_over_ranks(value: Tensor) -> Tensor:
    total = value.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total / dist.get_world_size()
