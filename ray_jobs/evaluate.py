"""The driver of an evaluation: `python -m ray_jobs.evaluate evaluation.yaml`. Workers score parts, it joins them.

Each worker prepares the same job from the same request and takes the next part that nobody has; a part is a fixed group
of images in fixed batches, so the numbers are the same to the last digit on one worker and on many. A worker that dies
costs the part it was at.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from inpaint import storage
from inpaint.cluster.task import evaluation_url
from inpaint.config.base import load_yaml, validate
from inpaint.config.evaluation import EvaluationFile, EvaluationRequest
from inpaint.errors import ClusterError, EvaluationError, InpaintError
from inpaint.evaluation.job import FEEDERS, Job, already_scored, finish, prepare, score_missing, whole_result
from inpaint.evaluation.parts import kept_parts
from inpaint.evaluation.results import Result
from ray_jobs.runtime import start_ray
from ray_jobs.verdict import once_for_all

TRIES = 3  # deaths in a row, with no part finished between
Progress = Callable[[int, int], None]


def run_on_ray(
    request: EvaluationRequest,
    *,
    workers: int,
    gpus: float | None = None,
    cpus: float = 1,
    address: str | None = None,
    progress: Progress = lambda done, total: None,
    tell: Callable[[str], None] = lambda text: None,
) -> tuple[Job, Result]:
    """A whole evaluation over Ray workers, or the result that an earlier start of the same one left.

    Args:
        request: what to score. Its stores must be reachable from every worker.
        workers: how many.
        gpus, cpus: of one worker; an equal share of the GPUs that are there when `gpus` is None, unless the request's
            device is the CPU.
        address: of a Ray cluster; `RAY_ADDRESS`, else a Ray of its own on this machine.
        progress: gets the parts done and the parts in all.
        tell: gets a sentence when nothing had to be scored.

    Raises:
        EvaluationError: whatever is wrong with the request or the images; nothing is left behind then.
        InpaintError: what another start may mend, such as a store that does not answer; it goes on from the parts.
        ClusterError: more workers than this machine can run, or workers keep dying and no part gets finished.
    """
    request = _everywhere(request)
    job = prepare(request)
    if (result := whole_result(job)) is not None:
        tell(already_scored(job))
        return job, result
    start_ray(address)
    if gpus is None:
        gpus = 0 if request.device == "cpu" else gpu_share(workers, ray.cluster_resources().get("GPU", 0))
    if not (address or os.environ.get("RAY_ADDRESS")):
        _check_fits(workers=workers, cpus=cpus, gpus=gpus)
    _score(job, request, workers=workers, gpus=gpus, cpus=cpus, progress=progress)
    return job, finish(job)


def gpu_share(workers: int, there: float) -> float:
    """The largest share of a GPU that every worker can have at once: 1, 1/2, 1/3, ... or 0 without GPUs."""
    return 1 / math.ceil(workers / there) if there else 0


class _Scorer:
    """One worker: the job, loaded once."""

    def __init__(self, request: dict[str, Any], threads: int) -> None:
        self.threads = threads
        given = EvaluationRequest.model_validate(request)
        lent = "cuda" if ray.get_gpu_ids() else "cpu"  # a worker that asked for no GPU sees the node's all the same
        self.job = prepare(given.model_copy(update={"device": given.device or lent}))

    def score(self, numbers: list[int]) -> list[int]:
        """Score and keep these parts, as many at a time as the worker has cores."""
        score_missing(self.job, numbers, threads=self.threads)
        return numbers


class Deaths:
    """How often workers died since a part was last finished.

    Workers that lived at the same time and all die count once: with a node of eight GPUs go eight workers. So only the
    death of a worker that started after the last one that counted is a new one.
    """

    def __init__(self) -> None:
        self.in_a_row = 0
        self.counted = 0

    def add(self, started_after: int) -> None:
        """A worker died that was started when this many deaths had counted."""
        if started_after == self.counted:
            self.counted += 1
            self.in_a_row += 1

    def forget(self) -> None:
        """A part was finished."""
        self.in_a_row = 0


def _score(job: Job, request: EvaluationRequest, *, workers: int, gpus: float, cpus: float, progress: Progress) -> None:
    total = len(job.plan.parts())
    waiting = sorted(set(range(total)) - kept_parts(job.parts_url))
    progress(total - len(waiting), total)
    scorer = ray.remote(num_cpus=cpus, num_gpus=gpus)(_Scorer)
    threads = max(FEEDERS if gpus else 1, int(cpus))

    deaths = Deaths()
    started_after: dict[Any, int] = {}  # by worker

    def new_worker() -> tuple[Any, Any]:
        worker = scorer.remote(request.model_dump(mode="json"), threads)
        started_after[worker] = deaths.counted
        return worker.__ray_ready__.remote(), worker

    starting = dict(new_worker() for _ in range(min(workers, len(waiting))))  # a part only goes to one that has started
    busy: dict[Any, tuple[Any, list[int]]] = {}
    try:
        while waiting or busy:
            (ready,), _ = ray.wait([*starting, *busy], num_returns=1)
            worker, numbers = busy.pop(ready) if ready in busy else (starting.pop(ready), [])
            try:
                ray.get(ready)
            except ray.exceptions.RayActorError as error:
                _raise_cause(error)
                left = sorted(set(numbers) - kept_parts(job.parts_url))
                if len(left) < len(numbers):  # of the parts that it held, some were finished before it died
                    deaths.forget()
                deaths.add(started_after.pop(worker))
                if deaths.in_a_row == TRIES:
                    text = f"workers died {TRIES} times with no part finished between ({error}); see their logs"
                    raise ClusterError(f"{text}. The parts that are done are kept") from error
                waiting = [*left, *waiting]
                starting |= [new_worker()]
                continue
            if numbers:
                deaths.forget()
            if waiting:
                numbers, waiting = waiting[:threads], waiting[threads:]
                busy[worker.score.remote(numbers)] = worker, numbers
            else:
                ray.kill(worker)
            progress(total - len(waiting) - sum(len(taken) for _, taken in busy.values()), total)
    except ray.exceptions.RayTaskError as error:
        _stop([*starting.values(), *(worker for worker, _ in busy.values())])
        if isinstance(_cause(error), EvaluationError):  # whatever else it was, the next start goes on from the parts
            storage.delete_tree(job.parts_url)
        _raise_cause(error)
        raise
    finally:
        _stop([*starting.values(), *(worker for worker, _ in busy.values())])


def _stop(workers: list[Any]) -> None:
    """End workers, so that nothing appears after the parts are removed."""
    for worker in workers:
        ray.kill(worker)


def _check_fits(*, workers: int, cpus: float, gpus: float) -> None:
    """Refuse more workers than a Ray of this machine can ever run.

    Raises:
        ClusterError: with what is there.
    """
    there = ray.cluster_resources()
    for kind, each in (("CPU", cpus), ("GPU", gpus)):
        if workers * each > there.get(kind, 0):
            raise ClusterError(
                f"{workers} workers of {each:g} {kind}s need {workers * each:g} and this machine has "
                f"{there.get(kind, 0):g}; give fewer --workers, or the --address of a cluster"
            )


def _cause(error: Exception) -> InpaintError | None:
    """The user's own error out of Ray's wrapping, if that is what is inside."""
    cause: BaseException | None = error
    while cause is not None:
        inner = getattr(cause, "cause", None) or cause.__cause__
        if isinstance(cause, InpaintError) and not isinstance(cause, ray.exceptions.RayError):
            return cause
        cause = inner if inner is not cause else None
    return None


def _raise_cause(error: Exception) -> None:
    if cause := _cause(error):
        raise cause from None


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
        with once_for_all(evaluation_url(asked.request)):
            job, _ = run_on_ray(
                asked.request,
                workers=resources.num_workers,
                gpus=resources.gpus_per_worker,
                cpus=resources.cpus_per_worker,
                address=arguments.address,
                progress=lambda done, total: print(f"{done}/{total} parts", flush=True),
                tell=print,
            )
    except InpaintError as error:
        print(f"inpaint: {error}", file=sys.stderr)
        sys.exit(1)
    print(job.url)


if __name__ == "__main__":
    main()
