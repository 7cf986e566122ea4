"""Where the holes come from that a run trains and is scored with."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from inpaint.config.base import Positive, Strict

Share = Annotated[float, Field(ge=0, le=1)]


def _ascending(ratio: tuple[float, float]) -> tuple[float, float]:
    if ratio[0] > ratio[1]:
        raise ValueError(f"{list(ratio)} is upside down; expected [low, high], a bin above low up to high")
    return ratio


RatioBin = Annotated[tuple[Share, Share], AfterValidator(_ascending)]  # (low, high] of the image's pixels


class FreeFormHoles(Strict):
    """Random brush strokes until the wanted ratio is reached."""

    kind: Literal["strokes"] = "strokes"
    ratio: RatioBin = (0.1, 0.5)


class RectangleHoles(Strict):
    """One to `most` axis-aligned rectangles."""

    kind: Literal["rectangles"] = "rectangles"
    ratio: RatioBin = (0.1, 0.5)
    most: Positive = 4


class HalfHoles(Strict):
    """One half of the image: left, right, top or bottom."""

    kind: Literal["half"] = "half"


class CentreHole(Strict):
    """The centred square of `share` of each side."""

    kind: Literal["centre"] = "centre"
    share: float = Field(0.5, gt=0, lt=1)


class MaskSetHoles(Strict):
    """Masks read from a folder or shard set.

    Attributes:
        url: folder of images, or shard set.
        hole: the value that means hole in these files; required, because mask sets disagree.
        threshold: `any_hole` (a touched pixel is hole), `any_valid` (a touched pixel is valid), or `nearest`.
        rotate: turn the mask alone by a random multiple of 90 degrees (ISNet).
    """

    kind: Literal["set"] = "set"
    url: str = Field(min_length=1)
    hole: Literal["white", "black"]
    threshold: Literal["any_hole", "any_valid", "nearest"] = "nearest"
    ratio: RatioBin = (0.0, 1.0)
    rotate: bool = False


class LamaHoles(Strict):
    """LaMa's random lines and boxes: thin, medium or thick."""

    kind: Literal["lama"] = "lama"
    thickness: Literal["thin", "medium", "thick"]
    ratio: RatioBin = (0.0, 0.5)  # LaMa: max_tamper_area 0.5


class ComodHoles(Strict):
    """CoModGAN's random strokes and boxes (large), and MAT's smaller ones."""

    kind: Literal["comod"] = "comod"
    extent: Literal["small", "large"]
    ratio: RatioBin = (0.0, 1.0)  # CoModGAN: hole_range


HolesConfig = Annotated[
    FreeFormHoles | RectangleHoles | HalfHoles | CentreHole | MaskSetHoles | LamaHoles | ComodHoles,
    Field(discriminator="kind"),
]
