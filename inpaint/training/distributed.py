"""Several workers as one: sums over ranks, and gradients averaged while they are computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from inpaint.imaging import Batch


class Objective(nn.Module):
    """One update's loss as a module over the networks it trains, so that DDP can wrap what must be kept in step.

    The method's own networks stay bare: the wrapper lies around the loss and is used only inside a step. Since no
    network belongs to two updates of a stage, each network has exactly one wrapper.

    Args:
        networks: what the update trains, by name.
        loss: (batch, what the stage's forward gave) → values, [terms], float32.
    """

    def __init__(self, networks: Mapping[str, nn.Module], loss: Callable[[Batch, Any], Tensor]) -> None:
        super().__init__()
        self.networks = nn.ModuleDict(networks)
        self.loss = loss

    def forward(self, batch: Batch, made: Any) -> Tensor:
        return self.loss(batch, made)


def wrap(objective: Objective, *, all_reached: bool) -> DistributedDataParallel:
    """The objective with its gradients averaged over all ranks during backward.

    Buffers are not broadcast, they stay equal by themselves: spectral norm's vectors are made from equal weights, and
    `GlobalBatchNorm` has the statistics of all ranks.

    Args:
        objective: with its parameters on their device and wanting gradients.
        all_reached: every parameter gets a gradient; otherwise the graph is searched for those that do not.
    """
    return DistributedDataParallel(
        objective, forward_sync_buffers=False, gradient_as_bucket_view=True, find_unused_parameters=not all_reached
    )


def check_group(rank: int, world_size: int) -> None:
    """Refuse ranks that the process group does not have.

    Raises:
        ValueError: no process group, or another size or rank than said.
    """
    if world_size == 1:
        return
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError(
            f"world_size {world_size} needs a process group; call torch.distributed.init_process_group first"
        )
    if (dist.get_rank(), dist.get_world_size()) != (rank, world_size):
        raise ValueError(
            f"rank {rank} of {world_size} was given, but the process group says {dist.get_rank()} of "
            f"{dist.get_world_size()}; pass its own numbers"
        )


def mean_over_ranks(value: Tensor, world_size: int) -> Tensor:
    """The mean of a tensor over all ranks; the tensor itself with one rank."""
    if world_size > 1:
        value = value.detach().clone()
        dist.all_reduce(value)
        value /= world_size
    return value


@torch.no_grad()
def copy_from_first(tensors: Iterable[Tensor], world_size: int) -> None:
    """Make every rank's tensors those of rank 0."""
    if world_size > 1:
        for tensor in tensors:
            if tensor.is_contiguous():
                dist.broadcast(tensor, src=0)
            else:
                dense = tensor.contiguous()
                dist.broadcast(dense, src=0)
                tensor.copy_(dense)
