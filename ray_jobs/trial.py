"""One trial of a sweep, inside Ray Tune: train its run, and keep a record of what became of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import ray
import torch
from ray import tune

from inpaint.config.run import RunConfig
from inpaint.config.sweep import SweepConfig
from inpaint.sweep.trials import Record, Trial, run_of, write_record
from inpaint.training import NotFiniteError
from ray_jobs.train import run_training
from ray_jobs.worker import train


def work(config: dict[str, Any]) -> None:
    """The function that Tune calls; its process goes on to the next trial afterwards.

    Args:
        config: "sweep" (plain settings), "root", and either "trial" (plain) or "number" with varied values beside it.
    """
    sweep = SweepConfig.model_validate(config["sweep"])
    trial = Trial(**config["trial"])
    run = run_of(sweep, trial, root=config["root"])
    session = TuneSession(sweep.metric, decides=sweep.scheduler.kind == "asha" or sweep.search.kind != "random")
    status, reason, began = "stopped", "by the scheduler", time.monotonic()
    try:
        if run.resources.num_workers > 1:
            run_training(run, on_progress=session.report)
        else:
            train(run, session)
        status, reason = "finished", ""
    except NotFiniteError as error:
        status, reason = "diverged", str(error)
    except Exception:
        status = ""  # Tune starts the trial again, from its newest checkpoint
        raise
    finally:
        if status:
            write_record(sweep, _record(trial, run, session, status, reason, began), root=config["root"])
    if not session.reported:
        tune.report({"step": session.step, **session.scores})


class TuneSession:
    """The one worker of a trial.

    Args:
        metric: whose rows are worth reporting.
        decides: the scheduler or the search wants every score, not only the last one.
    """

    rank, world_size = 0, 1

    def __init__(self, metric: str, *, decides: bool) -> None:
        self.device = torch.device("cuda", 0) if ray.get_gpu_ids() else torch.device("cpu")
        self._metric, self._decides = metric, decides
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
        if self._metric in metrics:
            self.scores = {name: value for name, value in metrics.items() if "/" not in name}
            if self._decides:
                self.reported = True
                tune.report({"step": self.step, **self.scores})

    def should_stop(self) -> str | None:
        """Tune ends a trial between two reports by itself."""
        return None


def _record(
    trial: Trial, run: RunConfig, session: TuneSession, status: Any, reason: str, began: float
) -> Record:
    seconds = time.monotonic() - began
    made = session.step - (session.first_step or 0) + run.training.log_every
    return Record(
        id=trial.id,
        label=trial.label,
        values=trial.values,
        seed=trial.seed,
        status=status,
        step=session.step,
        metrics={name: float(value) for name, value in session.latest.items() if name not in ("step", "total_steps")},
        seconds=seconds * max(1.0, session.step / max(made, 1)),  # of all its starts, from the share this one made
        gpus=run.resources.gpus_per_worker * run.resources.num_workers,
        reason=reason,
    )
