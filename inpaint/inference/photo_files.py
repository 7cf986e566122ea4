"""Photos of every kind as arrays that lose nothing, and back into files that lose nothing.

What Pillow would cut down (16 bits per channel in PNG and TIFF) is read and written by other doors. Pixels are upright
in memory and lie in the file as they lay in the source, with its EXIF orientation, metadata and colour profile.
"""

from __future__ import annotations

import io
import logging
import os
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from inpaint.errors import DataError
from inpaint.inference import deep_png, deep_tiff

log = logging.getLogger(__name__)

ORIENTATION = 0x0112  # EXIF tag
DESCRIPTIVE = (0x010E, 0x010F, 0x0110, 0x0112, 0x0131, 0x0132, 0x013B, 0x8298)  # TIFF tags that describe, not lay out
LOSSLESS = {".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP", ".bmp": "BMP"}
LOSSY = {".jpg": "JPEG", ".jpeg": "JPEG"}
KINDS = {
    "PNG": ("L", "LA", "RGB", "RGBA", "1"),
    "TIFF": ("L", "LA", "RGB", "RGBA", "CMYK", "1"),
    "WEBP": ("RGB", "RGBA"),
    "BMP": ("L", "RGB", "1"),
    "JPEG": ("L", "RGB", "CMYK"),
}
CHANNELS = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # of 16-bit photos
DEEP = ("PNG", "TIFF")
LONGEST = {"JPEG": 65_500, "WEBP": 16_383}  # pixels of a side
JPEG_QUALITY = 95
JPEG_START = b"\xff\xd8\xff"
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # rows of a file with this EXIF orientation → upright
    1: lambda rows: rows,
    2: lambda rows: rows[:, ::-1],
    3: lambda rows: rows[::-1, ::-1],
    4: lambda rows: rows[::-1],
    5: lambda rows: rows.swapaxes(0, 1),
    6: lambda rows: np.rot90(rows, -1),
    7: lambda rows: rows[::-1, ::-1].swapaxes(0, 1),
    8: lambda rows: np.rot90(rows, 1),
}
_BACK = {**{orientation: orientation for orientation in range(1, 9)}, 6: 8, 8: 6}  # the turn that undoes another


@dataclass(frozen=True)
class Photo:
    """A photo upright in memory.

    Attributes:
        pixels: [H, W, channels], uint8 or uint16.
        kind: what the channels are: 1 (0 or 255), L, LA, RGB, RGBA or CMYK.
        orientation: EXIF's number for how the file's rows lie; 1 when they lie as in `pixels`.
        kept: what goes into the next file unchanged: `exif` and `icc_profile` bytes, `dpi`.
    """

    pixels: np.ndarray
    kind: str
    orientation: int = 1
    kept: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]

    @property
    def stored_size(self) -> tuple[int, int]:
        """Width and height of the file's own rows, in pixels."""
        return self.size[::-1] if self.orientation >= 5 else self.size

    @property
    def levels(self) -> int:
        """The value of white: 255 or 65535."""
        return int(np.iinfo(self.pixels.dtype).max)

    @property
    def alpha(self) -> bool:
        return self.kind in ("LA", "RGBA")


def read_photo(path: str | Path) -> Photo:
    """A photo file, upright, with every bit of its pixels.

    Palettes become the colours they stand for; everything else keeps its kind.

    Raises:
        DataError: absent, not an image, damaged, animated, or of a kind that cannot be filled.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give the path of a photo") from error
    with warnings.catch_warnings(), any_size():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd but readable metadata
        try:
            return _read(data, path)
        except DataError:
            raise
        except deep_tiff.Unkept as error:
            raise DataError(f"{path}: {error}") from None
        except Exception as error:  # a damaged file can make a decoder raise anything
            raise DataError(f"{path}: not a readable image ({_first_line(error)}); give a whole PNG or JPEG") from error


def write_photo(photo: Photo, path: str | Path, *, lossy: bool = False) -> None:
    """Write a photo whole or not at all, its rows as they lay in the file it came from.

    Args:
        photo: as `read_photo` gave it, its pixels changed.
        path: .png, .tif, .webp or .bmp keep every bit; .jpg does not and must be wanted.
        lossy: allow .jpg.

    Raises:
        DataError: an ending that is unknown or cannot hold this photo, or a folder that cannot be written.
    """
    path = Path(path)
    file_format = output_format(photo, path, lossy=lossy)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        scratch.write_bytes(encode(as_stored(photo, file_format), file_format))
        os.replace(scratch, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error}); choose another place") from error
    except (ValueError, struct.error) as error:
        raise DataError(f"{path}: {file_format} cannot hold this photo ({_first_line(error)}); write .png") from error
    finally:
        scratch.unlink(missing_ok=True)


def output_format(photo: Photo, path: Path, *, lossy: bool) -> str:
    """The file format that `path` asks for, when it can hold the photo.

    Raises:
        DataError: it cannot, or would change known pixels without being told to.
    """
    ending = path.suffix.lower()
    if ending in LOSSY and not lossy:
        raise DataError(
            f"{path}: JPEG cannot keep known pixels bit for bit; write {path.stem}.png, or allow it with --lossy"
        )
    file_format = {**LOSSLESS, **LOSSY}.get(ending)
    if file_format is None:
        raise DataError(f"{path}: unknown ending {ending or '(none)'}; write {path.stem}.png")
    deep = photo.pixels.dtype == np.uint16
    if deep and file_format not in DEEP:
        raise DataError(f"{path}: {file_format} holds 8 bits per channel, the photo has 16; write {path.stem}.png")
    if photo.alpha and not any(kind.endswith("A") for kind in KINDS[file_format]):
        raise DataError(f"{path}: {file_format} has no alpha channel, the photo does; write {path.stem}.png")
    if max(photo.size) > LONGEST.get(file_format, max(photo.size)):
        raise DataError(
            f"{path}: {file_format} holds up to {LONGEST[file_format]} pixels a side, the photo is "
            f"{photo.size[0]}×{photo.size[1]}; write {path.stem}.png"
        )
    return file_format


def holds(file_format: str, kind: str) -> bool:
    """Whether a file format keeps this kind of pixel as it is."""
    return kind in KINDS[file_format]


def as_stored(photo: Photo, file_format: str) -> Photo:
    """The photo with its rows as in the file it came from, where the format can say how they lie."""
    if file_format == "BMP":
        return photo
    return replace(photo, pixels=turned(photo.pixels, _BACK[photo.orientation]))


def turned(rows: np.ndarray, orientation: int) -> np.ndarray:
    """Rows of a file with an EXIF orientation of 1 to 8, upright; [H, W] or [H, W, channels]."""
    return np.ascontiguousarray(_UPRIGHT[orientation](rows))


def encode(photo: Photo, file_format: str) -> bytes:
    """The bytes of a file of a photo whose rows lie as they shall."""
    kept = {key: value for key, value in photo.kept.items() if value is not None}
    if photo.pixels.dtype == np.uint16:
        profile, dpi = kept.get("icc_profile"), kept.get("dpi")
        if file_format == "PNG":
            return deep_png.encode(photo.pixels, exif=kept.get("exif"), icc_profile=profile, dpi=dpi)
        return deep_tiff.encode(photo.pixels, orientation=photo.orientation, icc_profile=profile, dpi=dpi)
    options: dict[str, Any] = {
        "PNG": {}, "TIFF": {"compression": "tiff_lzw"}, "WEBP": {"lossless": True, "exact": True}, "BMP": {},
        "JPEG": {"quality": JPEG_QUALITY, "subsampling": 0},
    }[file_format]  # fmt: skip
    if file_format == "BMP":
        kept = {}
    elif file_format == "TIFF" and "exif" in kept:
        kept["exif"] = _descriptive(_loaded(kept["exif"]))
    buffer = io.BytesIO()
    _image(photo).save(buffer, format=file_format, **options, **kept)
    return buffer.getvalue()


@contextmanager
def any_size() -> Iterator[None]:
    """Lifts Pillow's limit, inside: a file the user names is no decompression bomb."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _read(data: bytes, path: Path) -> Photo:
    deep = deep_tiff.decode(data)
    if deep is not None:
        kept = {**deep.kept, "exif": _telling(deep.orientation, None)}
        return Photo(turned(deep.pixels, deep.orientation), CHANNELS[deep.pixels.shape[2]], deep.orientation, kept)
    with Image.open(io.BytesIO(data)) as image:
        if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # the others in an MPO are previews
            raise DataError(f"{path}: has {image.n_frames} frames; a photo is one still image")
        exif = image.getexif()
        orientation = exif.get(ORIENTATION, 1)
        orientation = orientation if orientation in _UPRIGHT else 1
        own = _own(exif, data) if image.format == "TIFF" else image.info.get("exif")
        kept = {
            "exif": _telling(orientation, _without_previews(own)),
            "icc_profile": image.info.get("icc_profile"),
            "dpi": image.info.get("dpi"),
        }
        if deep_png.is_deep(data):
            pixels = deep_png.decode(data)
            kind = CHANNELS[pixels.shape[2]]
        else:
            pixels, kind = _plain(image, path)
    lying = 1 if image.format == "TIFF" else orientation  # Pillow turns TIFF upright by itself
    return Photo(turned(pixels, lying), kind, orientation, kept)


def _own(exif: Image.Exif, data: bytes) -> bytes:
    """The EXIF that a TIFF's own tags are; of a BigTIFF, whose layout EXIF has no words for, what describes it."""
    return (_descriptive(exif) if data[:4] in deep_tiff.BIG else exif).tobytes()


def _without_previews(exif: bytes | None) -> bytes | None:
    """EXIF without the small pictures that cameras put into it, which would go on showing what was filled."""
    if not exif:
        return None
    try:
        found = _loaded(exif)
        if not found:
            raise ValueError("it has no tags")
        note = found.get_ifd(ExifTags.IFD.Exif).get(ExifTags.IFD.MakerNote, b"")
        if not found.get_ifd(ExifTags.IFD.IFD1) and JPEG_START not in note:
            return exif
        plain = _loaded(exif)  # of which the directory of the thumbnail is not written
        if JPEG_START in note:
            del plain.get_ifd(ExifTags.IFD.Exif)[ExifTags.IFD.MakerNote]
        return plain.tobytes()
    except Exception as error:  # EXIF blocks are written by everything and checked by nothing
        log.warning("EXIF left out, for it cannot be read and may hold a preview: %s", _first_line(error))
        return None


def _telling(orientation: int, exif: bytes | None) -> bytes | None:
    """EXIF that tells how rows lie: some files say so elsewhere."""
    if orientation == 1:
        return exif
    found = _loaded(exif)
    if found.get(ORIENTATION) == orientation:
        return exif
    found[ORIENTATION] = orientation
    return found.tobytes()


def _plain(image: Image.Image, path: Path) -> tuple[np.ndarray, str]:
    """Pixels as Pillow reads them, [H, W, channels], and their kind."""
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    elif image.mode in ("L", "RGB", "1") and "transparency" in image.info:  # one colour that means transparent
        image = image.convert("LA" if image.mode in ("L", "1") else "RGBA")
    if image.mode == "I" or image.mode.startswith("I;16"):
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > 65535:
            raise DataError(f"{path}: has values {levels.min()}..{levels.max()}; expected 0 to 65535. Convert it first")
        pixels, clear = levels.astype(np.uint16)[..., None], image.info.get("transparency")
        return (pixels, "L") if clear is None else (deep_png.with_alpha(pixels, clear), "LA")
    if image.mode == "1":
        return np.asarray(image.convert("L"))[..., None], "1"
    if image.mode not in ("L", "LA", "RGB", "RGBA", "CMYK"):
        raise DataError(f"{path}: mode {image.mode} cannot be filled; convert it to RGB first")
    pixels = np.asarray(image)
    return (pixels if pixels.ndim == 3 else pixels[..., None]), image.mode


def _image(photo: Photo) -> Image.Image:
    pixels = photo.pixels[..., 0] if photo.pixels.shape[2] == 1 else photo.pixels
    if photo.kind == "1":
        return Image.fromarray(np.ascontiguousarray(pixels)).convert("1", dither=Image.Dither.NONE)
    if photo.kind == "CMYK":
        return Image.frombytes("CMYK", (pixels.shape[1], pixels.shape[0]), pixels.tobytes())
    return Image.fromarray(np.ascontiguousarray(pixels))


def _loaded(exif: bytes | None) -> Image.Exif:
    found = Image.Exif()
    if exif:
        found.load(exif)
    return found


def _descriptive(source: Image.Exif) -> Image.Exif:
    """What a TIFF may take over of another file's EXIF: what describes the photo, not how that file was laid out."""
    kept = Image.Exif()
    for tag in DESCRIPTIVE:
        if tag in source:
            kept[tag] = source[tag]
    return kept


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
