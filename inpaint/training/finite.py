"""Losses that are not finite: noted on the device every step, looked at by the host now and then."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from inpaint.errors import TrainingError


class NotFiniteError(TrainingError):
    """A loss term or a network's weights are not finite.

    Attributes:
        stage, update, term: where; the term is `weights` when a network's parameters are meant, and `gradient` when the
            gradient's norm is.
        step: the run's step in which it was first so, from 1; for weights, the last step made.
    """

    def __init__(self, *, stage: str, update: str, term: str, step: int, tried: str = "") -> None:
        self.stage, self.update, self.term, self.step = stage, update, term, step
        what = f"step {step}: stage {stage}, update {update}: {term} is not finite" + (f"; {tried}" if tried else "")
        way_back = "" if tried else ", or set training.not_finite: rollback"
        super().__init__(
            f"{what}; lower the learning rate or the term's weight, set or lower training.clip_gradient_norm{way_back}"
        )

    def after(self, tried: str) -> NotFiniteError:
        """The same under `training.not_finite: rollback`: says why the run does not go back (any more)."""
        return NotFiniteError(stage=self.stage, update=self.update, term=self.term, step=self.step, tried=tried)


class FiniteWatch:
    """Remembers on the device in which step each value of a row was first not finite.

    Args:
        names: (update, term) of each value of the rows that `note` is given.
    """

    def __init__(self, stage: str, names: Sequence[tuple[str, str]], device: torch.device) -> None:
        self.stage, self.names = stage, tuple(names)
        self.first = torch.zeros(len(self.names), dtype=torch.int64, device=device)

    def note(self, values: Tensor, step: Tensor) -> None:
        """Take in a step's row of values; `step` is its number, an int64 scalar on the device. Does not wait."""
        fresh = (self.first == 0) & ~torch.isfinite(values)
        self.first.add_(fresh * step)

    def check(self) -> None:
        """Wait for the device, and raise what it has seen.

        Raises:
            NotFiniteError: with the earliest step and, in it, the first update and term.
        """
        steps = self.first.tolist()
        bad = [(step, place) for place, step in enumerate(steps) if step]
        if bad:
            step, place = min(bad)
            update, term = self.names[place]
            raise NotFiniteError(stage=self.stage, update=update, term=term, step=step)
