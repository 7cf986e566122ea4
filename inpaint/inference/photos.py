"""One photo file filled: any kind, any size, its known pixels bit for bit as they were."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from inpaint.errors import DataError
from inpaint.inference.filling import OVERLAP, TILE, bands, blind_tiles, painter
from inpaint.inference.photo_files import Photo, any_size, holds, output_format, read_photo, turned, write_photo
from inpaint.inference.preparing import inference_mode
from inpaint.masks import load_mask
from inpaint.methods.base import Method

GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601, as Pillow turns RGB into L


@dataclass(frozen=True)
class Filled:
    """What was done: the photo, where it went, its size, the share of its hole, and how many tiles were all hole."""

    photo: str
    out: str
    width: int
    height: int
    hole_ratio: float
    blind_tiles: int = 0


def fill_photo(
    method: Method,
    photo: str | Path,
    mask: str | Path,
    out: str | Path,
    *,
    hole: Literal["white", "black"] = "white",
    progressive: bool = False,
    lossy: bool = False,
    tile: int = TILE,
    overlap: int = OVERLAP,
) -> Filled:
    """Fill the hole of a photo and write it; nothing is written unless all of it worked.

    Alpha, EXIF (orientation included), colour profile, 16 bits and CMYK stay as they are where the file format can hold
    them; palettes become RGB. Photos larger than `tile` are filled in tiles, so that memory beyond the photo's own
    pixels does not grow with its height.

    Args:
        method: on its device; prepared or not.
        photo: path of an image file.
        mask: path of a black and white image of the photo's size, as the photo is displayed.
        out: path to write: .png, .tif, .webp or .bmp; .jpg only with `lossy`.
        hole: the value that means hole in the mask.
        progressive: fill large holes in rings.
        lossy: allow a .jpg, in which known pixels change a little.
        tile, overlap: see `fill`, in pixels.

    Raises:
        DataError: a file that cannot be read or written, a mask of another size, or one that covers everything or
            nothing.
        ShapeError: a method that fills one shape only was given another.
    """
    original = read_photo(photo)
    file_format = output_format(original, Path(out), lossy=lossy)
    if not holds(file_format, original.kind):
        original = _in_rgb(original)
    holes = _load_holes(mask, original, hole=hole, name=photo)
    filled = fill_pixels(method, original, holes, progressive=progressive, tile=tile, overlap=overlap)
    write_photo(filled, out, lossy=lossy)
    width, height = original.size
    blind = 0 if method.config.hole_shapes == "centre" else blind_tiles(holes, tile=tile, overlap=overlap)
    return Filled(str(photo), str(out), width, height, float(holes.mean()), blind)


def fill_pixels(
    method: Method,
    photo: Photo,
    holes: np.ndarray,
    *,
    progressive: bool = False,
    tile: int = TILE,
    overlap: int = OVERLAP,
) -> Photo:
    """The photo with new pixels where `holes`, uint8 [H, W], is 1, and the same array values elsewhere."""
    pixels, parameter = photo.pixels.copy(), next(method.parameters(), torch.empty(0))
    colours = len(_colours(photo.kind))

    def read(rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
        mask = torch.from_numpy(holes[rows, columns].astype(np.float32))[None, None]
        if not mask.any():
            return mask, mask
        image = torch.from_numpy(_to_rgb(photo, photo.pixels[rows, columns])).permute(2, 0, 1)[None]
        return image.to(parameter.device), mask.to(parameter.device)

    whole = method.config.hole_shapes == "centre"
    side = max(photo.size) if whole else tile
    with inference_mode(method):
        paint = painter(method, progressive=progressive)
        for band in bands(paint, read, *photo.size[::-1], tile=side, overlap=0 if whole else overlap):
            hole, share = holes[band.rows] == 1, band.share.cpu().numpy()[..., None]
            drawn = band.drawn.permute(1, 2, 0).cpu().numpy()
            new, rows = _from_rgb(photo, drawn).astype(np.float32), pixels[band.rows]
            old = rows[..., :colours].astype(np.float32)
            levels = np.rint(old + (new - old) * share).clip(0, photo.levels).astype(pixels.dtype)
            rows[..., :colours] = np.where(hole[..., None], levels, rows[..., :colours])
    return replace(photo, pixels=pixels)


def _load_holes(mask: str | Path, photo: Photo, *, hole: Literal["white", "black"], name: str | Path) -> np.ndarray:
    """The mask file as uint8 [H, W] over the upright photo, 1 = hole.

    A mask that fits the file's stored rows but not the displayed photo was made for those rows, and turns with them.
    """
    with any_size():
        holes = load_mask(str(mask), hole=hole, threshold="nearest", size=None)
    size = (holes.shape[1], holes.shape[0])
    if size == photo.stored_size != photo.size:
        holes = turned(holes, photo.orientation)
    elif size != photo.size:
        raise DataError(
            f"{mask}: the mask is {size[0]}x{size[1]}, the photo {name} {photo.size[0]}x{photo.size[1]} as displayed; "
            "make them the same size"
        )
    other = "black" if hole == "white" else "white"
    if not holes.any():
        raise DataError(f"{mask}: the mask covers nothing; is its hole {other}? Then pass --hole {other}")
    if holes.all():
        raise DataError(f"{mask}: the mask covers the whole photo, leaving nothing to fill it from; keep some known")
    return holes


def _colours(kind: str) -> str:
    """The channels that are drawn; alpha is not."""
    return "L" if kind == "1" else kind.removesuffix("A")


def _in_rgb(photo: Photo) -> Photo:
    """A photo in RGB, or RGBA, for file formats that know no other kind."""
    if photo.kind == "CMYK":
        pixels = np.asarray(_cmyk(photo.pixels).convert("RGB"))
        return replace(photo, pixels=pixels, kind="RGB", kept={**photo.kept, "icc_profile": None})
    grey = photo.pixels[..., :1]
    return replace(
        photo,
        pixels=np.concatenate((grey, grey, grey, photo.pixels[..., 1:]), axis=2),
        kind="RGBA" if photo.alpha else "RGB",
    )


def _to_rgb(photo: Photo, block: np.ndarray) -> np.ndarray:
    """A block of the photo's pixels as float32 RGB in [0, 1], [h, w, 3]."""
    if photo.kind == "CMYK":
        block = np.asarray(_cmyk(block).convert("RGB"))
    colours = block[..., :3] if block.shape[2] >= 3 else np.repeat(block[..., :1], 3, axis=2)
    return np.ascontiguousarray(colours, dtype=np.float32) / photo.levels


def _from_rgb(photo: Photo, drawn: np.ndarray) -> np.ndarray:
    """Drawn RGB in [0, 1], [h, w, 3], in the photo's own colours and levels, [h, w, colours]."""
    drawn = drawn.clip(0, 1)
    if photo.kind == "1":
        return np.where(drawn @ GREY > 0.5, 255.0, 0.0)[..., None]
    if photo.kind in ("L", "LA"):
        return (drawn @ GREY)[..., None] * photo.levels
    if photo.kind == "CMYK":
        return np.asarray(Image.fromarray(np.rint(drawn * 255).astype(np.uint8)).convert("CMYK"))
    return drawn * photo.levels


def _cmyk(block: np.ndarray) -> Image.Image:
    return Image.frombytes("CMYK", (block.shape[1], block.shape[0]), np.ascontiguousarray(block).tobytes())
