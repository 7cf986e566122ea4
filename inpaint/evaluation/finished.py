"""Images that another program filled: found beside their truth and masks by name, and checked before any is scored."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from inpaint import archives, storage
from inpaint.config.evaluation import EvaluationRequest, FinishedImages
from inpaint.errors import DataError, EvaluationError
from inpaint.evaluation.holes import HoleSet, hole_set
from inpaint.evaluation.perceptual import Networks
from inpaint.evaluation.pictures import Pictures, choose, is_picture, open_pictures
from inpaint.evaluation.plan import Plan, ProtocolPlan, plan_by_name, usable_columns
from inpaint.evaluation.protocols import Protocol, find_protocols
from inpaint.evaluation.scoring import NamedFiller
from inpaint.evaluation.subjects import finished_filler
from inpaint.masks import load_mask

KEPT_IMAGES = 64  # decoded truths remembered between their check and their score


def plan_finished(
    request: EvaluationRequest, finished: FinishedImages, *, dataset: str, perceptual: Networks
) -> tuple[Plan, NamedFiller, dict[str, str]]:
    """What is scored of finished images, what hands them out, and which protocols `all` leaves out and why.

    Raises:
        EvaluationError: names that do not match, sizes that differ, fewer images than a protocol demands, or a
            protocol that was asked for by name and cannot score these.
    """
    filled, truth = open_pictures(finished.images), open_pictures(finished.truth)
    masks = _mask_files(finished.masks)
    _check_names(finished, filled, truth, masks)
    names = choose(truth.ids, request.limit or len(truth), seed=request.seed)
    read = lru_cache(maxsize=KEPT_IMAGES)(truth.read)
    sizes = {name: read(name).shape for name in names}
    shares, skipped = {}, {}
    for protocol in find_protocols(list(request.protocols)):
        try:
            shares[protocol.name] = _share(protocol, request, finished, names, sizes, masks, dataset, perceptual)
        except EvaluationError as error:
            if "all" not in request.protocols:
                raise
            skipped[protocol.name] = str(error).removeprefix(f"{protocol.name}: ")
    if not shares:
        raise EvaluationError(f"{finished.images}: no protocol can score these; {next(iter(skipped.values()))}")
    fingerprint = f"{truth.fingerprint} {filled.fingerprint} {finished.hole}"
    pictures = Pictures(finished.truth, truth.ids, read, fingerprint)
    return Plan(pictures, shares, request.seed, request.batch), finished_filler(filled, sizes.__getitem__), skipped


def _share(
    protocol: Protocol,
    request: EvaluationRequest,
    finished: FinishedImages,
    names: Sequence[str],
    sizes: dict[str, tuple[int, ...]],
    masks: dict[str, archives.Entry],
    dataset: str,
    perceptual: Networks,
) -> ProtocolPlan:
    if request.limit is None and len(names) < protocol.demanded(dataset):
        raise EvaluationError(
            f"{protocol.name} scores {protocol.demanded(dataset):,} images and {finished.truth} has {len(names):,}; "
            f"--limit {len(names)} scores these and marks the result"
        )
    holes = _holes(protocol, finished, names, sizes, masks)
    side = min(min(sizes[name][:2]) for name in names)
    columns, absent = usable_columns(protocol, side, perceptual.present, perceptual.absent)
    return plan_by_name(protocol, names, holes, columns, absent)


def _holes(
    protocol: Protocol,
    finished: FinishedImages,
    names: Sequence[str],
    sizes: dict[str, tuple[int, ...]],
    masks: dict[str, archives.Entry],
) -> HoleSet:
    """Each image's own mask at the image's size, resized as the protocol does where it is of another."""
    loading = "nearest" if protocol.mask_loading == "centre" else protocol.mask_loading
    found = {}
    for name in names:
        height, width = sizes[name][:2]
        data = archives.read(masks[name])
        mask = load_mask(data, hole=finished.hole, threshold=loading, size=None, name=masks[name].name)
        if mask.shape != (height, width):
            if height != width or mask.shape[0] != mask.shape[1]:
                raise EvaluationError(
                    f"{name}: the mask is {mask.shape[1]}×{mask.shape[0]} and the truth {width}×{height}; "
                    "give masks of the images' size"
                )
            mask = load_mask(data, hole=finished.hole, threshold=loading, size=height, name=masks[name].name)
        if mask.all() or not mask.any():
            what = "nothing but hole" if mask.all() else "no hole"
            raise EvaluationError(f"{masks[name].name}: {what} with --hole {finished.hole}; is the polarity right?")
        found[name] = mask
    _check_polarity(finished, found)
    return hole_set(finished.masks, f"files of {storage.name_of(finished.masks)}", found)


def _check_polarity(finished: FinishedImages, masks: dict[str, np.ndarray]) -> None:
    median = float(np.median([mask.mean() for mask in masks.values()]))
    if median > 0.65:
        other = "black" if finished.hole == "white" else "white"
        raise EvaluationError(
            f"{finished.masks}: with --hole {finished.hole} the median hole is {median:.0%} of an image; "
            f"is it --hole {other}?"
        )


def _mask_files(url: str) -> dict[str, archives.Entry]:
    try:
        with archives.open_source(url) as entries:
            return {entry.name.rpartition(".")[0]: entry for entry in entries if is_picture(entry.name)}
    except DataError as error:
        raise EvaluationError(str(error)) from error


def _check_names(finished: FinishedImages, filled: Pictures, truth: Pictures, masks: dict[str, archives.Entry]) -> None:
    """One filled image, one truth and one mask of every name."""
    groups = {finished.images: set(filled.ids), finished.truth: set(truth.ids), finished.masks: set(masks)}
    for place, names in groups.items():
        for other, others in groups.items():
            if missing := sorted(others - names):
                raise EvaluationError(
                    f"{place} has {len(names)} images and {other} {len(others)}; {missing[0]} of {other} is not in "
                    f"{storage.name_of(place)}; give the same names in all three"
                )

