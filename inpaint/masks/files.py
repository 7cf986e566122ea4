"""A mask file as a mask: which value is the hole, is the file really two-valued, and how it is brought to a size.

Mask files disagree about everything: the hole is white or black, known pixels are 0, 255 or 127, edges are sharp,
anti-aliased or smeared by JPEG. Nothing is guessed here: the polarity is an argument, and a file that is not
black and white within the tolerance below is refused with the values it has.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

from inpaint import storage
from inpaint.errors import DataError

Polarity = Literal["white", "black"]
Threshold = Literal["any_hole", "any_valid", "nearest"]

NOISE = 16  # levels from black or white that count as black or white: JPEG leaves up to 8 in the NVIDIA masks
MOST_GREY = 0.2  # share of pixels between black and white: anti-aliased edges are below 0.01 at 512 pixels
MOST_OF_ONE_GREY = 0.05  # share of pixels within 4 levels of one grey: a third value, not an edge
MOST_COLOURED = 0.01
_CLEAN = np.arange(256, dtype=np.uint8)
_CLEAN[: NOISE + 1], _CLEAN[255 - NOISE :] = 0, 255
MAX_PIXELS = 1_000_000_000  # more is taken for a decompression bomb


def load_mask(
    source: str | Path | bytes, *, hole: Polarity, threshold: Threshold, size: int | None, name: str | None = None
) -> np.ndarray:
    """A mask file as uint8, 1 = hole: [size, size], or the file's own height and width when `size` is None.

    A file that is not square is cropped to its centred square before it is resized, as the images are.

    Args:
        source: path, URL or bytes of the file.
        hole: the value that means hole in this file.
        threshold: `any_hole` (bilinear; a pixel the hole touches is hole: EdgeConnect's loader), `any_valid`
            (bilinear; a pixel that known pixels touch is known: ISNet's loader), `nearest` (inp-v1).
        size: pixels of both sides of the result.
        name: of the file in messages; the path when None.

    Raises:
        DataError: not an image, animated, coloured, or with values other than the two of a mask.
    """
    name = name or ("mask" if isinstance(source, bytes) else str(source))
    data = source if isinstance(source, bytes) else storage.read_bytes(str(source))
    white = _two_valued(_grey(data, name), name)
    holes = white if hole == "white" else 255 - white
    return (holes > 127).astype(np.uint8) if size is None else resize_holes(holes, threshold=threshold, size=size)


def resize_holes(holes: np.ndarray, *, threshold: Threshold, size: int) -> np.ndarray:
    """A plane that is 255 in the hole and 0 elsewhere, uint8 [H, W], as a mask, uint8 [size, size], 1 = hole."""
    plane = Image.fromarray(holes)
    side = min(plane.size)
    left, top = (plane.width - side) // 2, (plane.height - side) // 2
    plane = plane.crop((left, top, left + side, top + side))
    return _RESIZE[threshold](plane, size).astype(np.uint8)


def _any_hole(holes: Image.Image, size: int) -> np.ndarray:
    return np.asarray(holes.resize((size, size), Image.Resampling.BILINEAR)) > 0


def _any_valid(holes: Image.Image, size: int) -> np.ndarray:
    valid = holes.point(lambda level: 255 - level)
    return np.asarray(valid.resize((size, size), Image.Resampling.BILINEAR)) == 0


def _nearest(holes: Image.Image, size: int) -> np.ndarray:
    return np.asarray(holes.resize((size, size), Image.Resampling.NEAREST)) > 127


_RESIZE = {"any_hole": _any_hole, "any_valid": _any_valid, "nearest": _nearest}


def _grey(data: bytes, name: str) -> np.ndarray:
    """The file's pixels as one plane, uint8 [H, W]."""
    try:
        with Image.open(io.BytesIO(data)) as file:
            if file.width * file.height > MAX_PIXELS:
                raise DataError(f"{name}: {file.width}x{file.height} pixels; a mask has at most {MAX_PIXELS:,}")
            if getattr(file, "n_frames", 1) > 1:
                raise DataError(f"{name}: has {file.n_frames} frames; a mask is one still image")
            image = ImageOps.exif_transpose(file)
            image.load()
    except UnidentifiedImageError:
        raise DataError(f"{name}: not an image; give a PNG or JPEG mask") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{name}: not a readable image ({error}); give a PNG or JPEG mask") from error
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep(np.asarray(image).astype(np.float64), name)
    if image.mode in ("1", "L") and not image.has_transparency_data:
        return np.asarray(image.convert("L"))
    image = image.convert("RGBA")
    red, green, blue, alpha = image.split()
    if transparent := _share_above(ImageChops.invert(alpha), 0):
        raise DataError(
            f"{name}: {transparent:.1%} of the pixels are transparent; is the hole in the colour or in the alpha "
            "channel? Save it as plain black and white"
        )
    lightest, darkest = (fold(fold(red, green), blue) for fold in (ImageChops.lighter, ImageChops.darker))
    coloured = _share_above(ImageChops.subtract(lightest, darkest), 2 * NOISE)
    if coloured > MOST_COLOURED:
        raise DataError(f"{name}: {coloured:.1%} of the pixels are coloured; a mask is black and white")
    return np.asarray(image.convert("L"))


def _share_above(plane: Image.Image, level: int) -> float:
    """The share of a plane's pixels that lie above a level."""
    return sum(plane.histogram()[level + 1 :]) / (plane.width * plane.height)


def _from_deep(levels: np.ndarray, name: str) -> np.ndarray:
    """A 16- or 32-bit plane as 8 bits: its two levels must be 0 and 1, 0 and 255, or 0 and 65535."""
    top = float(levels.max())
    scale = next((white for white in (1, 255, 65535) if top <= white), None)
    if scale is None or levels.min() < 0:
        raise DataError(f"{name}: has values {levels.min():g}..{top:g}; expected 0 and 255")
    return np.round(levels * (255 / scale)).astype(np.uint8)


def _two_valued(grey: np.ndarray, name: str) -> np.ndarray:
    """The plane with JPEG noise removed from its black and its white; greys of anti-aliased edges are kept."""
    if grey.max() == 1:  # 0 and 1, as arrays are often saved
        grey = grey * np.uint8(255)
    histogram = np.array(Image.fromarray(grey).histogram()) / grey.size
    between = histogram[NOISE + 1 : 255 - NOISE]
    one_grey = np.convolve(between, np.ones(9), mode="same")
    if one_grey.max() > MOST_OF_ONE_GREY or between.sum() > MOST_GREY:
        raise DataError(f"{name}: has values {_levels(histogram)}; expected 0 and 255 only. Convert it before use")
    return _CLEAN[grey]


def _levels(histogram: np.ndarray) -> str:
    """The commonest levels and their shares, for a message."""
    distinct = int(np.count_nonzero(histogram))
    common = sorted(np.argsort(-histogram, kind="stable")[: min(3, distinct)].tolist())
    listed = ", ".join(f"{level} ({histogram[level]:.1%})" for level in common)
    return f"{listed} and {distinct - len(common)} others" if distinct > len(common) else listed
