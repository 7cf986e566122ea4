"""Activation checkpointing: blocks forget what they computed and compute it again during backward.

A block is an innermost module below a network that holds at least two layers. Buffers that a block moves as it runs
(spectral norm's vectors, running statistics) are put back for the second run, so that it repeats the first exactly,
and are then left as the first run left them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The innermost modules below `network` that hold two layers or more, in order."""
    found: list[nn.Module] = []
    for child in network.children():
        if _layers(child) >= 2:
            found += blocks_of(child) or ([child] if _callable(child) else [])
    return found


@contextmanager
def recomputed(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, the given blocks keep only their inputs for backward."""
    changed = list(blocks)
    for block in changed:
        block.forward = partial(_run, block, block.forward)
    try:
        yield
    finally:
        for block in changed:
            del block.forward


def _run(block: nn.Module, forward: Any, *inputs: Any, **named: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs, **named)
    before = [buffer.clone() for buffer in block.buffers()] if block.training else []

    def contexts() -> tuple[Any, Any]:
        return nullcontext(), _buffers_as(block, before)

    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts, preserve_rng_state=True, **named)


@contextmanager
def _buffers_as(block: nn.Module, before: list[Tensor]) -> Iterator[None]:
    """The block's buffers as they were `before`, inside."""
    live = list(block.buffers()) if before else []
    after = [buffer.clone() for buffer in live]
    _set(live, before)
    try:
        yield
    finally:
        _set(live, after)


@torch.no_grad()
def _set(buffers: list[Tensor], values: list[Tensor]) -> None:
    for buffer, value in zip(buffers, values, strict=True):
        buffer.copy_(value)


def _layers(module: nn.Module) -> int:
    """How many modules with weights of their own lie in `module`; a parametrised layer counts as one."""
    if hasattr(module, "parametrizations") or next(module.parameters(recurse=False), None) is not None:
        return 1
    return sum(_layers(child) for child in module.children())


def _callable(module: nn.Module) -> bool:
    return not isinstance(module, nn.ModuleList | nn.ModuleDict)
