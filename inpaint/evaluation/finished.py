"""Images that another program filled: found beside their truth and masks by name, and checked before any is scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from inpaint import archives, storage
from inpaint.config.evaluation import EvaluationRequest, FinishedImages
from inpaint.errors import DataError, EvaluationError
from inpaint.evaluation.holes import HoleSet, PackedMask, packed_set
from inpaint.evaluation.perceptual import Networks
from inpaint.evaluation.pictures import Pictures, choose, is_picture, open_pictures
from inpaint.evaluation.plan import IMAGES_PER_PART, Plan, ProtocolPlan, plan_by_name, usable_columns
from inpaint.evaluation.protocols import Protocol, find_protocols
from inpaint.evaluation.scoring import NamedFiller
from inpaint.evaluation.subjects import finished_filler
from inpaint.masks import load_mask

READERS = 8  # files opened at a time before scoring begins
LOOKED_AT = 64  # images whose fill and truth are compared inside and outside the hole before scoring begins
WRONG_WAY = 4.0  # times that the error outside the hole exceeds the one inside, above which the mask is the other way
LEAST_ERROR = 2.0  # levels outside the hole; less is what saving leaves


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
    with ThreadPoolExecutor(READERS) as pool:
        sizes = dict(zip(names, pool.map(truth.size, names), strict=True))
    opened = _Holes(finished, names, sizes, {name: masks[name] for name in names})
    shares, skipped = {}, {}
    for protocol in find_protocols(list(request.protocols)):
        try:
            shares[protocol.name] = _share(protocol, request, opened, dataset, perceptual)
        except EvaluationError as error:
            if "all" not in request.protocols:
                raise
            skipped[protocol.name] = str(error).removeprefix(f"{protocol.name}: ")
    if not shares:
        raise EvaluationError(f"{finished.images}: no protocol can score these; {next(iter(skipped.values()))}")
    _check_holes(finished, filled, truth, {name: masks[name] for name in names[:LOOKED_AT]})
    pictures = replace(truth, fingerprint=f"{truth.fingerprint} {filled.fingerprint} {finished.hole}")
    return Plan(pictures, shares, request.seed, IMAGES_PER_PART), finished_filler(filled, sizes.__getitem__), skipped


def _share(
    protocol: Protocol, request: EvaluationRequest, opened: _Holes, dataset: str, perceptual: Networks
) -> ProtocolPlan:
    names = opened.names
    if request.limit is None and len(names) < protocol.demanded(dataset):
        raise EvaluationError(
            f"{protocol.name} scores {protocol.demanded(dataset):,} images and {opened.finished.truth} has "
            f"{len(names):,}; --limit {len(names)} scores these and marks the result"
        )
    side = min(min(opened.sizes[name]) for name in names)
    columns, absent = usable_columns(protocol, side, perceptual.present, perceptual.absent)
    return plan_by_name(protocol, names, opened.loaded(protocol.mask_loading), columns, absent)


@dataclass(frozen=True)
class _Holes:
    """The masks of finished images, each opened once where it has its image's size.

    Attributes:
        finished: where they are, and their polarity.
        names: of the images.
        sizes: height and width of each truth.
        files: the mask of each.
    """

    finished: FinishedImages
    names: Sequence[str]
    sizes: Mapping[str, tuple[int, int]]
    files: Mapping[str, archives.Entry]

    def loaded(self, loading: str) -> HoleSet:
        """Each image's own mask at the image's size, resized as the protocol does where it is of another."""
        if all(mask.shape == self.sizes[name] for name, mask in self._own.items()):
            return self._as_they_are
        return self._checked(self._read("nearest" if loading == "centre" else loading))

    @cached_property
    def _own(self) -> dict[str, PackedMask]:
        return self._read(None)

    @cached_property
    def _as_they_are(self) -> HoleSet:
        return self._checked(self._own)

    def _read(self, loading: str | None) -> dict[str, PackedMask]:
        """Every mask, packed as soon as it is read: those of 36,500 images at 512 pixels are 9.6 GB otherwise."""
        with ThreadPoolExecutor(READERS) as pool:
            packed = pool.map(lambda name: PackedMask.of(self._mask(name, loading)), self.names)
            return dict(zip(self.names, packed, strict=True))

    def _mask(self, name: str, loading: str | None) -> np.ndarray:
        file, (height, width) = self.files[name], self.sizes[name]
        place = storage.join(self.finished.masks, file.name)
        how = {"hole": self.finished.hole, "threshold": loading or "nearest", "name": place}
        data = archives.read(file)
        mask = load_mask(data, size=None, **how)
        if loading is None or mask.shape == (height, width):
            return mask
        if height != width or mask.shape[0] != mask.shape[1]:
            raise EvaluationError(
                f"{name}: the mask is {mask.shape[1]}×{mask.shape[0]} and the truth {width}×{height}; "
                "give masks of the images' size"
            )
        return load_mask(data, size=height, **how)

    def _checked(self, masks: dict[str, PackedMask]) -> HoleSet:
        for name, mask in masks.items():
            if mask.ratio in (0, 1):
                what = "nothing but hole" if mask.ratio else "no hole"
                hole = self.finished.hole
                file = storage.join(self.finished.masks, self.files[name].name)
                raise EvaluationError(f"{file}: {what} with --hole {hole}; is the polarity right?")
        _check_polarity(self.finished, masks)
        place = self.finished.masks
        return packed_set(place, f"files of {storage.name_of(place)}", masks)


def _check_polarity(finished: FinishedImages, masks: dict[str, PackedMask]) -> None:
    median = float(np.median([mask.ratio for mask in masks.values()]))
    if median > 0.65:
        other = "black" if finished.hole == "white" else "white"
        raise EvaluationError(
            f"{finished.masks}: with --hole {finished.hole} the median hole is {median:.0%} of an image; "
            f"is it --hole {other}?"
        )


def _check_holes(
    finished: FinishedImages, filled: Pictures, truth: Pictures, masks: Mapping[str, archives.Entry]
) -> None:
    """Refuse masks of the other polarity, or of other images: there the truth was kept where they say hole.

    Raises:
        EvaluationError: naming the first such mask.
    """
    for name, file in masks.items():
        true, fill = truth.read(name), filled.read(name)
        place = storage.join(finished.masks, file.name)
        hole = load_mask(archives.read(file), hole=finished.hole, threshold="nearest", size=None, name=place) > 0
        if not (true.shape == fill.shape and hole.shape == true.shape[:2] and 0 < hole.mean() < 1):
            continue  # refused by name elsewhere, or of another size
        error = np.abs(true.astype(np.int16) - fill).mean(axis=2)
        inside, outside = float(error[hole].mean()), float(error[~hole].mean())
        if outside > max(LEAST_ERROR, WRONG_WAY * inside):
            raise EvaluationError(
                f"{place}: with --hole {finished.hole} the fill differs from the truth by {outside:.1f} levels "
                f"outside the hole and {inside:.1f} inside; is it the other polarity, or another image's mask?"
            )


def _mask_files(url: str) -> dict[str, archives.Entry]:
    try:
        with archives.open_source(url) as entries:
            found = [entry for entry in entries if is_picture(entry.name)]
    except DataError as error:
        raise EvaluationError(str(error)) from error
    by_name = {entry.name.rpartition(".")[0]: entry for entry in found}
    if len(by_name) < len(found):
        raise EvaluationError(f"{url}: {len(found)} masks share {len(by_name)} names; keep one file per name")
    return by_name


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

