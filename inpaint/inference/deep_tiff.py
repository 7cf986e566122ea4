"""TIFF with 16 bits per channel, which Pillow does not read when there is more than one."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np

BIG = (b"II+\0", b"MM\0+")  # signatures of BigTIFF
SIGNATURES = (b"II*\0", b"MM\0*", *BIG)
ORIENTATION, ICC_PROFILE = 274, 34675  # tags
RGB, GREY = 2, 1  # photometric interpretations
MULTIPLIED, ALPHA = 1, 2  # extra samples: alpha that colours are multiplied by, and one that they are not
RESOLUTIONS, RESOLUTION_UNIT = (282, 283), 296  # tags
INCH, CENTIMETRE = 2, 3  # units of resolution; without one it only tells the shape of a pixel


class Unkept(ValueError):
    """A TIFF whose pixels would not survive; the text says why."""


@dataclass(frozen=True)
class DeepTiff:
    """A decoded file: uint16 [H, W, channels] as its rows lie, and what goes with them."""

    pixels: np.ndarray
    orientation: int
    kept: dict[str, Any]


def decode(data: bytes) -> DeepTiff | None:
    """The pixels of a 16-bit TIFF of several channels, or None for what Pillow reads without loss.

    Raises:
        Unkept: a kind of more than 8 bits that cannot be kept, or several pages.
        ValueError: an unknown compression.
    """
    if data[:4] not in SIGNATURES:
        return None
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        channels, unsigned = page.samplesperpixel, page.sampleformat == 1
        if page.bitspersample <= 8 or channels == 1:
            return None
        if page.bitspersample != 16 or not unsigned or page.photometric not in (RGB, GREY) or channels > 4:
            kind = f"{page.photometric.name} of {channels} × {page.bitspersample} bits"
            raise Unkept(f"a TIFF of {kind} that would lose digits; convert it to unsigned 16-bit RGB")
        if MULTIPLIED in page.extrasamples:
            raise Unkept("a TIFF whose colours are multiplied by its alpha; save it with straight alpha")
        pages = sum(not one.is_reduced for one in file.pages)  # reduced ones are previews
        if pages > 1:
            raise Unkept(f"has {pages} pages; a photo is one still image")
        pixels = page.asarray()
        if page.planarconfig == 2:
            pixels = np.moveaxis(pixels, 0, -1)
        orientation = page.tags.valueof(ORIENTATION, 1)
        profile = page.tags.valueof(ICC_PROFILE)
        dpi = _dots_per_inch(page.tags)
    kept = {"icc_profile": bytes(profile) if profile else None, "dpi": dpi}
    return DeepTiff(np.ascontiguousarray(pixels), int(orientation) if 1 <= orientation <= 8 else 1, kept)


def encode(
    pixels: np.ndarray, *, orientation: int, icc_profile: bytes | None, dpi: tuple[float, float] | None
) -> bytes:
    """A TIFF file of uint16 [H, W, channels], compressed without loss."""
    import tifffile

    buffer, channels = io.BytesIO(), pixels.shape[2]
    tifffile.imwrite(
        buffer,
        pixels if channels > 1 else pixels[..., 0],
        photometric="rgb" if channels >= 3 else "minisblack",
        planarconfig="contig" if channels > 1 else None,
        extrasamples=[ALPHA] if channels in (2, 4) else None,
        compression="zlib",
        iccprofile=icc_profile,
        resolution=dpi,
        resolutionunit=INCH if dpi else None,
        extratags=[(ORIENTATION, "H", 1, orientation, True)],
        metadata=None,
    )
    return buffer.getvalue()


def _dots_per_inch(tags: Any) -> tuple[float, float] | None:
    """Across and down; None where the file does not say, or says 0."""
    units = {INCH: 1.0, CENTIMETRE: 2.54}.get(tags.valueof(RESOLUTION_UNIT, INCH))
    fractions = [tags.valueof(tag) or (0, 0) for tag in RESOLUTIONS]
    if units is None or not all(value for fraction in fractions for value in fraction):
        return None
    across, down = (numerator / denominator * units for numerator, denominator in fractions)
    return across, down
