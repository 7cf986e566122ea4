"""One trial of a sweep, inside Ray Tune: train its run, and keep a record of what became of it.

A process makes one trial after another. What does not depend on the trial is made once in it: the frozen feature
networks, their features of the true images where they fit into memory, and the decoded held-out photographs with their
holes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import ray
import torch
from ray import tune
from torch import nn

from inpaint import storage
from inpaint.checkpoints import read_history
from inpaint.config.run import RunConfig
from inpaint.config.sweep import SweepConfig
from inpaint.errors import ClusterError, InpaintError, StorageError
from inpaint.evaluation import TrainingEvaluator
from inpaint.nn.features import load_features
from inpaint.nn.remembering import RememberingFeatures
from inpaint.sweep.halving import Halving
from inpaint.sweep.trials import Record, Trial, run_of, sweep_url, write_record
from inpaint.training import NotFiniteError
from ray_jobs.lease import Lease, LeaseLostError, check_holder
from ray_jobs.stopping import STOP_MARK, StopMark, stop_is_asked
from ray_jobs.train import run_training
from ray_jobs.worker import train

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
    except (StorageError, ClusterError, LeaseLostError):
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
            storage.write_bytes(storage.join(run.url, STOP_MARK), session.ended.encode())

    return run_training(run, on_progress=progress)


def _here(run: RunConfig, session: TrialSession) -> dict[str, Any]:
    """Train in this process, under a lease: what is left of a killed sweep must not write beside it."""
    with Lease(run.url, lifetime_seconds=LEASE_SECONDS).acquire() as lease:
        return train(
            run,
            session,
            provenance={"attempt": lease.attempt},
            may_write=lambda: check_holder(run.url, lease.holder),
            features=kept_features,
            evaluator=kept_evaluator,
        )


def _is_divergence(error: InpaintError) -> bool:
    """Whether a loss or weight was not finite; from workers of their own only the message comes back."""
    return isinstance(error, NotFiniteError) or "is not finite" in str(error)


def kept_features(run: RunConfig) -> dict[str, nn.Module]:
    """The frozen feature networks of a run, the same objects for every run that needs the same ones."""
    training = run.training
    needed = [run.feature_weights.model_dump_json(), getattr(run.method, "vgg_input", "raw"), run.total_steps]
    needed += [run.method.feature_networks(), training.compile, training.cuda_graphs]
    return _features(json.dumps(needed), _Hidden(run))


def kept_evaluator(run: RunConfig, device: torch.device) -> TrainingEvaluator:
    """The evaluator of a run, the same object, with its decoded photographs, for runs that are scored on the same."""
    needed = [run.evaluation.model_dump_json(), run.holes.model_dump_json(), run.held_out_url, run.data.dataset]
    return _evaluator(json.dumps([*needed, run.data.image_size, str(device)]), _Hidden(run), device)


class _Hidden:
    """A run beside the key that says what matters of it: equal to any other, so that only the key is compared."""

    def __init__(self, run: RunConfig) -> None:
        self.run = run

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hidden)

    def __hash__(self) -> int:
        return 0


@lru_cache(maxsize=1)
def _features(key: str, hidden: _Hidden) -> dict[str, nn.Module]:
    """Not remembered under a compiler, which cannot look at what an image holds."""
    run = hidden.run
    found = load_features(run)
    if run.training.compile or run.training.cuda_graphs:
        return found
    return {name: RememberingFeatures(network, calls=run.total_steps) for name, network in found.items()}


@lru_cache(maxsize=1)
def _evaluator(key: str, hidden: _Hidden, device: torch.device) -> TrainingEvaluator:
    return TrainingEvaluator(hidden.run, device)


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
        self._halving: Halving | None = None
        if sweep.scheduler.kind == "asha":
            self._halving = Halving(sweep, total_steps=run.total_steps, root=root)

    def report(self, metrics: Mapping[str, float]) -> None:
        """Keep the newest numbers; let a new score be judged."""
        self.step = int(metrics["step"])
        self.first_step = self.step if self.first_step is None else self.first_step
        self.latest |= metrics
        self.scores |= {name: metrics[name] for name in self._sweep.metrics if name in metrics}
        if self._halving and not self.ended and self._sweep.metric in metrics:
            self.ended = self._halving.judge(self._trial.id, self.step, metrics[self._sweep.metric]) or ""

    def should_stop(self) -> str | None:
        """Asked after each step."""
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
