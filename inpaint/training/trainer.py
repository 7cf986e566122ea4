"""The trainer: walks a method's stages and turns batches into steps.

    trainer = Trainer(method, run.training, seed=run.seed, device=device)
    for step in trainer.steps(stream):
        if step.number % 50 == 0:
            print(step.stage, step.number, step.scalars())

It knows no paper, no Ray, no store: logging, checkpoints and stopping are the caller's plain loop.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from inpaint.config.run import TrainingConfig
from inpaint.errors import CheckpointError, ConfigError
from inpaint.imaging import Batch
from inpaint.methods.base import Method, Update
from inpaint.optim import goes_on
from inpaint.training.averaging import Averages
from inpaint.training.distributed import check_group, copy_from_first
from inpaint.training.finite import NotFiniteError
from inpaint.training.plan import check_plan
from inpaint.training.precision import policy
from inpaint.training.recomputing import blocks_of
from inpaint.training.rehearsal import Rehearsals, rehearse
from inpaint.training.stage_run import StageRun


@dataclass(frozen=True)
class Step:
    """A step that has been made.

    Attributes:
        number: of the step in the run, from 1.
        stage: name of its stage.
        stage_step: its number within the stage, from 1.
        waited_seconds: how long the trainer waited for the batch.
        settings: `<update>/learning_rate`, and `<update>/<term>_weight` of each ramped weight, in this step.
    """

    number: int
    stage: str
    stage_step: int
    waited_seconds: float
    settings: Mapping[str, float]
    names: tuple[tuple[str, str], ...] = field(repr=False)
    values: Tensor = field(repr=False)

    def scalars(self) -> dict[str, float]:
        """What the step can be judged by; means over the global batch. Waits for the device.

        `<update>/<term>` is unweighted, `<update>/loss` the weighted sum, `<update>/gradient_norm` before clipping.
        `<update>/learning_rate` and, where λ is ramped, `<update>/<term>_weight` are those of this step.
        """
        places = [f"{update}/{name}" for update, name in self.names]
        return dict(zip(places, self.values.tolist(), strict=True)) | dict(self.settings)


class Trainer:
    """Trains a method from its first stage to its last.

    Args:
        method: freshly built, the same on every rank or made so (rank 0's weights count). Moved to `device`.
        config: how a step is computed.
        seed: of the run; every random draw of a step follows from it and the step's number.
        device: where to train.
        rank: of this worker.
        world_size: how many workers; with more than one the default process group must exist.
        rehearsals: what a method of the same networks and terms showed before; rehearsed now when None.

    Raises:
        PlanError: the method's stages contradict themselves; names stage, update and network or term.
        ConfigError: a setting that this device or these networks cannot honour.
    """

    def __init__(
        self,
        method: Method,
        config: TrainingConfig,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        rehearsals: Rehearsals | None = None,
    ) -> None:
        self.method, self.config, self.seed = method, config, seed
        self.device, self.rank, self.world_size = torch.device(device), rank, world_size
        self.plan = check_plan(method)
        self._check_settings()
        check_group(rank, world_size)
        self.rehearsals = rehearse(method, self.plan) if rehearsals is None else rehearsals
        self.memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        method.to(self.device)
        if config.channels_last:
            _lay_channels_last(method)
        copy_from_first((*method.parameters(), *method.buffers()), world_size)
        self.averages = Averages(config.ema) if config.ema is not None else None
        self.step = 0
        self._ends = list(accumulate(stage.steps for stage in self.plan))
        self._run: StageRun | None = None
        self._optimizers: Mapping[str, Any] = {}

    @property
    def total_steps(self) -> int:
        """Steps over all stages."""
        return self._ends[-1]

    @property
    def stage(self) -> str:
        """Name of the stage that the next step belongs to; the last one's when all steps are made."""
        return self.plan[self._place()].name

    def steps(self, batches: Iterable[Batch]) -> Iterator[Step]:
        """Make a step from each of this rank's batches until all stages are done or the batches end.

        When a step is handed out it is finished: the state may be saved, or the networks used, before the next.

        Raises:
            NotFiniteError: a loss was not finite; looked for every `check_every` steps and at the end of each stage.
            ValueError: a batch that does not divide into the configured parts.
        """
        source = iter(batches)
        while self.step < self.total_steps:
            asked = time.perf_counter()
            batch = next(source, None)
            if batch is None:
                return
            waited = time.perf_counter() - asked
            yield self._make(batch, waited)

    def check_finite(self) -> None:
        """Wait for the device and raise if a loss or a trained weight is not finite.

        Raises:
            NotFiniteError: names stage, update, term and step.
        """
        if self._run is None:
            return
        self._run.watch.check()
        for run in self._run.updates:
            norms = torch._foreach_norm([parameter.detach() for parameter in run.parameters])
            if not torch.isfinite(torch.stack(norms)).all():
                raise NotFiniteError(
                    stage=self._run.stage.name, update=run.update.name, term="weights", step=self.step
                )

    def gradient_norms(self) -> dict[str, Tensor]:
        """Length of each network's gradient in the last step, after clipping, as scalars on the device."""
        if self._run is None:
            return {}
        found = {}
        for name, network in self._run.networks.items():
            gradients = [p.grad for p in network.parameters() if p.grad is not None]
            if gradients:
                found[name] = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        return found

    def averaged(self) -> AbstractContextManager[None]:
        """The averaged weights in place of the live ones, inside; without `ema`, the weights as they are."""
        return nullcontext() if self.averages is None else self.averages.in_place(self.method.networks())

    def state_dict(self) -> dict[str, Any]:
        """All that a continued run needs, as plain values and the live tensors (copy them before the next step).

        `networks` holds what is published, by network: the averaged weights when `ema` is set; `resting` names those
        that the stage of the last step leaves as they are. `trainer` holds the rest: step, seed (from which every
        random draw follows), optimizers, and with `ema` the live weights.

        Raises:
            NotFiniteError: a loss or weight is not finite, so the state is not worth keeping.
        """
        self.check_finite()
        networks = self.method.networks()
        trainer: dict[str, Any] = {
            "step": self.step, "seed": self.seed, "stage": self.stage, "optimizers": self._optimizer_states()
        }  # fmt: skip
        moved = next(stage for stage, end in zip(self.plan, self._ends, strict=True) if self.step <= end).trained()
        resting = tuple(name for name in networks if name not in moved)
        if self.averages is None:
            published = {name: network.state_dict() for name, network in networks.items()}
            return {"networks": published, "resting": resting, "trainer": trainer}
        averages = self.averages
        trainer["live"] = {
            name: {key: value.detach() for key, value in networks[name].named_parameters()} for name in averages.values
        }
        published = {name: averages.averaged_state(name, network) for name, network in networks.items()}
        return {"networks": published, "resting": resting, "trainer": trainer}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`, bit for bit as if never stopped.

        Raises:
            CheckpointError: the state is of other networks or other stages.
        """
        trainer = state["trainer"]
        networks = self.method.networks()
        if set(state["networks"]) != set(networks):
            raise CheckpointError(
                f"the state holds networks {', '.join(sorted(state['networks']))}, this method has "
                f"{', '.join(sorted(networks))}; continue with the run's own method"
            )
        for name, tensors in state["networks"].items():
            _load(name, networks[name], tensors)
        self._load_averages(trainer.get("live"))
        self.step, self.seed = int(trainer["step"]), int(trainer["seed"])
        if self.step > self.total_steps or trainer["stage"] != self.stage:
            raise CheckpointError(
                f"the state is at step {self.step} in stage {trainer['stage']}, where this run of {self.total_steps} "
                f"steps has stage {self.stage}; continue with the lengths of stages it was started with"
            )
        self._forget_stage()
        self._optimizers = trainer["optimizers"]

    def _load_averages(self, live: Mapping[str, Mapping[str, Tensor]] | None) -> None:
        """What was loaded into the networks are the averages when `live` holds the weights to go on from."""
        if self.averages is not None:
            self.averages = Averages(self.averages.decay)
        if live is None:
            return
        networks = self.method.networks()
        if self.averages is not None:
            self.averages.include({name: networks[name] for name in live})
        for name, tensors in live.items():
            _load(name, networks[name], dict(networks[name].state_dict()) | dict(tensors))

    def _make(self, batch: Batch, waited: float) -> Step:
        run = self._enter()
        done = self.step - (self._ends[self._place()] - run.stage.steps)
        batch = batch.to(self.device, memory_format=self.memory_format)
        with policy(self.config, self.device):
            values, settings = run.make(batch, number=self.step + 1, done=done)
        self.step += 1
        if self.step % self.config.check_every == 0 or done + 1 == run.stage.steps:
            run.watch.check()
        return Step(self.step, run.stage.name, done + 1, waited, settings, run.names, values)

    def _enter(self) -> StageRun:
        """The stage of the next step; its optimizers are fresh unless they were loaded or go on."""
        stage = self.plan[self._place()]
        if self._run is None or self._run.stage is not stage:
            self._optimizers = self._optimizer_states()
            self._forget_stage()
            self._run = StageRun(
                self.method, stage, self.config, self.rehearsals, self.averages,
                seed=self.seed, device=self.device, rank=self.rank, world_size=self.world_size,
            )  # fmt: skip
            for run in self._run.updates:
                if run.update.name in self._optimizers:
                    run.load_optimizer(self._optimizers[run.update.name])
            self._optimizers = {}
        return self._run

    def _forget_stage(self) -> None:
        """Free what an earlier stage holds, before the next one asks for as much."""
        if self._run is not None:
            self._run = None
            gc.collect()  # its parts know each other, so counting references frees none

    def _optimizer_states(self) -> dict[str, Any]:
        """States of the optimizers that the next step starts from, by update.

        An update that the next stage has again (same name, networks and settings) goes on with its optimizer.
        """
        if self._run is None:
            return dict(self._optimizers)
        stage = self.plan[self._place()]
        coming = {update.name: update for update in stage.updates}
        return {
            run.update.name: run.optimizer.state_dict()
            for run in self._run.updates
            if stage is self._run.stage or _goes_on(run.update, coming.get(run.update.name))
        }

    def _place(self) -> int:
        """Number of the stage that the next step belongs to, from 0."""
        return next((place for place, end in enumerate(self._ends) if self.step < end), len(self._ends) - 1)

    def _check_settings(self) -> None:
        config = self.config
        if config.cuda_graphs and self.device.type != "cuda":
            raise ConfigError(f"training.cuda_graphs: true needs a CUDA device, not {self.device}; set it to false")
        if config.cuda_graphs and self.world_size > 1:
            raise ConfigError(
                f"training.cuda_graphs: true works with one worker, not {self.world_size}; set it to false"
            )
        if config.activation_checkpointing:
            for stage in self.plan:
                if not any(blocks_of(getattr(self.method, name)) for name in stage.trained()):
                    raise ConfigError(
                        f"training.activation_checkpointing: true has no effect in stage {stage.name}: no block of two "
                        f"layers in {', '.join(stage.trained())}; set it to false"
                    )


@torch.no_grad()
def _lay_channels_last(method: Method) -> None:
    """Convolution weights in memory as the images are; `Module.to` refuses tensors of five dimensions."""
    for tensor in (*method.parameters(), *method.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.contiguous(memory_format=torch.channels_last)


def _goes_on(update: Update, coming: Update | None) -> bool:
    """Whether `coming`, of the next stage, is `update` again and keeps its optimizer."""
    return (
        coming is not None and coming.trains == update.trains and goes_on(update.optimizer, coming.optimizer)
    )


def _load(name: str, network: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
    try:
        network.load_state_dict(dict(tensors))
    except RuntimeError as error:
        detail = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise CheckpointError(
            f"network {name}: the state does not fit ({detail}); continue with the run's own method"
        ) from None
