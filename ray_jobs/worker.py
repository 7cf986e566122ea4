"""One worker of a run: build, resume, loop, log, score, save. The same under Ray Train, Ray Tune and plain Python."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from inpaint.checkpoints import CheckpointWriter
from inpaint.checkpoints.history import History
from inpaint.checkpoints.records import record
from inpaint.config import RunConfig
from inpaint.config.base import suggest
from inpaint.data.stream import open_stream
from inpaint.errors import ConfigError, UnhealthyError
from inpaint.evaluation import TrainingEvaluator
from inpaint.imaging import Batch
from inpaint.methods import build_method
from inpaint.methods.base import Method
from inpaint.nn.features import load_features
from inpaint.tracking import Tracker
from inpaint.training import NotFiniteError, Trainer
from inpaint.training.distributed import copy_from_first
from inpaint.training.health import look
from inpaint.training.rehearsal import Rehearsals
from inpaint.training.samples import sample_grid
from ray_jobs.resuming import Position, remember_rollback, resume, warm_start
from ray_jobs.session import Session
from ray_jobs.stopping import StopMark, Stops

log = logging.getLogger(__name__)

SHOWN = 4  # samples in a grid
PREEMPTED_PATIENCE_SECONDS = 20.0  # a node that goes away leaves no time to wait for the store


def train(
    run: RunConfig,
    session: Session,
    *,
    provenance: Mapping[str, Any] | None = None,
    may_write: Callable[[], None] = lambda: None,
    features: Callable[[RunConfig], dict[str, nn.Module]] = load_features,
    evaluator: Callable[[RunConfig, torch.device], TrainingEvaluator] = TrainingEvaluator,
    rehearsals: Callable[[RunConfig, Method], Rehearsals | None] = lambda run, method: None,
) -> dict[str, Any]:
    """Train a run from where it stands to its end, or until asked to stop.

    Args:
        run: checked settings, the same on every rank.
        session: where this worker runs.
        provenance: where this start comes from, for the run's folder.
        may_write: called before a checkpoint is made valid; raises when this process has lost the run.
        features: gives the frozen feature networks; a process that trains many runs keeps them between two.
        evaluator: gives the run's evaluator; likewise.
        rehearsals: gives what the method's rehearsal showed, where it is known; likewise.

    Returns:
        "step", "reason" (finished, stopped or preempted), and the newest scores.

    Raises:
        InpaintError: training cannot go on; the newest checkpoint is whole.
    """
    with ExitStack() as stack:
        return _Worker(run, session, stack, provenance or {}, may_write, features, evaluator, rehearsals).work()


class _Worker:
    """The state of `train`: the trainer, and on rank 0 what is written and logged."""

    def __init__(
        self,
        run: RunConfig,
        session: Session,
        stack: ExitStack,
        provenance: Mapping[str, Any],
        may_write: Callable[[], None],
        features: Callable[[RunConfig], dict[str, nn.Module]],
        evaluator: Callable[[RunConfig, torch.device], TrainingEvaluator],
        rehearsals: Callable[[RunConfig, Method], Rehearsals | None],
    ) -> None:
        self.run, self.session, self.may_write = run, session, may_write
        self.chief = session.rank == 0
        torch.manual_seed(run.seed)
        method = build_method(run, features(run))
        self.trainer = Trainer(
            method, run.training, seed=run.seed, device=session.device, rank=session.rank,
            world_size=session.world_size, rehearsals=rehearsals(run, method),
        )  # fmt: skip
        self.method = method
        self.evaluate = evaluator(run, session.device)
        restored = resume(run, self.trainer, session)
        sources = warm_start(run, method, session) if restored is None else {}
        self.position, passed_over = restored or (Position(), frozenset())
        self.scores: dict[str, float] = {}
        if self.chief:
            record(run, provenance={**provenance, "from_step": self.trainer.step, "warm_start": sources})
            self.history = History.resume(run.url, self.trainer.step)
            self.writer = CheckpointWriter(
                run, inference_networks=method.inference_networks(), may_write=may_write, passed_over=passed_over
            )
            self.tracker = Tracker(run, attempt=provenance.get("attempt", 0))
            stack.callback(self.tracker.close)
        mark = StopMark(run.url) if self.chief else None
        if mark:
            stack.callback(mark.close)
        self.stops = Stops(session, mark)

    def work(self) -> dict[str, Any]:
        """Walk the steps, going back where the policy allows it."""
        while True:
            stream = open_stream(
                self.run,
                rank=self.session.rank,
                world_size=self.session.world_size,
                start=self.trainer.step + self.position.skipped,
                device=self.session.device,
            )
            try:
                if self.position.data:
                    stream.check_state(self.position.data)
                reason = self._walk(stream)
                break
            except NotFiniteError as error:
                self._go_back(error)
            finally:
                stream.close()
        if self.chief:
            log.info("%s at step %d", reason, self.trainer.step)
            self.writer.close()
        return {"step": self.trainer.step, "reason": reason, **self.scores}

    def _walk(self, stream: Any) -> str:
        """Train until the end or a reason to stop; why it ended."""
        run, total = self.run, self.trainer.total_steps
        clock = _Clock(run.training.global_batch, self.trainer.step)
        for step in self.trainer.steps(self._remembering(stream)):
            done = step.number
            clock.waited += step.waited_seconds
            scored = done % run.evaluation.every == 0 or done == total
            row = step.scalars() if done % run.training.log_every == 0 or done == total else {}
            if run.health.every and done % run.health.every == 0:
                row |= look(self.trainer, self.batch)  # on every rank: batch statistics are of all of them
            if scored:
                self.scores = self._score()
                row |= self.scores
            if row and self.chief:
                data = {f"data/{name}": value for name, value in stream.stats().items()}
                self._log(done, row, clock.lap(done) | data)
                self._refuse_unhealthy()
            reason = self.stops.after(done, at_once=scored)
            if reason == "preempted" and self.chief:
                self.writer.hurry(PREEMPTED_PATIENCE_SECONDS)
            if done % run.checkpoints.every == 0 or done == total or reason:
                self.position.data = stream.state_dict()
                self._save(done, row if scored else {}, is_last=bool(reason) or done == total)
            if self.chief and done % run.tracking.images_every == 0:  # after the checkpoint: a node may be going away
                self._show(done)
            if reason and done < total:
                return reason
        return "finished"

    def _remembering(self, stream: Iterable[Batch]) -> Iterator[Batch]:
        for batch in stream:
            self.batch = batch
            yield batch

    def _score(self) -> dict[str, float]:
        """Scores on the held-out pairs, with the averaged weights where the run keeps them, and rank 0's buffers."""
        copy_from_first(self.method.buffers(), self.session.world_size)
        with self.trainer.averaged():
            scores = self.evaluate(self.method, self.session.rank, self.session.world_size)
        wanted, known = self.run.checkpoints.metric, {name.partition("@")[0] for name in scores}
        if self.run.checkpoints.keep_best and wanted.partition("@")[0] not in known:
            raise ConfigError(
                f"checkpoints.metric: {wanted} is not scored{suggest(wanted, known)}; "
                f"choose one of {', '.join(sorted(known))}"
            )
        return scores

    def _log(self, step: int, row: dict[str, float], speed: dict[str, float]) -> None:
        self.history.add(step, row)
        log.info("step %d: %s", step, " ".join(f"{name}={value:.4g}" for name, value in row.items()))
        written = self.writer.written_at
        speed |= {"checkpoint_age_seconds": time.monotonic() - written} if written else {}
        self.tracker.log(step, {**row, **speed})
        self.session.report({"step": step, "total_steps": self.trainer.total_steps, **row, **speed})

    def _refuse_unhealthy(self) -> None:
        """End the run when a logged value was beyond its bound at the last so many looks."""
        for name, bound in self.run.health.stop_when.items():
            values = self.history.newest(name, bound.times)
            low = -math.inf if bound.below is None else bound.below
            high = math.inf if bound.above is None else bound.above
            if len(values) == bound.times and all(not low <= value <= high for value in values):
                raise UnhealthyError(
                    f"step {self.trainer.step}: {name} was {values[-1]:.4g}, outside {low:g} to {high:g}, "
                    f"{bound.times} times in a row (health.stop_when); see {self.run.url}/history.jsonl, change weights"
                )

    def _save(self, step: int, metrics: Mapping[str, float], *, is_last: bool) -> None:
        """Hand the state to the writer, after a look that it is worth keeping."""
        if not self.chief:
            self.trainer.check_finite()
        else:
            state = {**self.trainer.state_dict(), "position": self.position.to_dict()}
            self.writer.save(step, state, metrics, history=self.history.to_bytes(), may_leave_out=not is_last)

    def _show(self, step: int) -> None:
        """Send a grid of samples of the newest batch to the tracker."""
        with self.trainer.averaged():
            self.tracker.images(step, {"samples": sample_grid(self.method, self.batch, limit=SHOWN)})

    def _go_back(self, error: NotFiniteError) -> None:
        """Return to the newest checkpoint and pass over the batches since, or give up by policy."""
        training, position = self.run.training, self.position
        if training.not_finite == "stop":
            raise error
        if position.rollbacks >= training.max_rollbacks:
            raise error.after(f"the run went back {position.rollbacks} times (training.max_rollbacks)") from error
        if self.chief:
            self.writer.close()
        found = resume(self.run, self.trainer, self.session)
        if found is None:
            raise error.after("there is no checkpoint to go back to yet") from error
        before, passed_over = found
        self.position = Position(
            skipped=before.skipped + error.step - self.trainer.step,
            rollbacks=position.rollbacks + 1,
            data=before.data,
        )
        self.stops.begin_again()
        if self.chief:
            self.writer.passed_over |= passed_over
            self.history.cut(self.trainer.step)
            self.may_write()
            remember_rollback(self.run, self.trainer.step, self.position, str(error))
        log.warning(
            "%s; back at step %d, passing over %d batches (%d of %d times)",
            error, self.trainer.step, self.position.skipped, self.position.rollbacks, training.max_rollbacks,
        )  # fmt: skip


class _Clock:
    """Speed since the last row: images per second, and the share of the time spent waiting for data."""

    def __init__(self, global_batch: int, step: int) -> None:
        self.waited = 0.0
        self._batch, self._step, self._began = global_batch, step, time.monotonic()

    def lap(self, step: int) -> dict[str, float]:
        now = time.monotonic()
        seconds = max(now - self._began, 1e-9)
        speed = {
            "images_per_second": (step - self._step) * self._batch / seconds,
            "data_wait_share": min(1.0, self.waited / seconds),
        }
        self._step, self._began, self.waited = step, now, 0.0
        return speed
