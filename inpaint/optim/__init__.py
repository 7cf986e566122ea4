"""From settings to a moving optimizer: `build_optimizer` makes it, `rate_factor` says how its rate changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from inpaint.config.optim import Adam, ConstantSchedule, CosineSchedule, OptimizerConfig, Ranger21, StepSchedule
from inpaint.optim import ranger21
from inpaint.optim.ranger21 import Ranger21 as Ranger21Optimizer

__all__ = ["build_optimizer", "goes_on", "rate_factor", "set_learning_rate"]


def build_optimizer(
    config: OptimizerConfig, parameters: Iterable[nn.Parameter], *, steps: int, capturable: bool = False
) -> Optimizer:
    """The optimizer that `config` describes.

    Args:
        config: which, and its numbers.
        parameters: what it moves.
        steps: length of the stage in optimiser steps, for optimizers that bring their own schedule.
        capturable: keep the rate and the step count on the device, so that a CUDA graph can hold the step.
    """
    return _BUILDERS[config.kind](config, list(parameters), steps, capturable)


def goes_on(before: OptimizerConfig, after: OptimizerConfig) -> bool:
    """Whether a stage may keep the optimizer of the one before: same settings, and no schedule made for one stage."""
    return before == after and not isinstance(before, Ranger21)


def set_learning_rate(optimizer: Optimizer, config: OptimizerConfig, *, step: int, steps: int) -> float:
    """Set the rate of one step by the config's schedule, without waiting for the device; the rate the step will have.

    Args:
        step: 0 for the stage's first.
        steps: length of the stage.
    """
    rate = config.learning_rate * rate_factor(getattr(config, "schedule", ConstantSchedule()), step=step, steps=steps)
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
    if isinstance(config, Ranger21):  # which multiplies by its own warm-up and warm-down when it steps
        return rate * ranger21.rate_factor(step + 1, steps, config.betas[1])
    return rate


def rate_factor(schedule: ConstantSchedule | StepSchedule | CosineSchedule, *, step: int, steps: int) -> float:
    """The learning rate of one step as a share of the base rate.

    Args:
        step: 0 for the stage's first.
        steps: length of the stage.
    """
    return _FACTORS[schedule.kind](schedule, step, steps)


def _adam(config: Adam, parameters: list[nn.Parameter], steps: int, capturable: bool) -> Optimizer:
    fused = all(parameter.is_floating_point() and parameter.device.type in ("cpu", "cuda") for parameter in parameters)
    rate: float | Tensor = config.learning_rate
    if capturable:
        rate = torch.tensor(config.learning_rate, device=parameters[0].device)
    return torch.optim.Adam(
        parameters,
        lr=rate,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        decoupled_weight_decay=config.weight_decay > 0,
        fused=fused,
        capturable=capturable,
    )


def _ranger21(config: Ranger21, parameters: list[nn.Parameter], steps: int, capturable: bool) -> Optimizer:
    if capturable:
        raise ValueError("optimizer ranger21 counts its steps on the host; set training.cuda_graphs: false")
    return Ranger21Optimizer(
        parameters,
        lr=config.learning_rate,
        total_steps=steps,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        flavour=config.flavour,
    )


def _constant(schedule: ConstantSchedule, step: int, steps: int) -> float:
    return 1.0


def _by_steps(schedule: StepSchedule, step: int, steps: int) -> float:
    return schedule.factor ** (step // schedule.every)


def _cosine(schedule: CosineSchedule, step: int, steps: int) -> float:
    if step < schedule.warmup:
        return (step + 1) / schedule.warmup
    progress = (step - schedule.warmup) / max(1, steps - schedule.warmup)
    return schedule.floor + (1 - schedule.floor) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


_BUILDERS: dict[str, Callable[[Any, list[nn.Parameter], int, bool], Optimizer]] = {
    "adam": _adam,
    "ranger21": _ranger21,
}
_FACTORS: dict[str, Callable[[Any, int, int], float]] = {
    "constant": _constant,
    "step": _by_steps,
    "cosine": _cosine,
}
