"""What a discriminator and a generator minimise against each other, per kind of GAN loss.

`discriminator` functions return the two halves of the discriminator's loss as named terms, `generator` functions the
generator's term. Logits are averaged over all patches and samples; everything is computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Terms = dict[str, Tensor]


def hinge_discriminator(real: Tensor, filled: Tensor) -> Terms:
    """E relu(1 - D(real)) and E relu(1 + D(filled)).

    Source: ISNet Eq. (3), with the ReLU on the real term that the print omits.
    """
    return {"real": F.relu(1 - real.float()).mean(), "filled": F.relu(1 + filled.float()).mean()}


def hinge_generator(filled: Tensor) -> Tensor:
    """-E D(filled). Source: ISNet Eq. (4), the usual hinge generator."""
    return -filled.float().mean()


def negative_hinge_generator(filled: Tensor) -> Tensor:
    """-E relu(1 + D(filled)): Eq. (4) read literally; its gradient is 0 wherever D < -1."""
    return -F.relu(1 + filled.float()).mean()


def bce_discriminator(real: Tensor, filled: Tensor) -> Terms:
    """Half of the binary cross-entropy with target 1 for real and 0 for filled patches."""
    real, filled = real.float(), filled.float()
    return {
        "real": 0.5 * F.binary_cross_entropy_with_logits(real, torch.ones_like(real)),
        "filled": 0.5 * F.binary_cross_entropy_with_logits(filled, torch.zeros_like(filled)),
    }


def bce_generator(filled: Tensor) -> Tensor:
    """Binary cross-entropy of filled patches with target 1 (non-saturating). Source: DiNA Eq. (9), Eq. (16)."""
    filled = filled.float()
    return F.binary_cross_entropy_with_logits(filled, torch.ones_like(filled))


def cross_entropy_discriminator(real: Tensor, filled: Tensor) -> Terms:
    """Binary cross-entropy with target 1 for real and 0 for filled, not halved. Source: CE paper Eq. (3), (4)."""
    return {"real": F.softplus(-real.float()).mean(), "filled": F.softplus(filled.float()).mean()}


def minimax_generator(filled: Tensor) -> Tensor:
    """E log(1 - D(filled)), which the generator lowers; flat where D is sure. Source: CE paper Eq. (1), literally."""
    return -F.softplus(filled.float()).mean()


def least_squares_discriminator(real: Tensor, filled: Tensor) -> Terms:
    """Half of the squared distance from 1 for real and from 0 for filled patches."""
    return {"real": 0.5 * (real.float() - 1).square().mean(), "filled": 0.5 * filled.float().square().mean()}


def least_squares_generator(filled: Tensor) -> Tensor:
    """Squared distance of filled patches from 1."""
    return (filled.float() - 1).square().mean()


DISCRIMINATOR: dict[str, Callable[[Tensor, Tensor], Terms]] = {
    "hinge": hinge_discriminator,
    "nsgan": bce_discriminator,
    "lsgan": least_squares_discriminator,
}
HALVES = {"real": 1.0, "filled": 1.0}  # weights of a discriminator's two terms
CROSS_ENTROPY_GENERATOR: dict[str, Callable[[Tensor], Tensor]] = {
    "non_saturating": bce_generator,
    "minimax": minimax_generator,
}
GENERATOR: dict[str, Callable[[Tensor], Tensor]] = {
    "hinge": hinge_generator,
    "nsgan": bce_generator,
    "lsgan": least_squares_generator,
}
