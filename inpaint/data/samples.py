"""One image file as one sample of a shard: `<key>.jpg` and `<key>.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from inpaint import archives, storage
from inpaint.archives import Entry
from inpaint.data.pictures import MAX_PIXELS, Refused, read_picture
from inpaint.data.sources import Candidate
from inpaint.errors import ConfigError, StorageError

KEPT_ENDINGS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp"}  # formats whose own bytes can be kept
LONGEST_SIDE = 65_500  # of a JPEG
MENDED_QUALITY = 95  # of images that must be written anew although the originals are kept


@dataclass(frozen=True)
class ShardOptions:
    """How images become shards.

    Attributes:
        samples: per shard; None when `shard_bytes` is given.
        shard_bytes: about how large a shard is, from the mean size of a few images of the source.
        short_side: pixels the shorter side is reduced to; images that are smaller stay as they are. None = no change.
        center_crop: side in pixels of a square cut from the middle first; 0 = the largest square. None = no crop.
        quality: of JPEG, 1 to 100.
        keep_original: put each file's own bytes into the shard instead of a new JPEG.
        max_pixels: images with more are refused as decompression bombs.
    """

    samples: int | None = 1000
    shard_bytes: int | None = None
    short_side: int | None = None
    center_crop: int | None = None
    quality: int = 95
    keep_original: bool = False
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        if (self.samples is None) == (self.shard_bytes is None):
            raise ConfigError("a shard's size is given in samples or in bytes: exactly one of the two")
        for name in ("samples", "shard_bytes", "short_side", "max_pixels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; expected 1 or more")
        if self.center_crop is not None and self.center_crop < 0:
            raise ConfigError(f"center_crop is {self.center_crop}; expected pixels, or 0 for the largest square")
        if not 1 <= self.quality <= 100:
            raise ConfigError(f"quality is {self.quality}; expected 1 to 100")
        if self.keep_original and (self.short_side, self.center_crop) != (None, None):
            raise ConfigError("keep_original keeps every byte; a short side or a crop would do nothing. Give only one")


def encode_sample(candidate: Candidate, options: ShardOptions) -> tuple[list[tuple[str, bytes]], tuple[str, ...]]:
    """A sample's members (name, bytes), and what had to be done to the image.

    Raises:
        Refused: the image cannot be used.
        DataError: its bytes cannot be read from the source.
    """
    data = _read(candidate.entry)
    picture = read_picture(data, max_pixels=options.max_pixels)
    pixels, changes = picture.pixels, list(picture.mended)
    if options.keep_original and picture.as_it_is and picture.format in KEPT_ENDINGS:
        ending = KEPT_ENDINGS[picture.format]
    else:
        ending, quality = "jpg", options.quality
        if options.keep_original:
            changes.append("written anew: not every reader would see its own bytes the same way")
            quality = MENDED_QUALITY
        if min(pixels.shape[:2]) < (options.short_side or 0):
            changes.append("smaller than the short side: left at its size")
        pixels = _fit(pixels, options)
        if max(pixels.shape) > LONGEST_SIDE:
            raise Refused(f"{pixels.shape[1]}x{pixels.shape[0]}: a JPEG has at most {LONGEST_SIDE} pixels on a side")
        data = simplejpeg.encode_jpeg(pixels, quality=quality, colorspace="RGB", colorsubsampling="420")
    about: dict[str, Any] = {"source": candidate.entry.name, "width": pixels.shape[1], "height": pixels.shape[0]}
    if changes:
        about["mended"] = changes
    text = json.dumps(about, sort_keys=True).encode()
    return [(f"{candidate.key}.{ending}", data), (f"{candidate.key}.json", text)], tuple(changes)


def _read(entry: Entry) -> bytes:
    try:
        return archives.read(entry)
    except StorageError as error:
        if storage.is_remote(entry.url):
            raise  # a failing network must not make the set smaller
        raise Refused(f"cannot be read ({error})") from error


def _fit(pixels: np.ndarray, options: ShardOptions) -> np.ndarray:
    """Cropped to the centred square, then reduced to the short side."""
    height, width = pixels.shape[:2]
    if options.center_crop is not None:
        side = min(options.center_crop or min(height, width), height, width)
        top, left = (height - side) // 2, (width - side) // 2
        pixels, height, width = pixels[top : top + side, left : left + side], side, side
    short = min(height, width)
    if options.short_side and options.short_side < short:
        size = (round(width * options.short_side / short), round(height * options.short_side / short))
        pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
    return np.ascontiguousarray(pixels)
