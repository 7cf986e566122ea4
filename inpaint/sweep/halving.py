"""Successive halving: at each rung a trial goes on only while its score is among the best that came there.

    <root>/sweeps/<sweep>/rungs/<step>/<trial>.json    a trial's score at a rung, and what was decided

A score is written down before it is judged, and judged against all that are written down. So a trial decides for
itself wherever it runs, the same decision is found again by whoever asks later, and a killed sweep loses no rung.

Source: Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020, in its stopping form: a trial
that is not promoted at once is ended instead of paused.
"""

from __future__ import annotations

import json
import math
from typing import Any

from inpaint import storage
from inpaint.config.sweep import ASHA, SweepConfig
from inpaint.sweep.trials import sweep_url


class Halving:
    """The rungs of a sweep under `scheduler: {kind: asha}`.

    Args:
        sweep: whose scheduler and first metric decide.
        total_steps: of a trial; the last step is no rung.
        root: of the storage layout.
    """

    def __init__(self, sweep: SweepConfig, *, total_steps: int, root: str) -> None:
        assert isinstance(sweep.scheduler, ASHA)
        self._keep = sweep.scheduler.reduction
        self._metric, self._direction = sweep.metric, sweep.metrics[sweep.metric]
        self._url = storage.join(sweep_url(sweep.name, root=root), "rungs")
        self.steps = rungs(sweep.scheduler, total_steps)

    def judge(self, trial: str, step: int, score: float) -> str | None:
        """Why a trial has to stop after this score, or None when it goes on.

        A trial is judged once at each rung, by its first score at or after it; the decision stays.
        """
        reached = [rung for rung in self.steps if rung <= step]
        entries = {rung: self._read(rung) for rung in reached}
        for rung in reached:
            if reason := entries[rung].get(trial, {}).get("stopped"):
                return str(reason)
        if not reached or "stopped" in entries[reached[-1]].get(trial, {}):
            return None
        return self._decide(trial, reached[-1], step, score)

    def _decide(self, trial: str, rung: int, step: int, score: float) -> str | None:
        own = {"step": step, "score": score if math.isfinite(score) else None}
        self._write(rung, trial, own)
        scores = {name: entry["score"] for name, entry in self._read(rung).items()}  # with those that came meanwhile
        reason = self._reason(trial, rung, scores)
        self._write(rung, trial, own | {"stopped": reason})
        return reason

    def _reason(self, trial: str, rung: int, scores: dict[str, float | None]) -> str | None:
        own, others = scores[trial], [value for value in scores.values() if value is not None]
        if own is None:
            return f"successive halving at step {rung}: {self._metric} is not finite"
        better = sum(value > own if self._direction == "max" else value < own for value in others)
        kept = max(1, len(scores) // self._keep)
        if better < kept:
            return None
        return (
            f"successive halving at step {rung}: {self._metric} {own:.4g} is number {better + 1} of {len(scores)}, "
            f"{kept} of them may go on"
        )

    def _read(self, rung: int) -> dict[str, dict[str, Any]]:
        found = {}
        for info in storage.list_objects(storage.join(self._url, str(rung))):
            found[info.url.rpartition("/")[2].removesuffix(".json")] = json.loads(storage.read_bytes(info.url))
        return found

    def _write(self, rung: int, trial: str, entry: dict[str, Any]) -> None:
        storage.write_bytes(storage.join(self._url, str(rung), f"{trial}.json"), json.dumps(entry).encode())


def rungs(scheduler: ASHA, total_steps: int) -> list[int]:
    """Steps at which trials are judged: grace, grace × reduction, grace × reduction², ... before the last step."""
    found = []
    step = scheduler.grace_steps
    while step < total_steps:
        found.append(step)
        step *= scheduler.reduction
    return found
