"""Holes: drawn from a generator, or read from files. A mask is uint8 [size, size], 1 in the hole, 0 where known.

Everything random comes from the `numpy.random.Generator` that is passed in, so the same seed gives the same hole on
every machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from inpaint.config.holes import (
    CentreHole,
    ComodHoles,
    FreeFormHoles,
    HalfHoles,
    HolesConfig,
    LamaHoles,
    MaskSetHoles,
    RectangleHoles,
)
from inpaint.masks.files import load_mask
from inpaint.masks.published import comod_holes, lama_holes
from inpaint.masks.ratios import Ratio, counts_in, in_bin
from inpaint.masks.sets import MaskSet, load_mask_set, set_holes
from inpaint.masks.shapes import centre_holes, centre_square, half_holes, rectangle_holes
from inpaint.masks.strokes import stroke_holes

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MaskSet", "centre_mask", "centre_square", "counts_in", "in_bin", "load_mask", "load_mask_set", "make_holes"]

HoleMaker = Callable[[np.random.Generator], np.ndarray]

_MAKERS: dict[type, Callable[[Any, int], HoleMaker]] = {
    FreeFormHoles: lambda config, size: stroke_holes(config.ratio, size),
    RectangleHoles: lambda config, size: rectangle_holes(config.ratio, size, most=config.most),
    HalfHoles: lambda config, size: half_holes(size),
    CentreHole: lambda config, size: centre_holes(config.share, size),
    MaskSetHoles: lambda config, size: set_holes(config, size),
    LamaHoles: lambda config, size: lama_holes(config.thickness, config.ratio, size),
    ComodHoles: lambda config, size: comod_holes(config.extent, config.ratio, size),
}


def make_holes(config: HolesConfig, size: int, *, ratio: Ratio | None = None) -> HoleMaker:
    """A function that draws one mask, uint8 [size, size], 1 = hole, from a generator.

    Args:
        config: the kind of hole and its settings.
        size: pixels of both sides.
        ratio: the bin (low, high] every hole's ratio must lie in, instead of the config's.

    Raises:
        ValueError: a size below 2, a kind whose ratio is fixed asked for a bin, or a bin that no hole can hit.
        DataError: a mask set that is missing, empty, of the other polarity, or without masks in the bin.
    """
    if size < 2:
        raise ValueError(f"holes in an image of {size} pixels; expected 2 or more")
    if ratio is not None:
        if "ratio" not in type(config).model_fields:
            raise ValueError(f"holes of kind {config.kind} have a fixed ratio; they cannot be drawn in {ratio}")
        config = config.model_copy(update={"ratio": ratio})
    return _MAKERS[type(config)](config, size)


def centre_mask(size: int, hole: int) -> Tensor:
    """The centred square hole of `hole` pixels as a tensor, [1, 1, size, size], float, 1 = hole."""
    import torch

    return torch.from_numpy(centre_square(size, hole=hole)).float()[None, None]
