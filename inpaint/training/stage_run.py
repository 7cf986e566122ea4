"""One stage being trained: its optimizers, and how a batch becomes a step.

Nothing here waits for the device. What changes from step to step (weights of terms, learning rates, the step's number)
lies in tensors on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import record_function

from inpaint.config.run import TrainingConfig
from inpaint.imaging import Batch
from inpaint.methods.base import Method, Stage, Update, weight_at
from inpaint.optim import build_optimizer, set_learning_rate
from inpaint.training.accumulation import BufferSnapshot, calls
from inpaint.training.averaging import Averages
from inpaint.training.compiling import compiled
from inpaint.training.distributed import Objective, mean_over_ranks, wrap
from inpaint.training.finite import FiniteWatch
from inpaint.training.graphs import GraphedStep
from inpaint.training.plan import PlanError, check_terms, select_gradients, select_modes, trained_parameters
from inpaint.training.precision import autocast
from inpaint.training.randomness import seed_torch
from inpaint.training.recomputing import blocks_of, recomputed
from inpaint.training.rehearsal import Rehearsal


class UpdateRun:
    """One update of a stage: its parameters, its optimizer, its objective, and its row of values.

    The row holds each active term unweighted, then `loss`, their weighted sum, then `gradient_norm` when clipping.
    """

    def __init__(
        self,
        method: Method,
        stage: Stage,
        update: Update,
        config: TrainingConfig,
        rehearsal: Rehearsal,
        *,
        device: torch.device,
        world_size: int,
    ) -> None:
        self.stage, self.update, self.config, self.rehearsal = stage, update, config, rehearsal
        self.parameters = trained_parameters(method, update.trains)
        self.optimizer = build_optimizer(
            update.optimizer, self.parameters, steps=stage.steps, capturable=config.cuda_graphs
        )
        active = update.active()
        self.terms = tuple(term for term in update.weights if term in active)
        self.names = (*self.terms, "loss") + ("gradient_norm",) * (config.clip_gradient_norm is not None)
        self.weights = torch.zeros(len(self.terms), device=device)
        self._weights_set: list[float] = []
        self._loss: Callable[[Batch, Any], Mapping[str, Tensor]] = lambda batch, made: update.loss(batch, made, active)
        if config.compile:
            self._loss = compiled(self._loss, name=f"stage {stage.name}, update {update.name}")
        networks = {name: getattr(method, name) for name in update.trains}
        self.objective: Objective | DistributedDataParallel = Objective(networks, self.values)
        if world_size > 1:
            self.objective = wrap(self.objective, all_reached=rehearsal.all_reached)

    def values(self, batch: Batch, made: Any) -> Tensor:
        """Unweighted terms in the order of `terms`, [terms], float32.

        Raises:
            PlanError: the loss gave other terms than it has weights for.
        """
        terms = self._loss(batch, made)
        if terms.keys() != set(self.terms):
            check_terms(self.stage, self.update, terms)
        return torch.stack([terms[name].float().reshape(()) for name in self.terms])

    def set_host_values(self, done: int) -> dict[str, float]:
        """Set weights and learning rate of the step after `done` steps of the stage.

        Returns:
            `learning_rate`, and `<term>_weight` of each weight that changes with the stage's progress.
        """
        weights = [weight_at(self.update.weights[term], done / self.stage.steps) for term in self.terms]
        for place, weight in enumerate(weights):
            if not self._weights_set or weight != self._weights_set[place]:
                self.weights[place].fill_(weight)
        self._weights_set = weights
        rate = set_learning_rate(self.optimizer, self.update.optimizer, step=done, steps=self.stage.steps)
        moving = zip(self.terms, weights, strict=True)
        ramps = {f"{term}_weight": weight for term, weight in moving if callable(self.update.weights[term])}
        return {"learning_rate": rate, **ramps}

    def accumulate(self, batch: Batch, made: Any, *, parts: int, last: bool, keep_graph: bool) -> Tensor:
        """Add one part's gradients; its row of values without the gradient norm."""
        with self._synchronised(last):
            with record_function("step.forward"), autocast(self.config, batch.image.device):
                values = self.objective(batch, made)
            loss = (values * self.weights).sum()
            if not loss.requires_grad:
                raise PlanError(
                    f"stage {self.stage.name}, update {self.update.name}: no term reaches "
                    f"{', '.join(self.update.trains)}; nothing would be learned"
                )
            with record_function("step.backward"):
                torch.autograd.backward(loss / parts, inputs=self.parameters, retain_graph=keep_graph)
        return torch.cat((values.detach(), loss.detach().reshape(1)))

    def move(self) -> list[Tensor]:
        """Clip, and make the optimizer's step; the gradient's norm before clipping, if it was taken."""
        with record_function("step.optimizer"):
            norms = []
            if self.config.clip_gradient_norm is not None:
                norm = nn.utils.clip_grad_norm_(self.parameters, self.config.clip_gradient_norm)
                norms = [norm.float().reshape(1)]
            self.optimizer.step()
            return norms

    def clear(self) -> None:
        """Forget the gradients of the step before."""
        for parameter in self.parameters:
            parameter.grad = None

    def load_optimizer(self, state: Mapping[str, Any]) -> None:
        """Continue an optimizer; its tensors take on the memory layout of their parameters, as fused steps need.

        Its rate stays where a captured step reads it, and it computes as this run's config says, not the saved one's.
        """
        names = ("lr", "fused", "capturable")
        own: list[dict[str, Any]] = [
            {name: group[name] for name in names if name in group} for group in self.optimizer.param_groups
        ]
        self.optimizer.load_state_dict(dict(state))
        for group, kept in zip(self.optimizer.param_groups, own, strict=True):
            group.update(kept)
        for parameter, kept in self.optimizer.state.items():
            for name, value in kept.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape and value.dim():
                    kept[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)

    def _synchronised(self, last: bool) -> AbstractContextManager[None]:
        """Gradients are averaged over ranks only in the last part."""
        if isinstance(self.objective, DistributedDataParallel) and not last:
            return self.objective.no_sync()
        return nullcontext()


class StageRun:
    """A stage with everything it needs to make steps.

    Args:
        method: on its device.
        stage: one of its stages.
        config: how a step is computed.
        rehearsals: what each update showed, by (stage, update).
        averages: moving averages to keep up, or None.
        seed: of the run.
    """

    def __init__(
        self,
        method: Method,
        stage: Stage,
        config: TrainingConfig,
        rehearsals: Mapping[tuple[str, str], Rehearsal],
        averages: Averages | None,
        *,
        seed: int,
        device: torch.device,
        rank: int,
        world_size: int,
    ) -> None:
        self.method, self.stage, self.config, self.averages = method, stage, config, averages
        self.seed, self.device, self.rank, self.world_size = seed, device, rank, world_size
        self.networks = {name: getattr(method, name) for name in stage.trained()}
        if averages is not None:
            averages.include(self.networks)
            averages.settle({name: other for name, other in method.networks().items() if name not in self.networks})
        select_gradients(method, stage.trained())
        self.updates = [
            UpdateRun(
                method, stage, update, config, rehearsals.get((stage.name, update.name), Rehearsal()),
                device=device, world_size=world_size,
            )
            for update in stage.updates
        ]  # fmt: skip
        self.names = tuple((run.update.name, name) for run in self.updates for name in run.names)
        self.watch = FiniteWatch(stage.name, self.names, device)
        recomputing = self.networks.values() if config.activation_checkpointing else ()
        self.blocks = [block for network in recomputing for block in blocks_of(network)]
        self.forward = compiled(stage.forward, name=f"stage {stage.name}") if config.compile else stage.forward
        self._number = torch.zeros((), dtype=torch.int64, device=device)
        self._compute: Callable[[Batch], Tensor] = GraphedStep(self._make) if config.cuda_graphs else self._make

    def make(self, batch: Batch, *, number: int, done: int) -> tuple[Tensor, dict[str, float]]:
        """Make the run's step `number`, after `done` steps of this stage.

        Returns:
            Its row of values, and `<update>/learning_rate` and `<update>/<term>_weight` as they were in this step.

        Raises:
            ValueError: the batch does not divide into `accumulate` parts.
        """
        select_modes(self.method, self.stage)
        self._place = number
        self._number.fill_(number)
        settings = {
            f"{run.update.name}/{name}": value
            for run in self.updates
            for name, value in run.set_host_values(done).items()
        }
        self._seed(0, 0)
        batch = replace(batch, keys=()) if self.config.compile else batch
        with self._recomputing():
            return self._compute(batch), settings

    def _make(self, batch: Batch) -> Tensor:
        batch = replace(batch, hole_share=mean_over_ranks(batch.mask.float().mean(), self.world_size))
        rows = self._in_parts(batch) if self.config.accumulate > 1 else self._in_one(batch)
        if self.averages is not None:
            self.averages.follow(self.networks)
        row = mean_over_ranks(torch.cat(rows), self.world_size)
        self.watch.note(row, self._number)
        return row

    def _in_one(self, batch: Batch) -> list[Tensor]:
        """One forward, shared by the updates."""
        made = self._forward(batch, self.stage.trained(), part=0, wants_graph=True)
        rows = []
        for place, run in enumerate(self.updates):
            self._turn_to(run, place, part=0)
            run.clear()
            last = place == len(self.updates) - 1
            rows.append(run.accumulate(batch, made, parts=1, last=True, keep_graph=not last))
            rows += run.move()
        return rows

    def _in_parts(self, batch: Batch) -> list[Tensor]:
        """Forward again for every part and update, so that no more than one part's graph is held at a time."""
        parts = batch.split(self.config.accumulate)
        own = self.method.networks()
        before = BufferSnapshot(own)
        drawn_with: set[str] = set()
        rows = []
        for place, run in enumerate(self.updates):
            now = BufferSnapshot(own)
            run.clear()
            total = torch.zeros(len(run.terms) + 1, device=self.device)
            for part, piece in enumerate(parts):
                before.restore(drawn_with)
                now.restore(own.keys() - drawn_with)
                with calls(own) as called:
                    made = self._forward(piece, self.stage.trained(), part, wants_graph=run.rehearsal.through_forward)
                drawn_with |= called
                self._turn_to(run, place, part)
                last = part == len(parts) - 1
                total += run.accumulate(piece, made, parts=len(parts), last=last, keep_graph=False)
            rows += [total / len(parts), *run.move()]
        return rows

    def _forward(self, batch: Batch, trained: tuple[str, ...], part: int, *, wants_graph: bool) -> Any:
        select_gradients(self.method, trained)
        self._seed(part, 0)
        with (
            record_function("step.forward"),
            torch.set_grad_enabled(wants_graph),
            autocast(self.config, self.device),
        ):
            return self.forward(batch)

    def _turn_to(self, run: UpdateRun, place: int, part: int) -> None:
        """Let gradients flow into this update's networks alone, and draw its random numbers from its own place."""
        select_gradients(self.method, run.update.trains)
        self._seed(part, 1 + place)

    def _seed(self, part: int, place: int) -> None:
        """Random numbers by step, part of the global batch and place in the step; a captured graph keeps the first."""
        if not (self.device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
            seed_torch(self.seed, self._place, self.rank * self.config.accumulate + part, place)

    @contextmanager
    def _recomputing(self) -> Iterator[None]:
        with recomputed(self.blocks) if self.blocks else nullcontext():
            yield
