"""From a plan and some fillers to a result: score the parts, put them together in one order, stamp what came out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from inpaint import weights
from inpaint.evaluation.distributions import SetScore, set_scores
from inpaint.evaluation.faces import FACE_SETS
from inpaint.evaluation.holes import HoleSource
from inpaint.evaluation.inception import FeatureNetwork
from inpaint.evaluation.metrics import METRICS
from inpaint.evaluation.pairs import pairs_sha
from inpaint.evaluation.parts import joined
from inpaint.evaluation.perceptual import Networks, load_perceptual
from inpaint.evaluation.pictures import Pictures
from inpaint.evaluation.plan import Plan, ProtocolPlan, make_plan
from inpaint.evaluation.protocols import find_protocols
from inpaint.evaluation.published import other_masks
from inpaint.evaluation.results import Result, differences, tabulate
from inpaint.evaluation.scoring import Clock, Filler, NamedFiller, NoClock, Part, anonymous, score_images
from inpaint.evaluation.stamp import Stamp, images_sha, scoring_code


def evaluate_fillers(
    fillers: Mapping[str, Filler],
    pictures: Pictures,
    *,
    protocols: Sequence[str] = ("inp-v1",),
    holes: HoleSource | None = None,
    size: int | None = None,
    dataset: str = "",
    limit: int | None = None,
    seed: int = 0,
    batch: int = 8,
    device: torch.device | str = "cpu",
    lpips: Mapping[str, str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Result:
    """Several fillers on the same images under the same holes, in this process.

    Args:
        fillers: (image, mask) to predicted, by the name each has in tables.
        pictures: the truth.
        protocols: names, or `all`.
        holes: where they come from; drawn strokes when None.
        size: pixels of both sides instead of each protocol's own.
        dataset: its name, for the number of images a publication used.
        limit: most images to score; accepts fewer than a protocol demands.
        seed: of choices and pairs.
        batch: images per call of a filler.
        device: where filling and scoring run.
        lpips: sources of LPIPS backbones, see `load_perceptual`.
        progress: gets the parts done and the parts in all.

    Raises:
        EvaluationError: see `make_plan` and `score_images`.
    """
    perceptual = load_perceptual(lpips or {}, device=device)
    plan = make_plan(
        find_protocols(list(protocols)),
        pictures,
        holes or HoleSource(seed=seed),
        size=size,
        dataset=dataset,
        limit=limit,
        seed=seed,
        batch=batch,
        present=perceptual.present,
        absent=perceptual.absent,
    )
    named = {name: anonymous(fill) for name, fill in fillers.items()}
    parts = []
    groups = plan.parts()
    for done, part in enumerate(score_parts(plan, groups, named, device=device, perceptual=perceptual), start=1):
        parts.append(part)
        if progress:
            progress(done, len(groups))
    return assemble(plan, parts, {name: {} for name in fillers}, perceptual=perceptual, dataset=dataset)


def score_parts(
    plan: Plan,
    groups: Iterable[Sequence[str]],
    fillers: Mapping[str, NamedFiller],
    *,
    device: torch.device | str,
    perceptual: Networks,
    inceptions: Mapping[str, FeatureNetwork] | None = None,
    composited: Sequence[str] = (),
    clock: Clock | None = None,
    threads: int = 0,
) -> Iterator[Part]:
    """The parts of a plan in order; see `score_images`.

    Args:
        plan: what is scored.
        groups: names of the images of each part.
        fillers, device, inceptions, composited, clock: as in `score_images`.
        perceptual: the scoring networks.
        threads: parts that are decoded, filled and scored at a time, each on one core, so that their number moves no
            digit; 0 does one after the other in the caller's thread.
    """

    def score(group: Sequence[str]) -> Part:
        with (clock or NoClock())("decoder"):
            photos = {name: plan.pictures.read(name) for name in group}
        return score_images(
            plan,
            photos,
            fillers,
            device=device,
            perceptual=perceptual.present,
            inceptions=inceptions,
            composited=composited,
            clock=clock,
        )

    if not threads:
        yield from map(score, groups)
        return
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        waiting: deque[Future[Part]] = deque()
        try:
            for group in groups:
                waiting.append(pool.submit(score, group))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for part in waiting:
                part.cancel()


def assemble(
    plan: Plan,
    parts: Iterable[Part],
    subjects: Mapping[str, Mapping[str, Any]],
    *,
    perceptual: Networks,
    inceptions: Mapping[str, FeatureNetwork] | None = None,
    dataset: str,
    compare: Sequence[tuple[str, str]] = (),
    skipped: Mapping[str, str] | None = None,
) -> Result:
    """The result of all parts, whatever order they came in.

    Args:
        plan: what was scored.
        parts: of the whole plan.
        subjects: what filled, by name, with what is known of it.
        perceptual: the networks behind LPIPS columns.
        inceptions: the networks behind FID and its kin.
        dataset: its name.
        compare: pairs of subjects whose paired difference is wanted.
        skipped: protocols that were left out, and why.
    """
    everything, inceptions = joined(parts), inceptions or {}
    scores, truths = everything.scores, everything.truths
    tables = tabulate(scores, seed=plan.seed)
    stamp = Stamp(
        scoring_code(),
        {"pairs": plan.seed, "bootstrap": plan.seed},
        {
            name: _conditions(share, truths[name], tables, perceptual, inceptions)
            for name, share in plan.shares.items()
        },
    )
    return Result(
        subjects,
        stamp,
        tables,
        {f"{a} - {b}": differences(scores, a, b, seed=plan.seed) for a, b in compare},
        {
            subject: {
                name: _set_scores(share, everything, subject, plan.seed)
                for name, share in plan.shares.items()
                if share.protocol.set_scores and share.protocol.set_scores.weights in inceptions
            }
            for subject in subjects
        },
        {name: {**share.absent, **_absent_sets(share, inceptions)} for name, share in plan.shares.items()},
        {name: marks_of(share, truths[name], dataset, perceptual, inceptions) for name, share in plan.shares.items()},
        skipped or {},
    )


def marks_of(
    share: ProtocolPlan,
    truths: Mapping[str, str],
    dataset: str,
    perceptual: Networks,
    inceptions: Mapping[str, FeatureNetwork],
) -> list[str]:
    """What differs from the protocol as it was published, in words."""
    protocol, marks = share.protocol, []
    if share.size not in (None, protocol.size):
        marks.append(f"at {share.size} pixels; the protocol says {protocol.size}")
    if protocol.images and len(truths) != protocol.demanded(dataset):
        published = ", ".join(f"{count:,} of {name}" for name, count in protocol.images.items())
        marks.append(f"{len(truths):,} images; published with {published}")
    if masks := other_masks(protocol, share.holes.kind, scored_by=protocol):
        marks.append(masks)
    how = protocol.set_scores
    if how and how.weights in inceptions and inceptions[how.weights].sha256 == weights.RANDOM:
        marks.append(f"{', '.join(how.scores)}: random weights, as asked; not a score")
    if dataset in FACE_SETS and not any(column.metric.startswith("face_") for column in share.columns):
        marks.append("identity and landmarks: absent; --faces identity=PATH --faces landmarks=PATH adds them")
    drawn_weights = [column.name for column in share.columns if _weights(column.metric, perceptual) == weights.RANDOM]
    return marks + [f"{name}: random weights, as asked; not a score" for name in drawn_weights]


def _conditions(
    share: ProtocolPlan,
    truths: Mapping[str, str],
    tables: Mapping[str, Any],
    perceptual: Networks,
    inceptions: Mapping[str, FeatureNetwork],
) -> dict[str, Any]:
    how = share.protocol.set_scores
    table = next(iter(tables.values()))[share.protocol.name]
    counts = {row: next(iter(columns.values())).n for row, columns in table.items() if columns}
    return {
        "definition": share.protocol.digest,
        "size": share.size or "own",
        "images": images_sha(truths),
        "n of images": len(truths),
        "masks": share.holes.sha256,
        "mask_kind": share.holes.kind,
        "pairs": pairs_sha(share.pairs),
        "n": counts,
        "metrics": {
            **{column.name: digest for column in share.columns if (digest := _weights(column.metric, perceptual))},
            **({how.weights: inceptions[how.weights].sha256} if how and how.weights in inceptions else {}),
        },
    }


def _set_scores(share: ProtocolPlan, everything: Part, subject: str, seed: int) -> dict[str, SetScore]:
    """FID and its kin of a subject's fills against the truths; P-IDS pairs each fill with its own truth."""
    how, name = share.protocol.set_scores, share.protocol.name
    assert how is not None
    fills, truths = everything.features[subject, name], everything.features["", name]
    keys = sorted(fills)
    filled = np.stack([fills[key] for key in keys])
    beside = np.stack([truths[image, ""] for image, _ in keys])
    once = np.stack([truths[key] for key in sorted(truths)])
    plain = tuple(score for score in how.scores if score not in ("pids", "uids"))
    paired = tuple(score for score in how.scores if score in ("pids", "uids"))
    found = set_scores(once, filled, names=plain, needs=how.needs, seed=seed, covariances=how.covariances)
    return found | set_scores(beside, filled, names=paired, needs=how.needs, seed=seed)


def _absent_sets(share: ProtocolPlan, inceptions: Mapping[str, FeatureNetwork]) -> dict[str, str]:
    how = share.protocol.set_scores
    if how is None or how.weights in inceptions:
        return {}
    why = f"no {how.weights} Inception was given; --features {how.weights}=PATH or s3://... reads it"
    return {", ".join(how.scores): why}


def _weights(metric: str, perceptual: Networks) -> str | None:
    """Digest of the weights behind a column's metric, None for pixel scores."""
    if metric in METRICS:
        return None
    return perceptual.present[metric].sha256
