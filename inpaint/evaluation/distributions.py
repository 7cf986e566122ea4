"""How far two sets of images lie apart in a feature space: FID, KID, and whether a line can tell them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

Covariances = Literal["sample", "population"]
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000


@dataclass(frozen=True)
class SetScore:
    """A score of a whole set.

    Attributes:
        value: KID is printed × 1000.
        deviation: over the subsets of KID; None for the others.
        n: images in the smaller set.
        mark: `fid@48` where n is below what the protocol needs, else empty.
    """

    value: float
    deviation: float | None
    n: int
    mark: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def set_scores(
    truth: np.ndarray,
    filled: np.ndarray,
    *,
    names: tuple[str, ...],
    needs: int,
    seed: int,
    covariances: Covariances = "sample",
) -> dict[str, SetScore]:
    """The scores of these names.

    Args:
        truth: features of true images, [N, D].
        filled: features of fills, [M, D]. `pids` and `uids` need one truth for each fill.
        names: of `fid`, `kid`, `pids`, `uids`.
        needs: images below which a score is marked.
        seed: of KID's subsets.
        covariances: of FID, see `frechet_distance`.
    """
    n = min(len(truth), len(filled))
    found: dict[str, SetScore] = {}
    for name in names:
        mark = f"{name}@{n}" if n < needs else ""
        if name == "fid":
            found[name] = SetScore(frechet_distance(truth, filled, covariances), None, n, mark)
        elif name == "kid":
            mean, deviation = kernel_distance(truth, filled, seed=seed)
            found[name] = SetScore(1000 * mean, 1000 * deviation, n, mark)
    if {"pids", "uids"} & set(names):
        paired, unpaired = discriminability(truth, filled)
        for name, value in (("pids", paired), ("uids", unpaired)):
            if name in names:
                found[name] = SetScore(100 * value, None, n, f"{name}@{n}" if n < needs else "")
    return found


def frechet_distance(a: np.ndarray, b: np.ndarray, covariances: Covariances = "sample") -> float:
    """|μa - μb|² + tr(Σa + Σb - 2 (Σa Σb)^½) of two feature sets, [N, D] and [M, D].

    Args:
        a, b: the features.
        covariances: divided by n - 1 (`sample`: numpy's, in pytorch-fid) or by n (`population`: in NVIDIA's codes).

    The trace of the root is the sum of singular values of Ra Rbᵀ, where Σ = Rᵀ R: no root of a singular matrix is
    taken, so sets smaller than D are exact too.

    Raises:
        ValueError: fewer than two images in a set.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"FID of {len(a)} and {len(b)} images; a covariance needs two of each")
    a, b = a.astype(np.float64), b.astype(np.float64)
    shift = a.mean(axis=0) - b.mean(axis=0)
    ra, rb = _root(a, covariances), _root(b, covariances)
    cross = np.linalg.svd(ra @ rb.T, compute_uv=False).sum()
    return float(shift @ shift + (ra**2).sum() + (rb**2).sum() - 2 * cross)


def kernel_distance(a: np.ndarray, b: np.ndarray, *, seed: int) -> tuple[float, float]:
    """Mean and deviation of the unbiased squared MMD with kernel (x·y / D + 1)³ over random subsets.

    Source: Bińkowski et al., "Demystifying MMD GANs", 2018: 100 subsets of 1,000 images, or of all when there are
    fewer.
    """
    rng = np.random.default_rng(seed)
    size = min(KID_SUBSET_SIZE, len(a), len(b))
    if size < 2:
        raise ValueError(f"KID of {len(a)} and {len(b)} images; the unbiased estimate needs two of each")
    found = [
        _mmd(a[rng.choice(len(a), size, replace=False)], b[rng.choice(len(b), size, replace=False)])
        for _ in range(KID_SUBSETS)
    ]
    return float(np.mean(found)), float(np.std(found))


def discriminability(truth: np.ndarray, filled: np.ndarray) -> tuple[float, float]:
    """P-IDS and U-IDS: how often a linear SVM takes a fill for more real than its truth, and its error over both sets.

    Source: Zhao et al., "Large scale image completion via co-modulated GANs", 2021. The SVM is the usual one with
    squared hinge and C = 1, solved to its single optimum.

    Args:
        truth: features, one row for each fill, [N, D].
        filled: features, [N, D].
    """
    features = np.concatenate([truth, filled]).astype(np.float64)
    sides = np.concatenate([np.ones(len(truth)), -np.ones(len(filled))])
    line = separating_line(features, sides)
    heights = features @ line[:-1] + line[-1]
    real, fake = heights[: len(truth)], heights[len(truth) :]
    wrong = (real <= 0).sum() + (fake > 0).sum()
    return float((fake > real).mean()), float(wrong / len(features))


def separating_line(features: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """Weights and offset of the linear SVM: least |line|² / 2 + Σ max(0, 1 - side · height)², [D + 1]."""
    from scipy.optimize import minimize  # a third of a second that no start of a training should pay

    inputs = np.concatenate([features, np.ones((len(features), 1))], axis=1)

    def objective(line: np.ndarray) -> tuple[float, np.ndarray]:
        slack = np.maximum(0, 1 - sides * (inputs @ line))
        return 0.5 * line @ line + slack @ slack, line - 2 * inputs.T @ (sides * slack)

    return minimize(objective, np.zeros(inputs.shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": 5000}).x


def _root(features: np.ndarray, covariances: Covariances) -> np.ndarray:
    """R with Rᵀ R the covariance."""
    count = len(features) - (covariances == "sample")
    centred = (features - features.mean(axis=0)) / np.sqrt(count)
    return np.linalg.qr(centred, mode="r") if len(features) > features.shape[1] else centred


def _mmd(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    n, width = a.shape
    aa, bb, ab = ((x @ y.T / width + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    within = (aa.sum() - np.trace(aa) + bb.sum() - np.trace(bb)) / (n * (n - 1))
    return float(within - 2 * ab.mean())
