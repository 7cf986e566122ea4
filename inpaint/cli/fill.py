"""`inpaint fill PHOTO MASK -o OUT`: fill the hole of one photo, or of a folder of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from inpaint.errors import DataError, InpaintError

PHOTOS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".gif")


def register(app: typer.Typer) -> None:
    app.command("fill")(fill)


def fill(
    photo: Annotated[Path, typer.Argument(help="A photo of any size and kind, or a folder of them.")],
    mask: Annotated[Path, typer.Argument(help="A mask of the photo's size; or a folder, matched by file name.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write (.png keeps every bit); or a folder.")],
    run: Annotated[str | None, typer.Option(help="A run's name, URL or folder; its newest checkpoint fills.")] = None,
    root: Annotated[str | None, typer.Option(help="Where runs lie; INPAINT_ROOT or ./inpaint-root otherwise.")] = None,
    checkpoint: Annotated[str | None, typer.Option(help="A checkpoint's URL or folder, pulled or not.")] = None,
    progressive: Annotated[bool, typer.Option("--progressive", help="Fill large holes in rings.")] = False,
    hole: Annotated[str, typer.Option(help="Which value of the mask means hole: white or black.")] = "white",
    lossy: Annotated[bool, typer.Option("--lossy", help="Allow .jpg, which changes known pixels a little.")] = False,
    tile: Annotated[int | None, typer.Option(min=64, help="Longest side filled in one piece, in pixels.")] = None,
    bf16: Annotated[bool, typer.Option("--bf16", help="Draw in bf16: about twice as fast, nearly the same.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; cuda when there is one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON, one object per photo.")] = False,
) -> None:
    """Fill the hole of a photo; what lies outside it is kept bit for bit.

    inpaint fill photo.jpg mask.png -o filled.png --run ./inpaint-root/runs/tiny
    """
    if (run is None) == (checkpoint is None):
        raise DataError("fill needs --run RUN or --checkpoint PATH, not both; `inpaint checkpoints RUN` lists them")
    if hole not in ("white", "black"):
        raise DataError(f"--hole {hole}: expected white or black")
    jobs = pair_up(photo, mask, out)
    for *given, its_out in jobs:
        if its_out.resolve() in [path.resolve() for path in given]:
            raise DataError(f"{its_out} would be written over what is read; give another --out")

    import torch

    from inpaint.checkpoints import load_method, run_url
    from inpaint.inference import fill_photo, prepare
    from inpaint.inference.filling import OVERLAP

    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(place)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError) as error:
        raise DataError(f"--device {place}: {str(error).splitlines()[0]}; leave it out to take what is there") from None
    source = checkpoint or run_url(run, root=root)
    method = prepare(load_method(source, target), precision="bfloat16" if bf16 else "float32")
    if tile and method.config.hole_shapes == "centre":
        raise DataError(f"--tile {tile}: this method fills its one square at once; leave it out")
    tiles = {"tile": tile, "overlap": min(OVERLAP, tile // 2)} if tile else {}
    failed = 0
    for one, its_mask, its_out in jobs:
        try:
            filled = fill_photo(
                method, one, its_mask, its_out, hole=hole, progressive=progressive, lossy=lossy, **tiles
            )
        except InpaintError as error:
            if len(jobs) == 1:
                raise
            failed += 1
            print(f"inpaint: {error}", file=sys.stderr)
            continue
        if filled.blind_tiles:
            print(
                f"inpaint: {one}: tiles wholly in the hole, drawn without a known pixel: {filled.blind_tiles}; raise "
                "--tile, or fill a smaller copy",
                file=sys.stderr,
            )
        if as_json:
            print(json.dumps(vars(filled)))
        else:
            print(f"{filled.out}: {filled.width}x{filled.height}, {filled.hole_ratio:.1%} filled", file=sys.stderr)
    if failed:
        raise DataError(f"{failed} of {len(jobs)} photos were not filled; the reasons are above")


def pair_up(photo: Path, mask: Path, out: Path) -> list[tuple[Path, Path, Path]]:
    """(photo, mask, file to write) for one photo, or for each in a folder.

    Raises:
        DataError: nothing there, a photo without a mask of its name, or two photos that would be written to one file.
    """
    if not photo.is_dir():
        if mask.is_dir():
            mask = _mask_of(photo, _by_name(mask), mask)
        return [(photo, mask, out / f"{photo.stem}.png" if out.is_dir() else out)]
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file; a folder of photos needs a folder to go to")
    photos = sorted(path for path in photo.iterdir() if path.suffix.lower() in PHOTOS)
    if not photos:
        raise DataError(f"{photo}: no photos here; expected files ending in {', '.join(PHOTOS)}")
    masks = _by_name(mask) if mask.is_dir() else {}
    jobs = [(one, _mask_of(one, masks, mask) if mask.is_dir() else mask, out / f"{one.stem}.png") for one in photos]
    if len({job[2] for job in jobs}) < len(jobs):
        raise DataError(f"{photo}: photos that differ only in their ending would be written to one file; rename them")
    out.mkdir(parents=True, exist_ok=True)
    return jobs


def _by_name(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in PHOTOS}


def _mask_of(photo: Path, masks: dict[str, Path], folder: Path) -> Path:
    if photo.stem not in masks:
        raise DataError(f"{folder}: no mask named {photo.stem} for {photo}; a mask has its photo's name")
    return masks[photo.stem]
