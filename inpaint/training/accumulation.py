"""A batch computed in parts gives the step of the whole batch, also for networks that move their own buffers.

Spectral norm takes one power iteration per training forward. In parts there are more forwards than in one piece, so
before each part the buffers go back to where the step, or the update, found them: every part then sees, and leaves
behind, what the whole batch would.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn


class BufferSnapshot:
    """The buffers of some networks as they are now."""

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        self.live = {name: list(network.buffers()) for name, network in networks.items()}
        self.kept = {name: [buffer.clone() for buffer in buffers] for name, buffers in self.live.items()}

    @torch.no_grad()
    def restore(self, names: Iterable[str]) -> None:
        """Put the buffers of the named networks back; does not wait for the device."""
        live = [buffer for name in names for buffer in self.live[name]]
        kept = [buffer for name in names for buffer in self.kept[name]]
        _copy(live, kept)


@contextmanager
def calls(networks: Mapping[str, nn.Module]) -> Iterator[set[str]]:
    """Names of the networks that run inside."""
    called: set[str] = set()
    with ExitStack() as hooks:
        for name, network in networks.items():
            handle = network.register_forward_pre_hook(lambda *_, name=name: called.add(name))
            hooks.callback(handle.remove)
        yield called


def _copy(to: list[Tensor], values: list[Tensor]) -> None:
    if to:
        torch._foreach_copy_(to, values)
