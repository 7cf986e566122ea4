"""One trial of a sweep, inside Ray Tune: train its run, and keep a record of what became of it.

A process makes one trial after another. What does not depend on the trial is made once in it: the frozen feature
networks, their features of the true images where they fit into memory, and the decoded held-out photographs with their
holes.
"""

from __future__ import annotations

import gc
import logging
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
import torch
from ray import tune
from torch import nn

from inpaint import storage
from inpaint.checkpoints import read_history
from inpaint.config.run import RunConfig
from inpaint.config.sweep import SweepConfig
from inpaint.errors import InpaintError, StorageError, UnhealthyError
from inpaint.evaluation import TrainingEvaluator
from inpaint.methods.base import Method
from inpaint.nn.features import load_features
from inpaint.nn.remembering import RememberingFeatures
from inpaint.sweep.halving import Halving
from inpaint.sweep.trials import Record, Trial, run_of, sweep_url, write_record
from inpaint.training import NotFiniteError
from inpaint.training.plan import check_plan
from inpaint.training.rehearsal import Rehearsals, rehearse
from ray_jobs.lease import Lease, check_holder
from ray_jobs.stopping import STOP_MARK, StopMark, stop_is_asked
from ray_jobs.train import run_training
from ray_jobs.verdict import MENDABLE
from ray_jobs.worker import train

log = logging.getLogger(__name__)

LEASE_SECONDS = 15.0  # of a trial's run: most that a trial waits for a process that another machine lost


def work(config: dict[str, Any]) -> None:
    """The function that Tune calls; its process goes on to the next trial afterwards.

    Args:
        config: "sweep" (plain settings), "root", and "trial" (plain).
    """
    sweep, root = SweepConfig.model_validate(config["sweep"]), config["root"]
    trial = Trial(**config["trial"])
    run = run_of(sweep, trial, root=root)
    place = sweep_url(sweep.name, root=root)
    if stop_is_asked(place):
        return  # neither begun nor recorded: it is made when the sweep is started again
    began, mark = time.monotonic(), StopMark(place)
    session = TrialSession(sweep, trial, run, mark, root=root)
    try:
        ended = _in_workers(run, session) if run.resources.num_workers > 1 else _here(run, session)
        if ended["reason"] == "stopped" and not session.ended:
            return  # as the sweep was asked to; it has a checkpoint and goes on from there
        status = "finished" if ended["reason"] == "finished" else "stopped"
        reason = session.ended if status == "stopped" else ""
    except MENDABLE:
        raise  # may mend itself: Tune starts the trial again, from its newest checkpoint
    except InpaintError as error:  # would come again
        status, reason = "diverged" if _is_divergence(error) else "failed", str(error)
    finally:
        mark.close()
    write_record(sweep, _record(trial, run, session, status, reason, time.monotonic() - began), root=root)
    tune.report({"step": session.step, **session.scores})


def _in_workers(run: RunConfig, session: TrialSession) -> dict[str, Any]:
    """Train as a Ray Train run of its own, which is asked to stop through the store."""

    def progress(metrics: Mapping[str, float]) -> None:
        session.report(metrics)
        if session.should_stop():
            try:
                storage.write_bytes(storage.join(run.url, STOP_MARK), session.ended.encode())
            except StorageError as error:  # raised here, it would start a second training beside the first
                log.warning("cannot ask %s to stop yet: %s", run.url, error)  # the next report asks again

    return run_training(run, on_progress=progress)


def _here(run: RunConfig, session: TrialSession) -> dict[str, Any]:
    """Train in this process, under a lease: what is left of a killed sweep must not write beside it."""
    if session.device.type == "cuda":
        gc.collect()  # the networks of the trial before leave the GPU
    with Lease(run.url, lifetime_seconds=LEASE_SECONDS).acquire() as lease:
        return train(
            run,
            session,
            provenance={"attempt": lease.attempt},
            may_write=lambda: check_holder(run.url, lease.holder),
            features=kept_features,
            evaluator=kept_evaluator,
            rehearsals=kept_rehearsals,
        )


def _is_divergence(error: InpaintError) -> bool:
    """Whether a loss or weight was not finite (from workers of their own only the message comes back), or a rule of
    `health.stop_when` found the networks gone astray."""
    return isinstance(error, NotFiniteError | UnhealthyError) or "is not finite" in str(error)


_kept: dict[str, tuple[Any, Any]] = {}  # kind → what decides about it, and the newest one


def _keep(kind: str, needed: Any, make: Callable[[], Any]) -> Any:
    """What `make` gives, or gave before for the same needs."""
    if _kept.get(kind, (None,))[0] != needed:
        _kept[kind] = (needed, make())
    return _kept[kind][1]


def kept_features(run: RunConfig) -> dict[str, nn.Module]:
    """The frozen feature networks of a run, the same objects for every run that needs the same ones.

    They remember true images, except under a compiler, which cannot look at what an image holds.
    """
    training = run.training
    compiled = training.compile or training.cuda_graphs
    settings = (getattr(run.method, "vgg_input", "raw"), run.feature_networks, run.total_steps, compiled)

    def make() -> dict[str, nn.Module]:
        found = load_features(run)
        if compiled:
            return found
        return {name: RememberingFeatures(network, calls=run.total_steps) for name, network in found.items()}

    return _keep("features", (run.feature_weights, settings), make)


def kept_evaluator(run: RunConfig, device: torch.device) -> TrainingEvaluator:
    """The evaluator of a run, the same object, with its decoded photographs, for runs that are scored on the same."""
    needed = (run.evaluation, run.holes, run.held_out_url, run.data.dataset, run.data.image_size, device)
    return _keep("evaluator", needed, lambda: TrainingEvaluator(run, device))


def kept_rehearsals(run: RunConfig, method: Method) -> Rehearsals:
    """What a rehearsal of the run's stages showed; the same for methods that differ in the sizes of weights only."""
    plan = check_plan(method)
    active = [[stage.name, *(sorted(update.active()) for update in stage.updates)] for stage in plan]
    networks = run.method.model_dump(exclude={"weights"})
    return _keep("rehearsals", (networks, active), lambda: rehearse(method, plan))


class TrialSession:
    """The one worker of a trial, or the one that hears of its workers.

    Attributes:
        step: the newest one that was reported; `first_step` the first of this start.
        scores: the sweep's metrics, as far as they were logged.
        latest: every newest number by name.
        ended: why successive halving has ended the trial, or empty.

    Args:
        mark: watches for the wish to stop the whole sweep.
    """

    rank, world_size = 0, 1

    def __init__(self, sweep: SweepConfig, trial: Trial, run: RunConfig, mark: StopMark, *, root: str) -> None:
        self.device = torch.device("cuda", 0) if ray.get_gpu_ids() else torch.device("cpu")
        self.step, self.first_step, self.ended = 0, None, ""
        self.scores: dict[str, float] = {}
        self.latest: dict[str, float] = {}
        self._sweep, self._trial, self._mark = sweep, trial, mark
        self._parent = os.getppid()
        self._halving: Halving | None = None
        self._unjudged: list[tuple[int, float]] = []  # scores by step that await their judgement
        if sweep.scheduler.kind == "asha":
            self._halving = Halving(sweep, total_steps=run.total_steps, root=root)

    def report(self, metrics: Mapping[str, float]) -> None:
        """Keep the newest numbers; let a new score be judged."""
        self.step = int(metrics["step"])
        self.first_step = self.step if self.first_step is None else self.first_step
        self.latest |= metrics
        self.scores |= {name: metrics[name] for name in self._sweep.metrics if name in metrics}
        if self._halving and not self.ended and self._sweep.metric in metrics:
            self._unjudged.append((self.step, metrics[self._sweep.metric]))
        self._judge()

    def _judge(self) -> None:
        """Let scores be judged in their order; where the store does not answer, the next report tries again."""
        try:
            while self._halving and self._unjudged and not self.ended:
                self.ended = self._halving.judge(self._trial.id, *self._unjudged[0]) or ""
                self._unjudged.pop(0)
        except StorageError as error:
            log.warning("trial %s is not judged yet: %s", self._trial.id, error)

    def should_stop(self) -> str | None:
        """Asked about once a second; ends the process when the Ray that started it is gone, and nobody would know."""
        if os.getppid() != self._parent:
            os._exit(1)
        return "stopped" if self.ended or self._mark.seen else None


def _record(
    trial: Trial, run: RunConfig, session: TrialSession, status: Any, reason: str, seconds: float
) -> Record:
    """What became of a trial; what earlier starts logged comes from the run's history."""
    logged: dict[str, float] = {}
    for row in read_history(run.url):
        logged |= row
    logged |= session.latest
    step = max(session.step, int(logged.get("step", 0)))
    made = session.step - session.first_step + run.training.log_every if session.first_step is not None else step
    return Record(
        id=trial.id,
        label=trial.label,
        values=trial.values,
        seed=trial.seed,
        status=status,
        step=step,
        metrics={name: float(value) for name, value in logged.items() if name not in ("step", "total_steps")},
        seconds=seconds * max(1.0, step / max(made, 1)),  # of all its starts, from the share this one made
        gpus=run.resources.gpus_per_worker * run.resources.num_workers,
        reason=reason,
    )
