"""Images of any size: padded to a method's grid, and in overlapping tiles where they are too large for one call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from inpaint.errors import ShapeError
from inpaint.imaging import check_mask, composite
from inpaint.inference.preparing import inference_mode
from inpaint.inference.progressive import progressive as reconstruct
from inpaint.methods.base import Method

Paint = Callable[[Tensor, Tensor], Tensor]
TILE = 768  # pixels; ISNet in float32 holds about 0.5 GB there
OVERLAP = 128  # pixels


def fill(
    method: Method,
    image: Tensor,
    mask: Tensor,
    *,
    progressive: bool = False,
    tile: int = TILE,
    overlap: int = OVERLAP,
) -> Tensor:
    """Images of any size with their holes filled.

    Sides that are off the method's grid are padded by repeating the border. Sides longer than `tile` are filled in
    tiles whose overlaps are blended, so memory for the network does not grow with the image.

    Args:
        method: on the images' device; prepared or not.
        image: [B, 3, H, W] in [0, 1]; what lies in the hole is never read.
        mask: 1 in the hole, [B, 1, H, W].
        progressive: fill large holes in rings (`inference.progressive`).
        tile: longest side filled in one piece, in pixels.
        overlap: pixels that neighbouring tiles share at least.

    Returns:
        Completed images, [B, 3, H, W]; known pixels are those of `image`, bit for bit.

    Raises:
        ValueError: a mask that is not 0 or 1 or of another size, or tiles that do not overlap as they should.
        ShapeError: a method that fills one shape only was given another, or was asked to fill progressively.
    """
    check_mask(mask, image)
    with inference_mode(method):
        paint = painter(method, progressive=progressive)
        if max(image.shape[-2:]) <= tile or method.config.hole_shapes == "centre":
            return composite(image, paint(_hidden(image, mask), mask), mask)
        return torch.cat([_in_tiles(paint, i[None], m[None], tile, overlap) for i, m in zip(image, mask, strict=True)])


def painter(method: Method, *, progressive: bool) -> Paint:
    """(image with 0 in the hole, mask) → drawn image, [B, 3, H, W], for sides of any length.

    Raises:
        ShapeError: progressive reconstruction was asked of a method that fills one shape only.
    """
    if method.config.hole_shapes == "centre":
        if progressive:
            raise ShapeError(
                f"{type(method).__name__} fills its one square at once, and progressive reconstruction shrinks holes; "
                "fill without it, or take a method with free-form holes"
            )
        return method.inpaint
    multiple, smallest = method.config.size_multiple, method.config.smallest_side

    def paint(image: Tensor, mask: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        wanted = [max(side + -side % multiple, smallest) for side in (width, height)]
        pad = (0, wanted[0] - width, 0, wanted[1] - height)
        if any(pad):
            image, mask = F.pad(image, pad, mode="replicate"), F.pad(mask, pad, mode="replicate")
        return method.inpaint(image, mask)[..., :height, :width].to(image.dtype)

    if progressive:  # outside the padding: rounds follow from the hole's share of the image itself
        return lambda image, mask: reconstruct(paint, image, mask)
    return paint


def _hidden(image: Tensor, mask: Tensor) -> Tensor:
    """The image with 0 in the hole, whatever lies there."""
    return torch.where(mask > 0.5, torch.zeros((), dtype=image.dtype, device=image.device), image)


class Band(NamedTuple):
    """A full-width strip of drawn pixels.

    Attributes:
        rows: where it lies.
        drawn: [3, rows, W]; meaningful in the hole only.
        share: how much of each row counts against the band above, [rows, 1], rising from 0 to 1 over the overlap.
    """

    rows: slice
    drawn: Tensor
    share: Tensor


def bands(
    paint: Paint,
    read: Callable[[slice, slice], tuple[Tensor, Tensor]],
    height: int,
    width: int,
    *,
    tile: int,
    overlap: int,
) -> Iterator[Band]:
    """The drawn image strip by strip from the top, holding one strip at a time.

    Args:
        paint: draws one tile.
        read: (rows, columns) → image [1, 3, h, w] and mask [1, 1, h, w]; known pixels may be zeros where there is no
            hole at all in the mask, because such tiles are not drawn.
        height, width: of the image, in pixels.
        tile: longest side of a tile.
        overlap: least pixels that neighbours share.

    Raises:
        ValueError: tiles that do not overlap as they should.
    """
    if not 0 <= overlap <= tile // 2:
        raise ValueError(f"overlap {overlap} of tiles of {tile} pixels; expected at most half a tile")
    above = 0
    for rows in _spans(height, tile, overlap):
        strip: Tensor | None = None
        before = 0
        for columns in _spans(width, tile, overlap):
            image, mask = read(rows, columns)
            if bool(mask.any()):
                drawn = paint(_hidden(image, mask), mask)[0]
                strip = torch.zeros(3, drawn.shape[1], width, device=drawn.device) if strip is None else strip
                share = _ramp(columns, before, drawn.device)
                strip[:, :, columns] = torch.lerp(strip[:, :, columns], drawn.float(), share)
            before = columns.stop
        if strip is not None:
            yield Band(rows, strip, _ramp(rows, above, strip.device)[:, None])
        above = rows.stop


def blind_tiles(holes: np.ndarray, *, tile: int, overlap: int) -> int:
    """How many tiles show no known pixel, of holes [H, W], 1 = hole: what is drawn there has nothing to go on from."""
    rows, columns = (_spans(length, tile, overlap) for length in holes.shape)
    return sum(bool(holes[row, column].all()) for row in rows for column in columns)


def _in_tiles(paint: Paint, image: Tensor, mask: Tensor, tile: int, overlap: int) -> Tensor:
    """One image [1, 3, H, W] filled tile by tile."""
    completed, hole = _hidden(image, mask), mask[0, 0] > 0.5

    def read(rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
        return image[..., rows, columns], mask[..., rows, columns]

    for band in bands(paint, read, *image.shape[-2:], tile=tile, overlap=overlap):
        rows = completed[0, :, band.rows]
        blended = torch.lerp(rows.float(), band.drawn, band.share).to(image.dtype)
        completed[0, :, band.rows] = torch.where(hole[band.rows], blended, rows)
    return completed


def _spans(length: int, tile: int, overlap: int) -> list[slice]:
    """The fewest spans of at most `tile` that cover `length` and share at least `overlap`, evenly spread."""
    if length <= tile:
        return [slice(0, length)]
    count = -(-(length - overlap) // (tile - overlap))
    starts = [round(i * (length - tile) / (count - 1)) for i in range(count)]
    return [slice(start, start + tile) for start in starts]


def _ramp(span: slice, before: int, device: torch.device) -> Tensor:
    """The share of each place of `span` against a neighbour that ends at `before`: rising across what they share."""
    places = torch.arange(span.start, span.stop, device=device, dtype=torch.float32)
    shared = before - span.start
    return ((places - span.start + 0.5) / shared).clamp(0, 1) if shared > 0 else torch.ones_like(places)
