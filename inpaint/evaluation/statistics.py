"""From one number per image to a mean, how sure it is, and how two means differ on the same images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from inpaint.evaluation.protocols import CAP_DECIBELS, Perfect

RESAMPLES = 1000
_CHUNK = 50


@dataclass(frozen=True)
class Estimate:
    """A mean over images.

    Attributes:
        mean: infinite only where the protocol keeps infinities.
        low, high: 95 % bootstrap interval of the mean, over images.
        n: images in it.
        perfect: how many of them were perfect (PSNR infinite), as counted by the protocol's rule.
        undefined: images left out because the score does not exist for them (no whole window in the hole).
    """

    mean: float
    low: float
    high: float
    n: int
    perfect: int = 0
    undefined: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values; an infinite mean is the string `inf`, which JSON can hold."""
        return {key: "inf" if value == math.inf else value for key, value in asdict(self).items()}

    @classmethod
    def of(cls, values: dict[str, Any]) -> Estimate:
        """The inverse of `to_dict`."""
        return cls(**{key: math.inf if value == "inf" else value for key, value in values.items()})


def estimate(
    scores: np.ndarray, *, images: Sequence[str] | None = None, perfect: Perfect = "infinite", seed: int = 0
) -> Estimate | None:
    """Mean and interval of a score; None when it is defined nowhere.

    Args:
        scores: one per pair, [N]; inf for a perfect image, NaN where undefined.
        images: the image of each pair, where one image may stand under several holes: the bootstrap resamples images,
            since fills of one image are not independent.
        perfect: `capped` counts a perfect image as 100 dB, `zero` as 0 dB, `infinite` keeps it.
        seed: of the bootstrap.
    """
    defined = ~np.isnan(scores)
    known = scores[defined]
    if not len(known):
        return None
    owners = np.arange(len(known)) if images is None else np.unique(np.asarray(images)[defined], return_inverse=True)[1]
    infinite = int(np.isinf(known).sum())
    if perfect != "infinite":
        known = np.where(np.isinf(known), CAP_DECIBELS if perfect == "capped" else 0.0, known)
    mean = math.fsum(known) / len(known)
    low, high = _interval(known, owners, seed) if math.isfinite(mean) else (mean, mean)
    return Estimate(mean, low, high, len(known), infinite, len(scores) - len(known))


def paired_difference(
    ours: np.ndarray, theirs: np.ndarray, *, images: Sequence[str] | None = None, seed: int = 0
) -> Estimate | None:
    """Mean and interval of ours - theirs over the images of both, [N] each in the same order.

    Pairs that either leaves undefined, or infinite in only one of them, are counted as undefined; infinite in both is
    a difference of 0.
    """
    both = np.isinf(ours) & np.isinf(theirs)
    with np.errstate(invalid="ignore"):
        difference = np.where(both, 0.0, ours - theirs)
    found = estimate(np.where(np.isfinite(difference), difference, np.nan), images=images, seed=seed)
    return found and Estimate(found.mean, found.low, found.high, found.n, int(both.sum()), found.undefined)


def _interval(values: np.ndarray, owners: np.ndarray, seed: int) -> tuple[float, float]:
    """The 2.5 and 97.5 percentiles of the mean over resampled images, each with all its pairs."""
    sums, counts = np.bincount(owners, weights=values), np.bincount(owners).astype(float)
    means = [
        np.einsum("ij,j->i", drawn, sums) / np.einsum("ij,j->i", drawn, counts)
        for drawn in (part.astype(float) for part in np.split(_draws(len(sums), seed), RESAMPLES // _CHUNK))
    ]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)


@lru_cache(maxsize=16)
def _draws(images: int, seed: int) -> np.ndarray:
    """How often each resample draws each image, uint8 [RESAMPLES, images]; the same for every score of them."""
    rng = np.random.default_rng(seed)
    chunks = (rng.integers(images, size=(_CHUNK, images)) for _ in range(RESAMPLES // _CHUNK))
    return np.stack([np.bincount(drawn, minlength=images) for chunk in chunks for drawn in chunk]).astype(np.uint8)
