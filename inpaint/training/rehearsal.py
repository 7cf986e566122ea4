"""A method's losses run once on tensors without storage, before the first step.

A copy of the method on the meta device computes shapes and graphs but no numbers. It shows which terms a loss returns
and which parameters they reach, and costs no memory. A method that looks at values while it computes cannot be
rehearsed; its terms are checked in its first step instead.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from inpaint.imaging import Batch
from inpaint.methods.base import Method, Stage
from inpaint.training.plan import PlanError, check_terms, select_gradients, select_modes, trained_parameters

log = logging.getLogger(__name__)

SMALLEST_SIDE = 64  # pixels; deep enough for every feature network


@dataclass(frozen=True)
class Rehearsal:
    """What a rehearsed update showed.

    Attributes:
        all_reached: every trained parameter gets a gradient.
        through_forward: some trained parameter gets it through what the stage's forward returned.
    """

    all_reached: bool = False
    through_forward: bool = True


Rehearsals = Mapping[tuple[str, str], Rehearsal]  # by stage and update


def rehearse(method: Method, stages: tuple[Stage, ...]) -> Rehearsals:
    """Run every loss once on the meta device, check its terms, and report per (stage, update) what it showed.

    Raises:
        PlanError: a term without a weight, or a weight without a term.
    """
    shadow = _shadow(method)
    results: dict[tuple[str, str], Rehearsal] = {}
    plan = {stage.name: stage for stage in shadow.stages()}
    for stage in stages:
        try:
            results |= _rehearse_stage(shadow, plan[stage.name])
        except PlanError:
            raise
        except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:  # it looks at values
            log.info("stage %s cannot be rehearsed without data: %s", stage.name, str(error).strip().splitlines()[0])
    return results


def _shadow(method: Method) -> Method:
    """A copy of the method on the meta device, made without copying a number."""
    memo: dict[int, Any] = {}
    for tensor in (*method.parameters(), *method.buffers()):
        empty: Tensor = torch.empty_like(tensor, device="meta")
        if isinstance(tensor, nn.Parameter):
            empty = nn.Parameter(empty, requires_grad=tensor.requires_grad)
        memo[id(tensor)] = empty
    return copy.deepcopy(method, memo)


def _rehearse_stage(shadow: Method, stage: Stage) -> dict[tuple[str, str], Rehearsal]:
    multiple = int(getattr(shadow.config, "size_multiple", 1))
    only = getattr(shadow.config, "image_size", None)  # of a method that is built for one size
    smallest = max(SMALLEST_SIDE, int(getattr(shadow.config, "smallest_side", 1)))
    side = int(only or -(-smallest // multiple) * multiple)
    image, mask = torch.empty(2, 3, side, side, device="meta"), torch.empty(2, 1, side, side, device="meta")
    batch = Batch(image, mask, keys=("a", "b"), hole_share=torch.empty((), device="meta"))
    select_gradients(shadow, stage.trained())
    select_modes(shadow, stage)
    made = stage.forward(batch)
    of_forward = _reached(tensors_of(made))
    results = {}
    for update in stage.updates:
        select_gradients(shadow, update.trains)
        terms = update.loss(batch, made, update.active())
        check_terms(stage, update, terms)
        mine = {id(p) for p in trained_parameters(shadow, update.trains)}
        results[stage.name, update.name] = Rehearsal(
            all_reached=mine <= _reached(terms.values()), through_forward=bool(mine & of_forward)
        )
    return results


def tensors_of(values: Any) -> list[Tensor]:
    """Every tensor in nested dicts, sequences and dataclasses."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, Mapping):
        values = list(values.values())
    elif hasattr(values, "__dict__") and not isinstance(values, nn.Module):
        values = list(vars(values).values())
    return [t for value in values for t in tensors_of(value)] if isinstance(values, list | tuple) else []


def _reached(outputs: Iterable[Tensor]) -> set[int]:
    """Identities of the parameters whose gradient the outputs' graphs lead to."""
    waiting = [output.grad_fn for output in outputs if output.grad_fn is not None]
    seen, found = set(waiting), set()
    while waiting:
        node = waiting.pop()
        if (variable := getattr(node, "variable", None)) is not None:
            found.add(id(variable))
        fresh = [parent for parent, _ in node.next_functions if parent is not None and parent not in seen]
        seen.update(fresh)
        waiting += fresh
    return found
