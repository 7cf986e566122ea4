"""The driver of an evaluation: `python -m ray_jobs.evaluate evaluation.yaml`. Workers score parts, it joins them.

Each worker prepares the same job from the same request and takes the next part that nobody has; a part is a fixed group
of images in fixed batches, so the numbers are the same to the last digit on one worker and on many. A worker that dies
costs the part it was at.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import torch

from inpaint import storage
from inpaint.config.base import load_yaml, validate
from inpaint.config.evaluation import EvaluationFile, EvaluationRequest
from inpaint.errors import EvaluationError, InpaintError
from inpaint.evaluation.job import Job, finish, prepare, score_missing
from inpaint.evaluation.parts import kept_parts
from inpaint.evaluation.results import Result
from ray_jobs.runtime import start_ray

TRIES = 3  # of one part whose worker died
Progress = Callable[[int, int], None]


def run_on_ray(
    request: EvaluationRequest,
    *,
    workers: int,
    gpus: float = 0,
    cpus: float = 1,
    address: str | None = None,
    progress: Progress = lambda done, total: None,
) -> tuple[Job, Result]:
    """A whole evaluation over Ray workers.

    Args:
        request: what to score. Its stores must be reachable from every worker.
        workers: how many.
        gpus, cpus: of one worker.
        address: of a Ray cluster; `RAY_ADDRESS`, else a Ray of its own on this machine.
        progress: gets the parts done and the parts in all.

    Raises:
        InpaintError: whatever is wrong with the request; nothing is left behind then.
        EvaluationError: workers keep dying.
    """
    request = _everywhere(request)
    job = prepare(request)
    start_ray(address)
    _score(job, request, workers=workers, gpus=gpus, cpus=cpus, progress=progress)
    return job, finish(job)


class _Scorer:
    """One worker: the job, loaded once."""

    def __init__(self, request: dict[str, Any], threads: int) -> None:
        torch.set_num_threads(threads)
        self.job = prepare(EvaluationRequest.model_validate(request))

    def score(self, number: int) -> int:
        """Score and keep one part."""
        score_missing(self.job, [number])
        return number


def _score(job: Job, request: EvaluationRequest, *, workers: int, gpus: float, cpus: float, progress: Progress) -> None:
    total = len(job.plan.parts())
    waiting = sorted(set(range(total)) - kept_parts(job.parts_url))
    progress(total - len(waiting), total)
    scorer = ray.remote(num_cpus=cpus, num_gpus=gpus)(_Scorer)

    def new_worker() -> Any:
        return scorer.remote(request.model_dump(mode="json"), max(1, int(cpus)))

    idle = [new_worker() for _ in range(min(workers, len(waiting)))]
    busy: dict[Any, tuple[Any, int]] = {}
    deaths: dict[int, int] = {}
    try:
        while waiting or busy:
            while waiting and idle:
                worker, number = idle.pop(), waiting.pop(0)
                busy[worker.score.remote(number)] = worker, number
            (ready,), _ = ray.wait(list(busy), num_returns=1)
            worker, number = busy.pop(ready)
            try:
                ray.get(ready)
                idle.append(worker)
            except ray.exceptions.RayActorError as error:
                _raise_cause(error)
                deaths[number] = deaths.get(number, 0) + 1
                if deaths[number] == TRIES:
                    text = f"part {number}: {TRIES} workers died over it ({error}); see their logs"
                    raise EvaluationError(text) from error
                waiting.insert(0, number)
                idle.append(new_worker())
            progress(total - len(waiting) - len(busy), total)
    except ray.exceptions.RayTaskError as error:
        _drain(busy)
        storage.delete_tree(job.parts_url)
        _raise_cause(error)
        raise
    finally:
        for worker in (*idle, *(worker for worker, _ in busy.values())):
            ray.kill(worker)


def _drain(busy: dict[Any, tuple[Any, int]]) -> None:
    """Stop workers that are still writing, so that nothing appears after the parts are removed."""
    for worker, _ in busy.values():
        ray.kill(worker)


def _raise_cause(error: Exception) -> None:
    """Raise the user's own error out of Ray's wrapping, if that is what is inside."""
    cause: BaseException | None = error
    while cause is not None:
        inner = getattr(cause, "cause", None) or cause.__cause__
        if isinstance(cause, InpaintError) and not isinstance(cause, ray.exceptions.RayError):
            raise cause from None
        cause = inner if inner is not cause else None


def _everywhere(request: EvaluationRequest) -> EvaluationRequest:
    """The request with local paths made absolute: workers run in other folders."""

    def absolute(url: str | None) -> str | None:
        if url is None or storage.is_remote(url) or not Path(url).exists():
            return url
        return str(Path(url).resolve())

    values = request.model_dump()
    for place in ("root", "out"):
        if values[place] and not storage.is_remote(values[place]):
            values[place] = str(Path(values[place]).resolve())
    values["data"] = absolute(request.data)
    if "/" in request.subject:
        values["subject"] = absolute(request.subject)
    for group in ("finished", "masks"):
        values[group] = values[group] and {key: absolute(value) for key, value in values[group].items()}
    for group in ("lpips", "features", "faces"):
        values[group] = {key: absolute(value) for key, value in values[group].items()}
    return EvaluationRequest.model_validate(values)


def main() -> None:
    """Entry point on a cluster."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", help="request and resources (YAML)")
    parser.add_argument("--address", help="of a Ray cluster; RAY_ADDRESS, else a Ray of its own")
    arguments = parser.parse_args()
    try:
        text = Path(arguments.file).read_text()
        asked = validate(EvaluationFile, load_yaml(text, place=arguments.file), place=arguments.file)
        resources = asked.resources
        job, _ = run_on_ray(
            asked.request,
            workers=resources.num_workers,
            gpus=resources.gpus_per_worker,
            cpus=resources.cpus_per_worker,
            address=arguments.address,
            progress=lambda done, total: print(f"{done}/{total} parts", flush=True),
        )
    except InpaintError as error:
        print(f"inpaint: {error}", file=sys.stderr)
        sys.exit(1)
    print(job.url)


if __name__ == "__main__":
    main()
