"""The holes that images are scored under: files as a protocol loads them, strokes drawn from a seed, or the centre."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from inpaint import storage
from inpaint.config.holes import CentreHole, FreeFormHoles
from inpaint.evaluation.protocols import Bin
from inpaint.masks import MaskSet, centre_square, load_mask_set, make_holes

DRAWN_PER_BIN = 100
DRAWN_BINS = (Bin(0.01, 0.1), Bin(0.1, 0.2), Bin(0.2, 0.3), Bin(0.3, 0.4), Bin(0.4, 0.5), Bin(0.5, 0.6))


@dataclass(frozen=True, eq=False)
class HoleSet:
    """Masks by name, as one protocol loads them.

    Attributes:
        name: the folder or the recipe.
        kind: what sort of holes, for tables.
        names: of the masks, sorted.
        ratios: exact share of hole pixels of each, [N].
        sha256: digest of names and pixels.
        read: a mask by name, uint8 [H, W], 1 = hole.
    """

    name: str
    kind: str
    names: tuple[str, ...]
    ratios: np.ndarray
    sha256: str
    read: Callable[[str], np.ndarray]
    _digests: dict[str, str] = field(default_factory=dict, repr=False)

    def digest(self, name: str) -> str:
        """Of one mask's pixels: equal for masks that are equal, whatever they are called."""
        if name not in self._digests:
            mask = self.read(name)
            self._digests[name] = hashlib.sha256(f"{mask.shape}".encode() + np.packbits(mask).tobytes()).hexdigest()
        return self._digests[name]


@dataclass(frozen=True)
class HoleSource:
    """Where the holes of an evaluation come from; opened once per size and loading rule.

    Attributes:
        url: folder, archive or shard set of mask files; None draws strokes.
        hole: the value that means hole in the files.
        seed: of the strokes.
        centre: share of each side of a centred square, in place of strokes.
    """

    url: str | None = None
    hole: Literal["white", "black"] | None = None
    seed: int = 0
    centre: float | None = None

    def open(self, *, loading: str, size: int) -> HoleSet:
        """The masks at `size` as `loading` reads them (see `Protocol.mask_loading`).

        Raises:
            DataError: as `masks.load_mask_set`.
        """
        if loading == "centre":
            return _centred(centre_square(size, hole=size // 2))
        if self.centre is not None:
            return _centred(make_holes(CentreHole(share=self.centre), size)(np.random.default_rng()))
        if self.url is None:
            return _drawn(size, self.seed)
        masks = load_mask_set(self.url, hole=self.hole, threshold=loading, size=size)
        return _hole_set(self.url, f"files of {storage.name_of(self.url)}", masks)


@dataclass(frozen=True, eq=False)
class PackedMask:
    """A mask kept as bits, an eighth of its size.

    Attributes:
        shape: height and width.
        ratio: exact share of hole pixels.
        bits: uint8 [ceil(H * W / 8)].
    """

    shape: tuple[int, int]
    ratio: float
    bits: np.ndarray

    @classmethod
    def of(cls, mask: np.ndarray) -> PackedMask:
        """Of a mask, uint8 [H, W], 1 = hole."""
        return cls(mask.shape, float(mask.mean()), np.packbits(mask))

    def pixels(self) -> np.ndarray:
        """The mask, uint8 [H, W]."""
        height, width = self.shape
        return np.unpackbits(self.bits, count=height * width).reshape(height, width)


def hole_set(name: str, kind: str, masks: Mapping[str, np.ndarray]) -> HoleSet:
    """Masks in memory, uint8 [H, W] by name, as a set; their sizes may differ. They are kept as bits."""
    return packed_set(name, kind, {key: PackedMask.of(mask) for key, mask in masks.items()})


def packed_set(name: str, kind: str, masks: Mapping[str, PackedMask]) -> HoleSet:
    """Masks that are kept as bits already, by name, as a set."""
    names = tuple(sorted(masks))
    digest = hashlib.sha256()
    for key in names:
        digest.update(f"{key} {masks[key].shape}\n".encode() + masks[key].bits.tobytes())
    ratios = np.array([masks[key].ratio for key in names])
    return HoleSet(name, kind, names, ratios, digest.hexdigest(), lambda key: masks[key].pixels())


def _hole_set(name: str, kind: str, masks: MaskSet) -> HoleSet:
    places = {key: place for place, key in enumerate(masks.names)}
    return HoleSet(name, kind, masks.names, masks.ratios, masks.sha256, lambda key: masks[places[key]])


@functools.lru_cache(maxsize=8)
def _drawn(size: int, seed: int) -> HoleSet:
    """Free-form strokes, as many in every bin; they need no resizing, so every loading rule sees the same pixels."""
    named = {}
    for wanted in DRAWN_BINS:
        draw = make_holes(FreeFormHoles(ratio=(wanted.low, wanted.high)), size)
        for i in range(DRAWN_PER_BIN):
            named[f"strokes-{wanted.name}-{i:03d}"] = draw(np.random.default_rng([seed, round(wanted.low * 100), i]))
    return hole_set(f"strokes of seed {seed}", "drawn strokes", named)


def _centred(mask: np.ndarray) -> HoleSet:
    return hole_set("centred square", "centred square", {"centre": mask})
