"""What an evaluation will score: which images under which holes for which protocols, decided before any is filled."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from inpaint.errors import EvaluationError
from inpaint.evaluation.holes import HoleSet, HoleSource
from inpaint.evaluation.metrics import METRICS
from inpaint.evaluation.pairs import Pair, bin_of, make_pairs, pairs_sha
from inpaint.evaluation.pictures import Pictures, choose, square
from inpaint.evaluation.protocols import Column, Protocol

IMAGES_PER_PART = 16


@dataclass(frozen=True)
class ProtocolPlan:
    """One protocol's share of a plan.

    Attributes:
        protocol: the rules.
        size: pixels of both sides; None scores images at their own size.
        pairs: what is scored, sorted.
        holes: the masks as this protocol loads them.
        columns: those of the protocol that can be computed here.
        absent: the other columns, and why.
    """

    protocol: Protocol
    size: int | None
    pairs: tuple[Pair, ...]
    holes: HoleSet
    columns: tuple[Column, ...]
    absent: Mapping[str, str]

    @cached_property
    def by_image(self) -> dict[str, list[Pair]]:
        """The pairs of each image."""
        grouped: dict[str, list[Pair]] = defaultdict(list)
        for pair in self.pairs:
            grouped[pair.image].append(pair)
        return grouped


@dataclass(frozen=True)
class Plan:
    """Everything that decides a score but the filler.

    Attributes:
        pictures: the truth.
        parts: a share for each protocol, by name.
        seed: of choices and pairs.
        batch: images per call of the filler; part of the plan because it can move the last digit.
    """

    pictures: Pictures
    shares: Mapping[str, ProtocolPlan]
    seed: int
    batch: int

    @property
    def images(self) -> tuple[str, ...]:
        """Every image that some protocol scores, sorted."""
        return tuple(sorted({pair.image for share in self.shares.values() for pair in share.pairs}))

    def parts(self) -> list[tuple[str, ...]]:
        """The images in groups of fixed length: the unit that one worker scores and stores, whatever their number."""
        images = self.images
        return [images[i : i + IMAGES_PER_PART] for i in range(0, len(images), IMAGES_PER_PART)]

    def pairs_of(self, images: Sequence[str]) -> Iterator[tuple[ProtocolPlan, Pair]]:
        """Every pair of these images, with its protocol's share, in order."""
        wanted = set(images)
        for share in self.shares.values():
            for image in sorted(wanted):
                for pair in share.by_image.get(image, ()):
                    yield share, pair

    @property
    def digest(self) -> str:
        """Of everything that decides which numbers come out; names the folder of a resumable evaluation."""
        values = {
            name: [
                share.protocol.digest,
                share.size,
                pairs_sha(share.pairs),
                share.holes.sha256,
                [column.name for column in share.columns],
            ]
            for name, share in self.shares.items()
        }
        text = json.dumps([self.pictures.fingerprint, values, self.seed, self.batch], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def make_plan(
    protocols: Sequence[Protocol],
    pictures: Pictures,
    source: HoleSource,
    *,
    size: int | None,
    dataset: str,
    limit: int | None,
    seed: int,
    batch: int,
    present: Mapping[str, object],
    absent: Mapping[str, str],
) -> Plan:
    """The plan for images that are filled here.

    Args:
        protocols: in the order of the result.
        pictures: the truth.
        source: of the holes.
        size: pixels of both sides instead of each protocol's own.
        dataset: its name, for the number of images a publication used.
        limit: most images to score; accepts fewer than a protocol demands.
        seed: of choices and pairs.
        batch: images per call of the filler.
        present, absent: metrics beyond `METRICS` that can be computed, and why others cannot.

    Raises:
        EvaluationError: fewer images than a protocol demands, or no mask for a bin.
    """
    shares = {}
    for protocol in protocols:
        images = _images_for(protocol, pictures, dataset=dataset, limit=limit, seed=seed)
        side = size or protocol.size
        holes = source.open(loading=protocol.mask_loading, size=side)
        columns, missing = usable_columns(protocol, side, present, absent)
        pairs = make_pairs(protocol, images, holes, seed=seed)
        shares[protocol.name] = ProtocolPlan(protocol, side, pairs, holes, columns, missing)
    return Plan(pictures, shares, seed, batch)


def plan_by_name(
    protocol: Protocol, names: Sequence[str], holes: HoleSet, columns: tuple[Column, ...], absent: Mapping[str, str]
) -> ProtocolPlan:
    """The share of a protocol in images that somebody else filled: each under the mask of its own name.

    Raises:
        EvaluationError: no hole lies in the protocol's bins, or it needs the centred square and these are others.
    """
    ratios = dict(zip(holes.names, holes.ratios.tolist(), strict=True))
    if protocol.mask_loading == "centre" and not all(_is_centred_square(holes.read(name)) for name in names):
        raise EvaluationError(f"{protocol.name}: needs the centred square of half the side; these are others")
    rows = [(name, bin_of(protocol, ratios[name])) for name in names]
    pairs = tuple(sorted(Pair(name, found, name) for name, found in rows if found is not None))
    if not pairs:
        raise EvaluationError(
            f"{protocol.name}: the hole ratios are {min(ratios.values()):.1%} to {max(ratios.values()):.1%}; "
            f"none lies in its bins {', '.join(b.name for b in protocol.bins)} %"
        )
    return ProtocolPlan(protocol, None, pairs, holes, columns, absent)


def usable_columns(
    protocol: Protocol, side: int, present: Mapping[str, object], absent: Mapping[str, str]
) -> tuple[tuple[Column, ...], dict[str, str]]:
    """The columns that can be computed at `side` pixels with the networks at hand, and why the others cannot."""
    usable, missing = [], {}
    for column in protocol.columns:
        metric = METRICS.get(column.metric)
        if metric is None and column.metric not in present:
            if not column.optional:
                missing[column.name] = absent.get(column.metric, "no such network here")
        elif metric is not None and side < metric.window:
            missing[column.name] = f"its window is {metric.window} pixels and the images have {side}"
        else:
            usable.append(column)
    return tuple(usable), missing


def truth_of(share: ProtocolPlan, photo: np.ndarray) -> np.ndarray:
    """The photograph as the protocol scores it, uint8 [H, W, 3]."""
    return photo if share.size is None else square(photo, size=share.size, resize=share.protocol.image_resize)


def how_cut(share: ProtocolPlan, photo: np.ndarray) -> tuple[object, ...]:
    """What `truth_of` does to this photograph: shares that do the same score the same pixels."""
    resized = share.size is not None and share.size != min(photo.shape[:2])
    return share.size, share.protocol.image_resize if resized else "as it is"


def _images_for(
    protocol: Protocol, pictures: Pictures, *, dataset: str, limit: int | None, seed: int
) -> tuple[str, ...]:
    demanded = protocol.demanded(dataset)
    if limit is None and len(pictures) < demanded:
        raise EvaluationError(
            f"{protocol.name} scores {demanded:,} images and {pictures.name} has {len(pictures):,}; "
            f"--limit {len(pictures)} scores these and marks the result"
        )
    count = min(limit or len(pictures), demanded if protocol.images else len(pictures))
    return choose(pictures.ids, count, seed=seed)


def _is_centred_square(mask: np.ndarray) -> bool:
    height, width = mask.shape
    top, left = height // 4, width // 4
    wanted = np.zeros_like(mask)
    wanted[top : top + height // 2, left : left + width // 2] = 1
    return height == width and bool((mask == wanted).all())

