"""An evaluation as a job: prepared the same way everywhere, scored part by part, finished once.

Parts lie in a folder that is named by everything that decides their numbers, so a job that is started again goes on,
and workers on other machines need nothing but the request. What stands at the end does not depend on who did what.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from inpaint import storage
from inpaint.config.evaluation import EvaluationRequest, FinishedImages
from inpaint.config.run import RunConfig
from inpaint.errors import EvaluationError
from inpaint.evaluation.evaluate import assemble, score_parts
from inpaint.evaluation.faces import load_faces
from inpaint.evaluation.finished import plan_finished
from inpaint.evaluation.holes import HoleSource
from inpaint.evaluation.inception import FeatureNetwork, load_feature_networks
from inpaint.evaluation.pairs import pair_file
from inpaint.evaluation.parts import joined, kept_parts, read_part, to_parquet, write_part
from inpaint.evaluation.perceptual import Networks, load_perceptual
from inpaint.evaluation.pictures import open_pictures
from inpaint.evaluation.plan import Plan, make_plan
from inpaint.evaluation.protocols import DATA_SETS, Protocol, data_set, find_protocols
from inpaint.evaluation.results import Result, load_result
from inpaint.evaluation.stamp import filling_code, scoring_code
from inpaint.evaluation.subjects import ONE_SHOT, PROGRESSIVE, Subject, load_subject

Progress = Callable[[int, int], None]
FEEDERS = 4  # parts that are decoded and scored at a time where a GPU does the work


@dataclass(frozen=True)
class Job:
    """A request with everything it names loaded.

    Attributes:
        request: as asked.
        subject: what is scored.
        plan: of what.
        perceptual: networks behind columns.
        inceptions: networks behind FID and its kin, by flavour.
        dataset: name of the data set, as far as it is known.
        skipped: protocols that `all` asked for and that cannot be scored here, with the reason.
        out: folder of the results.
    """

    request: EvaluationRequest
    subject: Subject
    plan: Plan
    perceptual: Networks
    inceptions: dict[str, FeatureNetwork]
    dataset: str
    skipped: dict[str, str]
    device: torch.device
    out: str

    @property
    def digest(self) -> str:
        """Of everything that decides the numbers, the code that fills and scores among it.

        Parts and results of another version of that code lie in another folder and are not gone on from.
        """
        networks = {name: network.sha256 for name, network in {**self.perceptual.present, **self.inceptions}.items()}
        code = [scoring_code(), filling_code()]
        values = [self.plan.digest, dict(self.subject.about), list(self.subject.fillers), networks, code]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    @property
    def url(self) -> str:
        """The folder of this result."""
        return storage.join(self.out, f"{self.subject.name}-{self.digest[:10]}")

    @property
    def parts_url(self) -> str:
        """Where finished parts wait for the others."""
        return storage.join(self.url, "parts")


def prepare(request: EvaluationRequest, *, networks: bool = True) -> Job:
    """Load what a request names and decide what will be scored; nothing is written.

    Args:
        request: what to score.
        networks: load the scoring networks too; whoever only wants the fills does without.

    Raises:
        InpaintError: whatever is wrong with the request, before anything is filled.
    """
    if not networks:
        request = request.model_copy(update={"lpips": {}, "features": {}, "faces": {}, "sha256": {}})
    device = _device(request.device)
    perceptual = _networks(request, device) if networks else Networks({}, {})
    inceptions = load_feature_networks(request.features, device=device, sha256=request.sha256)
    if request.finished:
        return _prepare_finished(request, request.finished, device, perceptual, inceptions)
    subject = load_subject(request, device)
    data = _data_url(request, subject.run)
    pictures = open_pictures(data)
    dataset = _dataset_of(data, subject.run)
    protocols, skipped = _fitting(request.protocols, subject.run)
    masks = request.masks
    plan = make_plan(
        protocols,
        pictures,
        HoleSource(masks.url, masks.hole) if masks else HoleSource(seed=request.seed),
        size=request.size or (subject.run.data.image_size if subject.run else None),
        dataset=dataset,
        limit=request.limit,
        seed=request.seed,
        batch=request.batch,
        present=perceptual.present,
        absent=perceptual.absent,
    )
    _check_used(request, plan)
    _check_sets(plan, inceptions)
    _check_sizes(plan, subject.run)
    out = request.out or storage.join(subject.home or request.root, "evaluations")
    return Job(request, subject, plan, perceptual, inceptions, dataset, skipped, device, out)


def score_missing(
    job: Job,
    numbers: Iterable[int] | None = None,
    *,
    threads: int | None = None,
    progress: Progress = lambda done, total: None,
) -> None:
    """Score the parts that are not there yet, of these numbers or of all.

    Args:
        job: prepared.
        numbers: of the parts.
        threads: parts that are scored at a time; when None, one for each core, or as many as keep a GPU fed.
        progress: gets the parts done and the parts in all.

    Raises:
        EvaluationError: a fill that cannot be scored; the parts are removed, so nothing is left behind.
    """
    groups = job.plan.parts()
    kept = kept_parts(job.parts_url)
    wanted = [n for n in (range(len(groups)) if numbers is None else numbers) if n not in kept]
    done = len(groups) - len(wanted)
    progress(done, len(groups))
    chosen = [groups[n] for n in wanted]
    parts = score_parts(
        job.plan,
        chosen,
        job.subject.fillers,
        device=job.device,
        perceptual=job.perceptual,
        inceptions=job.inceptions,
        composited=(PROGRESSIVE,),
        threads=threads or (FEEDERS if job.device.type == "cuda" else torch.get_num_threads()),
    )
    try:
        for number, part in zip(wanted, parts, strict=True):
            write_part(job.parts_url, number, part)
            done += 1
            progress(done, len(groups))
    except EvaluationError:
        storage.delete_tree(job.parts_url)
        raise


def finish(job: Job) -> Result:
    """Put the parts together and write `request.json`, `pairs.json`, `scores.parquet` and, last, `result.json`.

    Raises:
        EvaluationError: a part is missing.
    """
    count = len(job.plan.parts())
    kept = kept_parts(job.parts_url)
    if missing := [n for n in range(count) if n not in kept]:
        raise EvaluationError(f"{job.parts_url}: part {missing[0]} of {count} is not there; start the evaluation again")
    everything = joined(read_part(job.parts_url, number) for number in range(count))
    names = list(job.subject.fillers)
    result = assemble(
        job.plan,
        [everything],
        {
            name: {**job.subject.about, "fill": name, "data": job.plan.pictures.name, "scored_on": job.dataset}
            for name in names
        },
        perceptual=job.perceptual,
        inceptions=job.inceptions,
        dataset=job.dataset,
        compare=[(PROGRESSIVE, ONE_SHOT)] if PROGRESSIVE in names else [],
        skipped=job.skipped,
    )
    masks = {name: share.holes.sha256 for name, share in job.plan.shares.items()}
    pairs = pair_file({n: s.pairs for n, s in job.plan.shares.items()}, seed=job.plan.seed, masks=masks)
    storage.write_bytes(storage.join(job.url, "request.json"), json.dumps(_pinned(job), indent=1).encode())
    storage.write_bytes(storage.join(job.url, "pairs.json"), json.dumps(pairs).encode())
    storage.write_bytes(storage.join(job.url, "scores.parquet"), to_parquet(everything))
    storage.write_bytes(storage.join(job.url, "result.json"), json.dumps(result.to_dict(), indent=1).encode())
    storage.delete_tree(job.parts_url)
    return result


def whole_result(job: Job) -> Result | None:
    """The result of an earlier start of this very job: the same request, images, weights and code; None without one."""
    try:
        asked = json.loads(storage.read_bytes(storage.join(job.url, "request.json")))
    except (storage.MissingObject, ValueError):
        return None
    there = storage.exists(storage.join(job.url, "result.json")) and storage.exists(
        storage.join(job.url, "scores.parquet")
    )
    if not there or asked | {"device": None} != _pinned(job) | {"device": None}:
        return None
    result = load_result(job.url)
    storage.delete_tree(job.parts_url)  # a start that was lost just before its end leaves them
    return result


def run_job(
    request: EvaluationRequest,
    *,
    progress: Progress = lambda done, total: None,
    tell: Callable[[str], None] = lambda text: None,
) -> tuple[Job, Result]:
    """A whole evaluation in this process, or the result that an earlier start of the same one left.

    Args:
        request: what to score.
        progress: gets the parts done and the parts in all.
        tell: gets a sentence when nothing had to be scored.

    Raises:
        InpaintError: as `prepare` and `score_missing`.
    """
    job = prepare(request)
    if (result := whole_result(job)) is not None:
        tell(already_scored(job))
        return job, result
    score_missing(job, progress=progress)
    return job, finish(job)


def already_scored(job: Job) -> str:
    """The sentence that says so."""
    return f"{job.url}: scored before under the same conditions, and read from there; remove it to score anew"


def _pinned(job: Job) -> dict[str, Any]:
    """The request with the very checkpoint that was scored, whatever the run has next."""
    request = job.request.model_dump(mode="json")
    if isinstance(job.subject.about.get("url"), str):
        request |= {"subject": job.subject.about["url"], "best": None}
    return request


def _device(name: str | None) -> torch.device:
    there = torch.cuda.is_available()
    try:
        device = torch.device(name or ("cuda" if there else "cpu"))
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise EvaluationError(f"--device {name}: expected cpu or cuda; leave it out to take what is there")
    if device.type == "cuda" and not there:
        raise EvaluationError(f"--device {name}: there is no CUDA device here; leave --device out")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise EvaluationError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def _check_sizes(plan: Plan, run: RunConfig | None) -> None:
    """Refuse a size that the method cannot fill.

    Raises:
        EvaluationError: naming the protocol.
    """
    if run is None:
        return
    multiple = run.method.size_multiple
    for name, share in plan.shares.items():
        if share.size and share.size % multiple:
            needs = f"a multiple of {multiple}, which {run.method.name} needs"
            raise EvaluationError(f"{name}: {share.size} pixels is not {needs}; give --size")


def _check_used(request: EvaluationRequest, plan: Plan) -> None:
    """Refuse a network that was named and that no protocol of the plan asks for.

    Raises:
        EvaluationError: naming it.
    """
    metrics = {column.metric for share in plan.shares.values() for column in share.columns}
    flavours = {share.protocol.set_scores.weights for share in plan.shares.values() if share.protocol.set_scores}
    named = {f"--lpips {name}": f"lpips_{name}" in metrics for name in request.lpips}
    named |= {f"--faces {name}": f"face_{name}" in metrics for name in request.faces}
    named |= {f"--features {name}": name in flavours for name in request.features}
    if idle := next((option for option, used in named.items() if not used), None):
        raise EvaluationError(f"{idle} has no effect under {', '.join(plan.shares)}; leave it out or add a --protocol")


def _check_sets(plan: Plan, inceptions: Mapping[str, FeatureNetwork]) -> None:
    """Refuse FID and its kin of a single image.

    Raises:
        EvaluationError: naming the protocol.
    """
    for name, share in plan.shares.items():
        how = share.protocol.set_scores
        if how and how.weights in inceptions and len(share.by_image) < 2:
            scores = ", ".join(how.scores)
            raise EvaluationError(f"{name}: {scores} of 1 image; a set has at least 2. Score more, or no --features")


def _networks(request: EvaluationRequest, device: torch.device) -> Networks:
    """LPIPS and face scores, as far as their networks are at hand."""
    distances = load_perceptual(request.lpips, device=device, sha256=request.sha256)
    faces, absent = load_faces(request.faces, device=device, sha256=request.sha256)
    return Networks({**distances.present, **faces}, {**distances.absent, **absent})


def _prepare_finished(
    request: EvaluationRequest,
    finished: FinishedImages,
    device: torch.device,
    perceptual: Networks,
    inceptions: dict[str, FeatureNetwork],
) -> Job:
    dataset = _dataset_of(finished.truth, None)
    plan, fill, skipped = plan_finished(request, finished, dataset=dataset, perceptual=perceptual)
    about: dict[str, Any] = {"kind": "finished images", "name": request.subject, "images": finished.images}
    about["fingerprint"] = plan.pictures.fingerprint
    _check_used(request, plan)
    _check_sets(plan, inceptions)
    out = request.out or storage.join(request.root, "evaluations")
    subject = Subject(request.subject, about, {ONE_SHOT: fill})
    return Job(request, subject, plan, perceptual, inceptions, dataset, skipped, device, out)


def _data_url(request: EvaluationRequest, run: RunConfig | None) -> str:
    """Where the truth is: as given, or `<dataset>/<split>` of the root's shards, or the run's held-out set."""
    if request.data is None:
        if run is None:
            raise EvaluationError("give the images to score: a folder, an archive or a shard set")
        return run.held_out_url
    if "://" in request.data:
        return request.data
    shards = storage.join(request.root, "shards", request.data)
    return shards if storage.exists(storage.join(shards, "index.json")) else request.data


def _dataset_of(url: str, run: RunConfig | None) -> str:
    """A data set's name: the run's for the set beside its own, else the part of the path that is known."""
    if run and url == run.held_out_url and run.data.held_out is None:
        return data_set(run.data.dataset)
    parts = url.lower().replace("_", "-").split("/")
    return data_set(next((part for part in reversed(parts) if part in DATA_SETS), storage.name_of(url)))


def _fitting(names: Sequence[str], run: RunConfig | None) -> tuple[list[Protocol], dict[str, str]]:
    """The protocols that the method can be scored by, and why `all` leaves the others out."""
    protocols = list(find_protocols(list(names)))
    if run is None or run.method.hole_shapes == "free":
        return protocols, {}
    reason = f"{run.method.name} fills only the centred square"
    fitting = [protocol for protocol in protocols if protocol.mask_loading == "centre"]
    others = {protocol.name: reason for protocol in protocols if protocol not in fitting}
    if others and "all" not in names:
        raise EvaluationError(f"{next(iter(others))}: {reason}; use --protocol ce-128")
    return fitting, others
