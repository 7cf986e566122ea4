"""Averaged weights: an exponential moving average of every network that has been trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Averages:
    """Moving averages of networks' parameters, in the parameters' own type.

    Each step moves an average by (1 - decay) of its distance to the weights. Buffers are not averaged.

    Args:
        decay: share of the average that stays in a step, in (0, 1).
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.values: dict[str, dict[str, Tensor]] = {}

    @torch.no_grad()
    def include(self, networks: Mapping[str, nn.Module]) -> None:
        """Start the averages of networks that have none yet, at their present weights."""
        for name, network in networks.items():
            if name not in self.values:
                self.values[name] = {key: value.detach().clone() for key, value in network.named_parameters()}

    @torch.no_grad()
    def follow(self, networks: Mapping[str, nn.Module]) -> None:
        """Move the averages towards the present weights of `networks`; does not wait for the device."""
        for name, network in networks.items():
            pairs = [(self.values[name][key], value) for key, value in network.named_parameters()]
            torch._foreach_lerp_([average for average, _ in pairs], [value for _, value in pairs], 1 - self.decay)

    @torch.no_grad()
    def settle(self, networks: Mapping[str, nn.Module]) -> None:
        """Give networks that are not trained any more their averages as weights, so that others learn beside what is
        published."""
        for name in networks.keys() & self.values.keys():
            for key, parameter in networks[name].named_parameters():
                parameter.copy_(self.values[name][key])

    @contextmanager
    def in_place(self, networks: Mapping[str, nn.Module]) -> Iterator[None]:
        """The averages as the networks' weights, inside; outside, the weights are back where they were."""
        self._swap(networks)
        try:
            yield
        finally:
            self._swap(networks)

    def averaged_state(self, name: str, network: nn.Module) -> dict[str, Tensor]:
        """The network's state_dict with averages in place of its parameters; the live tensors, not copies."""
        return {key: self.values.get(name, {}).get(key, value) for key, value in network.state_dict().items()}

    def _swap(self, networks: Mapping[str, nn.Module]) -> None:
        for name, values in self.values.items():
            for key, parameter in networks[name].named_parameters():
                parameter.data, values[key] = values[key], parameter.data
