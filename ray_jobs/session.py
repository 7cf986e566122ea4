"""What a worker needs from whatever started it: Ray Train, Ray Tune, or plain Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch


class Session(Protocol):
    """The place a worker runs in.

    Attributes:
        rank: number of this worker, from 0.
        world_size: how many there are. With more than one, torch's default process group is up.
        device: where this worker computes.
    """

    rank: int
    world_size: int
    device: torch.device

    def report(self, metrics: Mapping[str, float]) -> None:
        """Say how far the run is; called on rank 0 at every logged step and after every evaluation."""
        ...

    def should_stop(self) -> str | None:
        """Why this worker ought to write a checkpoint and return ("stopped", "preempted"), or None.

        Called on every rank between the same steps, about once a second. The ranks agree on the answer afterwards, so
        each may give its own.
        """
        ...


@dataclass
class PlainSession:
    """One process without Ray.

    Attributes:
        on_report: called with each report.
        stop: asked by `should_stop`.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    on_report: Callable[[Mapping[str, float]], None] = lambda metrics: None
    stop: Callable[[], str | None] = lambda: None

    def report(self, metrics: Mapping[str, float]) -> None:
        self.on_report(metrics)

    def should_stop(self) -> str | None:
        return self.stop()
