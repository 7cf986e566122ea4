"""From a plan and some fillers to a result: score the parts, put them together in one order, stamp what came out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from inpaint import weights
from inpaint.errors import EvaluationError
from inpaint.evaluation.holes import HoleSource
from inpaint.evaluation.metrics import METRICS
from inpaint.evaluation.pairs import pairs_sha
from inpaint.evaluation.perceptual import Lpips, Perceptual, load_perceptual
from inpaint.evaluation.pictures import Pictures
from inpaint.evaluation.plan import Plan, ProtocolPlan, make_plan
from inpaint.evaluation.protocols import find_protocols
from inpaint.evaluation.results import Result, differences, tabulate
from inpaint.evaluation.scoring import Clock, Filler, NamedFiller, Part, Score, anonymous, score_images
from inpaint.evaluation.stamp import Stamp, images_sha, scoring_code

READERS = 2  # threads that decode the next part while this one is scored


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
    perceptual: Perceptual,
    clock: Clock | None = None,
) -> Iterator[Part]:
    """The parts of a plan in order; while one is scored, the images of the next are decoded."""
    groups = list(groups)
    with ThreadPoolExecutor(READERS) as pool:

        def start(group: Sequence[str]) -> dict[str, Any]:
            return {name: pool.submit(plan.pictures.read, name) for name in group}

        waiting = start(groups[0]) if groups else {}
        for place in range(len(groups)):
            photos: dict[str, np.ndarray] = {name: reading.result() for name, reading in waiting.items()}
            waiting = start(groups[place + 1]) if place + 1 < len(groups) else {}
            yield score_images(plan, photos, fillers, device=device, perceptual=perceptual.present, clock=clock)


def assemble(
    plan: Plan,
    parts: Iterable[Part],
    subjects: Mapping[str, Mapping[str, Any]],
    *,
    perceptual: Perceptual,
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
        dataset: its name.
        compare: pairs of subjects whose paired difference is wanted.
        skipped: protocols that were left out, and why.
    """
    scores: list[Score] = []
    truths: dict[str, dict[str, str]] = {name: {} for name in plan.shares}
    for part in parts:
        scores += part.scores
        for name, found in part.truths.items():
            truths[name].update(found)
    tables = tabulate(scores, seed=plan.seed)
    stamp = Stamp(
        scoring_code(),
        {"pairs": plan.seed, "bootstrap": plan.seed},
        {name: _conditions(share, truths[name], tables, perceptual) for name, share in plan.shares.items()},
    )
    return Result(
        subjects,
        stamp,
        tables,
        {f"{a} - {b}": differences(scores, a, b, seed=plan.seed) for a, b in compare},
        {name: dict(share.absent) for name, share in plan.shares.items()},
        {name: marks_of(share, truths[name], dataset, perceptual) for name, share in plan.shares.items()},
        skipped or {},
    )


def marks_of(share: ProtocolPlan, truths: Mapping[str, str], dataset: str, perceptual: Perceptual) -> list[str]:
    """What differs from the protocol as it was published, in words."""
    protocol, marks = share.protocol, []
    if share.size not in (None, protocol.size):
        marks.append(f"at {share.size} pixels; the protocol says {protocol.size}")
    if protocol.images and len(truths) != protocol.demanded(dataset):
        published = ", ".join(f"{count:,} of {name}" for name, count in protocol.images.items())
        marks.append(f"{len(truths):,} images; published with {published}")
    if protocol.mask_kinds != "any" and share.holes.kind == "drawn strokes":
        marks.append(f"drawn strokes; published with {protocol.mask_kinds}")
    drawn_weights = [column.name for column in share.columns if _weights(column.metric, perceptual) == weights.RANDOM]
    return marks + [f"{name}: random weights, as asked; not a score" for name in drawn_weights]


def _conditions(
    share: ProtocolPlan, truths: Mapping[str, str], tables: Mapping[str, Any], perceptual: Perceptual
) -> dict[str, Any]:
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
            column.name: digest for column in share.columns if (digest := _weights(column.metric, perceptual))
        },
    }


def _weights(metric: str, perceptual: Perceptual) -> str | None:
    """Digest of the weights behind a column's metric, None for pixel scores."""
    if metric in METRICS:
        return None
    network = perceptual.present[metric]
    if not isinstance(network, Lpips):
        raise EvaluationError(f"{metric}: a score without a digest of its weights cannot be stamped")
    return network.sha256
