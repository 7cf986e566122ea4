"""One trial of a sweep, inside Ray Tune: train its run, and keep a record of what became of it.

A process makes one trial after another. What does not depend on the trial is made once in it: the frozen feature
networks, and the decoded held-out photographs with their holes.
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

from inpaint.checkpoints import read_history
from inpaint.config.run import RunConfig
from inpaint.config.sweep import SweepConfig
from inpaint.errors import ClusterError, InpaintError, StorageError
from inpaint.evaluation import TrainingEvaluator
from inpaint.nn.features import load_features
from inpaint.sweep.trials import Record, Trial, run_of, write_record
from inpaint.training import NotFiniteError
from ray_jobs.lease import Lease, LeaseLostError, check_holder
from ray_jobs.train import run_training
from ray_jobs.worker import train

LEASE_SECONDS = 15.0  # of a trial's run: most that a trial waits for a process that another machine lost


def work(config: dict[str, Any]) -> None:
    """The function that Tune calls; its process goes on to the next trial afterwards.

    Args:
        config: "sweep" (plain settings), "root", and "trial" (plain).
    """
    sweep = SweepConfig.model_validate(config["sweep"])
    trial = Trial(**config["trial"])
    run = run_of(sweep, trial, root=config["root"])
    session = TuneSession(sweep, decides=sweep.scheduler.kind == "asha")
    began = time.monotonic()
    try:
        ended = run_training(run, on_progress=session.report) if run.resources.num_workers > 1 else _here(run, session)
        status, reason = ("finished", "") if ended["reason"] == "finished" else ("stopped", "asked to")
    except (StorageError, ClusterError, LeaseLostError):
        raise  # may mend itself: Tune starts the trial again, from its newest checkpoint
    except InpaintError as error:  # would come again
        status, reason = "diverged" if _is_divergence(error) else "failed", str(error)
    write_record(sweep, _record(trial, run, session, status, reason, time.monotonic() - began), root=config["root"])
    if not session.reported:
        tune.report({"step": session.step, **session.scores})


def _here(run: RunConfig, session: TuneSession) -> dict[str, Any]:
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
    needed = [run.feature_weights.model_dump_json(), getattr(run.method, "vgg_input", "raw")]
    return _features(json.dumps([*needed, run.method.feature_networks()]), _Hidden(run))


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
    return load_features(hidden.run)


@lru_cache(maxsize=1)
def _evaluator(key: str, hidden: _Hidden, device: torch.device) -> TrainingEvaluator:
    return TrainingEvaluator(hidden.run, device)


class TuneSession:
    """The one worker of a trial.

    Args:
        sweep: whose metrics are worth reporting.
        decides: the scheduler wants every score, not only the last one.
    """

    rank, world_size = 0, 1

    def __init__(self, sweep: SweepConfig, *, decides: bool) -> None:
        self.device = torch.device("cuda", 0) if ray.get_gpu_ids() else torch.device("cpu")
        self._sweep, self._decides = sweep, decides
        self.reported = False
        self.first_step: int | None = None
        self.step = 0
        self.scores: dict[str, float] = {}
        self.latest: dict[str, float] = {}

    def report(self, metrics: Mapping[str, float]) -> None:
        """Keep the newest numbers; pass scores on to Tune where something depends on them."""
        self.step = int(metrics["step"])
        self.first_step = self.first_step if self.first_step is not None else self.step
        self.latest |= metrics
        self.scores |= {name: metrics[name] for name in self._sweep.metrics if name in metrics}
        if self._decides and self._sweep.metric in metrics:
            self.reported = True
            tune.report({"step": self.step, **self.scores})

    def should_stop(self) -> str | None:
        """Tune ends a trial between two reports by itself."""
        return None


def _record(
    trial: Trial, run: RunConfig, session: TuneSession, status: Any, reason: str, seconds: float
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
