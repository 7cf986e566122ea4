"""Which mask goes with which image: fixed by names and a seed, the same on every machine, kept in a file.

Every (seed, image, mask) has a number, and an image takes the mask of least number among those it may have. So a mask
that joins or leaves a set changes only the images that take it or had it, and two protocols that read the same files
share nearly all their pairs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from inpaint.errors import EvaluationError
from inpaint.evaluation.holes import HoleSet
from inpaint.evaluation.protocols import Bin, Protocol

_GOLDEN, _MIX1, _MIX2 = (np.uint64(x) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


@dataclass(frozen=True, order=True)
class Pair:
    """An image under a mask, in the row of a table: `bin` is its name, or empty where the protocol has none."""

    image: str
    bin: str
    mask: str


def make_pairs(protocol: Protocol, images: Sequence[str], holes: HoleSet, *, seed: int) -> tuple[Pair, ...]:
    """The pairs that a protocol scores, sorted.

    Args:
        protocol: its pairing and bins.
        images: names.
        holes: the masks as this protocol loads them.
        seed: of the draw.

    Raises:
        EvaluationError: a bin in which no mask lies.
    """
    names = np.array([_number(f"{seed}/{name}") for name in holes.names], np.uint64)
    if protocol.pairing == "one_mask":
        return tuple(sorted(_one_mask(protocol, images, holes, names)))
    pairs: list[Pair] = []
    for wanted in protocol.bins:
        inside = np.nonzero(wanted.holds(holes.ratios))[0]
        if not len(inside):
            raise EvaluationError(
                f"{protocol.name}: none of the {len(holes.names)} masks of {holes.name} has a hole ratio of "
                f"{wanted.name} % as this protocol loads them; give a mask set that has, or leave --masks out"
            )
        chosen = _least(images, names[inside])
        pairs += [Pair(image, wanted.name, holes.names[inside[i]]) for image, i in zip(images, chosen, strict=True)]
    return tuple(sorted(pairs))


def bin_of(protocol: Protocol, ratio: float) -> str | None:
    """Name of the bin a hole ratio lies in; empty for a protocol without bins, None when it lies in none."""
    if not protocol.bins:
        return ""
    return next((b.name for b in protocol.bins if b.holds(np.array(ratio))), None)


def pair_file(pairs: Mapping[str, Sequence[Pair]], *, seed: int, masks: Mapping[str, str]) -> dict[str, Any]:
    """Pairs of each protocol as plain values, with the digests that say of what: what `pairs.json` holds."""
    rows = {name: [[pair.image, pair.bin, pair.mask] for pair in sorted(found)] for name, found in pairs.items()}
    return {"seed": seed, "masks": dict(masks), "pairs": rows}


def pairs_sha(pairs: Sequence[Pair]) -> str:
    """Digest of a protocol's pairs."""
    rows = [[pair.image, pair.bin, pair.mask] for pair in sorted(pairs)]
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()


def _one_mask(
    protocol: Protocol, images: Sequence[str], holes: HoleSet, names: np.ndarray
) -> list[Pair]:
    bins = protocol.bins or (Bin(0, 1),)
    inside = np.nonzero(np.any([wanted.holds(holes.ratios) for wanted in bins], axis=0))[0]
    if not len(inside):
        raise EvaluationError(
            f"{protocol.name}: none of the {len(holes.names)} masks of {holes.name} has a hole ratio in its bins "
            f"({bins[0].low:.0%} to {bins[-1].high:.0%}); give a mask set that has, or leave --masks out"
        )
    chosen = inside[_least(images, names[inside])]
    return [
        Pair(image, bin_of(protocol, float(holes.ratios[i])) or "", holes.names[i])
        for image, i in zip(images, chosen, strict=True)
    ]


def _least(images: Sequence[str], masks: np.ndarray) -> np.ndarray:
    """For each image, which of the masks has the least number with it."""
    with np.errstate(over="ignore"):
        return np.array([int(np.argmin(_mix(masks ^ np.uint64(_number(image))))) for image in images], np.int64)


def _mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64: every input bit moves every output bit."""
    values = values + _GOLDEN
    values = (values ^ (values >> np.uint64(30))) * _MIX1
    values = (values ^ (values >> np.uint64(27))) * _MIX2
    return values ^ (values >> np.uint64(31))


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
