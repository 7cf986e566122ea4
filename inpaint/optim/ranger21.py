"""Ranger21: AdamW with clipped, centred and standardised gradients, positive-negative momentum, stable weight decay,
norm loss, lookahead, and its own warm-up and warm-down.

Two flavours. `reference` does what the published library (pytorch_optimizer 3.9) does; `paper` does what Algorithm 1
of the DiNA paper prints: no standardisation and no softplus, momentum weighted by β0 = 0.9, and the largest variance
seen so far. Where both are silent or disagree with themselves, one decision serves both:

- The floor of the warm-down is 0.3 of the base rate. The library's fixed 3e-5 would triple a rate of 1e-5.
- Gradients are copied and standardised once; the library overwrites them and standardises them twice.
- A unit is an index of dimension 0, whatever the rank, and a tensor of rank 0 or 1 is one unit; with 3-D tensors the
  library takes norms over dimension 1 alone.
- The printed decay multiplies the rate twice (into d_t, and again into the update); here, as in the library, once.
  Decay and norm loss are two factors; only the decay is divided by the spread of all variances.
- A tensor of one or two elements is not standardised, so clipping holds its steps to about 1e-5: it hardly moves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

CLIP = 1e-2  # largest gradient of a unit, as a share of its weights' norm
CLIP_FLOOR = 1e-3  # smallest norm a unit's weights are credited with
NORM_LOSS = 1e-4
LOOKAHEAD_EVERY = 5  # steps
LOOKAHEAD_SHARE = 0.5
SOFTPLUS = 50.0
WARM_DOWN_FROM = 0.72  # of all steps
SHORT_WARM_UP = 0.22  # of all steps, when the untuned warm-up would take more than 0.45 of them
FLOOR = 0.3  # of the base rate, at the end of the warm-down
PAPER_BETA0 = 0.9


def warm_up_steps(total_steps: int, beta2: float) -> int:
    """Length of the linear warm-up: 2 / (1 - β2) steps, or 22 % of the total when that is more than 45 % of it."""
    untuned = math.ceil(2 / (1 - beta2) - 1e-6)
    return untuned if untuned <= 0.45 * total_steps else max(1, int(SHORT_WARM_UP * total_steps))


def rate_factor(step: int, total_steps: int, beta2: float) -> float:
    """The rate of a step as a share of the base rate: up to 1, flat, and from 72 % of the steps down to 0.3.

    Args:
        step: 1 for the first.
        total_steps: steps after which the floor is reached; later steps stay on it.
        beta2: decides the length of the warm-up.
    """
    first_down = int(WARM_DOWN_FROM * total_steps)
    rising = min(1.0, step / warm_up_steps(total_steps, beta2))
    if step < first_down:
        return rising
    falling = min(1.0, (step + 1 - first_down) / (total_steps - first_down + 1))
    return min(rising, 1 - (1 - FLOOR) * falling)


def noise_norm(beta: float) -> float:
    """Length of the vector (1 + β, β), by which positive-negative momentum is divided."""
    return math.hypot(1 + beta, beta)


class Ranger21(Optimizer):
    """Ranger21 in the `reference` or `paper` flavour.

    All state is plain: tensors per parameter (`momentum_odd`, `momentum_even`, `variance`, `slow`, and in `paper`
    `largest_variance`) and the step in the parameter group, so that it loads with `weights_only=True` and goes on bit
    for bit. `group["lr"]` is the base rate; the rate of the last step made is in `group["rate"]`.

    Args:
        params: parameters or groups of them.
        lr: base learning rate.
        total_steps: length of the training in optimiser steps, or None for a constant rate.
        betas: β1 of the momenta and β2 of the variance.
        eps: keeps divisions finite.
        weight_decay: λ of the stable weight decay.
        norm_loss: strength of the pull of every unit's norm towards 1.
        flavour: see the module.

    Raises:
        ValueError: a setting outside its range.

    Source: DiNA paper, Algorithm 1; Wright and Demeure, "Ranger21: a synergistic deep learning optimizer", 2021.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        total_steps: int | None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-4,
        norm_loss: float = NORM_LOSS,
        flavour: Literal["reference", "paper"] = "reference",
    ) -> None:
        if lr <= 0 or eps <= 0 or weight_decay < 0 or norm_loss < 0 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(
                f"Ranger21: lr {lr}, eps {eps}, weight_decay {weight_decay}, norm_loss {norm_loss}, betas {betas}; "
                "expected lr and eps above 0, the decays at least 0, betas in [0, 1)"
            )
        if total_steps is not None and total_steps < 1:
            raise ValueError(f"Ranger21: total_steps {total_steps}; expected at least 1, or None for a constant rate")
        if flavour not in ("reference", "paper"):
            raise ValueError(f"Ranger21: flavour {flavour!r}; expected reference or paper")
        defaults = {
            "lr": lr,
            "betas": tuple(betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "norm_loss": norm_loss,
            "flavour": flavour,
            "total_steps": total_steps,
            "step": 0,
            "rate": 0.0,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every parameter that has a gradient; gradients are left as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        spread = self._update_variances()
        for group in self.param_groups:
            self._move(group, spread)
            if group["step"] % LOOKAHEAD_EVERY == 0:
                self._look_ahead(group)
        return loss

    def _update_variances(self) -> Tensor | None:
        """Prepare gradients and variances; the root of the mean corrected variance over all parameters, a scalar."""
        count, sums = 0, []
        for group in self.param_groups:
            group["step"] += 1
            beta2, paper = group["betas"][1], group["flavour"] == "paper"
            for parameter in _with_gradient(group):
                state = self._state_of(parameter, paper=paper)
                gradient = prepared(parameter, parameter.grad, standardise=not paper)
                state["variance"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
                if paper:
                    torch.maximum(state["largest_variance"], state["variance"], out=state["largest_variance"])
                used = state["largest_variance" if paper else "variance"]
                sums.append(used.sum() / (1 - beta2 ** group["step"]))
                count += parameter.numel()
                odd = group["step"] % 2 == 1
                beta1 = group["betas"][0]
                now = state["momentum_odd" if odd else "momentum_even"]
                now.mul_(beta1**2).add_(gradient, alpha=1 - beta1**2)
        return ((1 + torch.stack(sums).sum()) / count).sqrt() if sums else None

    def _state_of(self, parameter: Tensor, *, paper: bool) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            names = ["momentum_odd", "momentum_even", "variance"] + ["largest_variance"] * paper
            state.update({name: torch.zeros_like(parameter) for name in names})
            state["slow"] = parameter.detach().clone()
        return state

    def _move(self, group: dict[str, Any], spread: Tensor | None) -> None:
        step, total, (beta1, beta2) = group["step"], group["total_steps"], group["betas"]
        rate = group["rate"] = group["lr"] * (1.0 if total is None else rate_factor(step, total, beta2))
        paper = group["flavour"] == "paper"
        positive, negative = (1 + PAPER_BETA0, PAPER_BETA0) if paper else (2.0, 1.0)
        length = noise_norm(PAPER_BETA0 if paper else beta2)
        order = ("momentum_odd", "momentum_even") if step % 2 == 1 else ("momentum_even", "momentum_odd")
        for parameter in _with_gradient(group):
            state = self.state[parameter]
            assert spread is not None
            if group["weight_decay"]:
                parameter.mul_(1 - rate * group["weight_decay"] / spread)
            if group["norm_loss"]:
                pull = 1 - 1 / (unit_norm(parameter) + group["eps"])
                parameter.mul_(1 - 2 * rate * group["norm_loss"] * pull)
            now, other = (state[name] for name in order)
            direction = (positive * now).sub_(other, alpha=negative).div_(length)
            variance = state["largest_variance" if paper else "variance"]
            scale = variance.sqrt().div_(math.sqrt(1 - beta2**step)).add_(group["eps"])
            if not paper:
                scale = F.softplus(scale, beta=SOFTPLUS)
            parameter.addcdiv_(direction, scale, value=-rate / (1 - beta1**step))

    def _look_ahead(self, group: dict[str, Any]) -> None:
        for parameter in _with_gradient(group):
            slow = self.state[parameter]["slow"]
            parameter.lerp_(slow, 1 - LOOKAHEAD_SHARE)
            slow.copy_(parameter)


def unit_norm(values: Tensor) -> Tensor:
    """Euclidean norm of each unit (an index of dimension 0, or a whole vector), shaped to multiply `values`."""
    if values.dim() <= 1:
        return torch.linalg.vector_norm(values)
    return torch.linalg.vector_norm(values, dim=tuple(range(1, values.dim())), keepdim=True)


def prepared(parameter: Tensor, gradient: Tensor, *, standardise: bool) -> Tensor:
    """A copy of `gradient`, clipped per unit against its weights' norm, centred per unit, and, if asked, divided by its
    standard deviation (tensors of more than two elements).

    Raises:
        ValueError: a sparse gradient.
    """
    if gradient.is_sparse:
        raise ValueError("Ranger21 takes dense gradients only; this one is sparse")
    bound = CLIP * unit_norm(parameter).clamp_min(CLIP_FLOOR)
    length = unit_norm(gradient).clamp_min(1e-6)
    gradient = torch.where(length > bound, gradient * (bound / length), gradient)
    if gradient.dim() > 1:
        gradient = gradient - gradient.mean(dim=tuple(range(1, gradient.dim())), keepdim=True)
    if standardise and gradient.numel() > 2:
        gradient = gradient / (gradient.std() + 1e-8)
    return gradient


def _with_gradient(group: dict[str, Any]) -> list[Tensor]:
    return [parameter for parameter in group["params"] if parameter.grad is not None]
