"""An image file of any kind as plain 8-bit RGB, or the reason why it cannot be used.

Every file is judged by itself. What can be mended without inventing pixels is mended and noted; the rest is refused
with a short reason. Nothing passes silently: a damaged JPEG that a lenient decoder would fill with grey is refused.
"""

from __future__ import annotations

import io
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import simplejpeg
from PIL import Image, ImageCms

MAX_PIXELS = 100_000_000  # 300 MB decoded; more is a decompression bomb or no photograph
STRAY_BYTES = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9")
HARMLESS_STRAY_BYTES = 16  # some cameras pad the end of the picture; more means that coded pixels were lost
ORIENTATION = 0x0112
BITS_PER_SAMPLE = 258  # TIFF tag
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # EXIF orientation → what makes the picture stand
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).transpose(1, 0, 2),
    8: np.rot90,
}
PLAIN_MODES = ("RGB", "L")
Result = TypeVar("Result")


class Refused(Exception):
    """This file is not used; the text says why."""


@dataclass(frozen=True)
class Picture:
    """A decoded image.

    Attributes:
        pixels: RGB, uint8 [H, W, 3].
        mended: what had to be done to get them, in a few words each; empty for an ordinary file.
        format: of the file, as Pillow names it.
        as_it_is: whether any decoder would read the same pixels from the file's own bytes.
    """

    pixels: np.ndarray
    mended: tuple[str, ...]
    format: str
    as_it_is: bool


def read_picture(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Picture:
    """The pixels of an image file.

    Raises:
        Refused: empty, not an image, corrupt, cut short, animated, transparent, of unknown range, or too large.
    """
    return _judged(lambda: _read(data, max_pixels), data)


def read_size(data: bytes) -> tuple[int, int]:
    """Height and width that `read_picture` would give, from the file's header alone.

    Raises:
        Refused: empty, or not an image.
    """

    def upright() -> tuple[int, int]:
        image = _open(data)
        return (image.width, image.height) if _orientation(image) >= 5 else (image.height, image.width)

    return _judged(upright, data)


def _judged(read: Callable[[], Result], data: bytes) -> Result:
    """What `read` gives, or the reason why the file cannot be used."""
    if not data:
        raise Refused("empty file, or a link inside a tar")
    with _quietly():
        try:
            return read()
        except Refused:
            raise
        except Image.UnidentifiedImageError:
            raise Refused("not an image, or its header is corrupt") from None
        except MemoryError:
            raise Refused("does not fit into memory") from None
        except Exception as error:  # a hostile file can make a decoder raise anything
            raise Refused(f"corrupt or cut short ({_short(error)})") from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Without Pillow's warnings of what is judged elsewhere; in the main thread, for they are held back everywhere."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _read(data: bytes, max_pixels: int) -> Picture:
    image = _open(data)
    if image.width * image.height > max_pixels:
        raise Refused(f"{image.width}x{image.height} is more than {max_pixels / 1e6:g} million pixels")
    if getattr(image, "is_animated", False) and image.format != "MPO":  # the others in an MPO are previews
        raise Refused(f"animated or of several pages ({getattr(image, 'n_frames', 2)} frames)")
    file_format = "JPEG" if image.format == "MPO" else str(image.format)
    mended: list[str] = []
    deep, mode, orientation = _is_deep(image, data), image.mode, _orientation(image)
    strict = _decode_jpeg(data, mode, mended) if file_format == "JPEG" else None
    pixels = np.asarray(_to_rgb(image, mended)) if strict is None else strict
    if orientation != 1:
        pixels = np.ascontiguousarray(UPRIGHT[orientation](pixels))
        mended.append("turned upright by its EXIF orientation")
    if deep:
        mended.append("16 bits to 8")
    return Picture(pixels, tuple(mended), file_format, as_it_is=not mended and mode in PLAIN_MODES)


def _open(data: bytes) -> Image.Image:
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # the limit here is ours, and it is not a warning
    try:
        return Image.open(io.BytesIO(data))
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _decode_jpeg(data: bytes, mode: str, mended: list[str]) -> np.ndarray | None:
    """RGB pixels of a JPEG that libjpeg itself calls sound; None for CMYK, which is only looked through.

    Raises:
        Refused: what libjpeg calls corrupt, although lenient readers let it pass.
    """
    space = "CMYK" if mode == "CMYK" else "RGB"
    try:
        pixels = simplejpeg.decode_jpeg(data, space)
    except ValueError as error:
        stray = STRAY_BYTES.search(str(error))
        if stray is None or int(stray.group(1)) > HARMLESS_STRAY_BYTES:
            raise Refused(f"corrupt or cut short ({_short(error)})") from error
        mended.append("stray bytes at the end left out")
        pixels = simplejpeg.decode_jpeg(data, space, strict=False)
    return pixels if space == "RGB" else None


def _to_rgb(image: Image.Image, mended: list[str]) -> Image.Image:
    if image.mode == "RGB":
        _refuse_transparent(image, mended)
        return image
    if image.mode == "CMYK":
        mended.append("CMYK to RGB")
        return _from_cmyk(image)
    if image.mode.startswith("I;16"):
        levels = (np.asarray(image).astype(np.uint32) * 255 + 32767) // 65535
        return Image.fromarray(levels.astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise Refused(f"{image.mode} pixels of unknown range (32 bits)")
    if image.mode == "P":
        mended.append("palette to RGB")
    elif image.mode not in ("L", "1", "LA", "PA", "RGBA", "RGBa", "La"):
        mended.append(f"{image.mode} to RGB")
    _refuse_transparent(image, mended)
    return image.convert("RGB")


def _refuse_transparent(image: Image.Image, mended: list[str]) -> None:
    """Opaque alpha is left out; behind transparent pixels there is no true colour to learn."""
    if not image.has_transparency_data:
        return
    alpha = np.asarray(image.convert("RGBA").getchannel("A"))
    if alpha.min() < 255:
        raise Refused(f"transparent pixels ({float((alpha < 255).mean()):.1%}); flatten it first")
    mended.append("opaque alpha left out")


def _from_cmyk(image: Image.Image) -> Image.Image:
    """Through the file's own colour profile where there is a usable one."""
    profile = image.info.get("icc_profile")
    if profile:
        try:
            target = ImageCms.createProfile("sRGB")
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
            if converted is not None:
                return converted
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass  # a broken profile; the plain conversion is what every viewer shows then
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # EXIF blocks are written by everything and checked by nothing
        return 1
    return value if value in range(1, 9) else 1


def _is_deep(image: Image.Image, data: bytes) -> bool:
    """Whether the file has 16 bits per channel."""
    if image.mode.startswith("I;16"):
        return True
    if image.format == "PNG":
        return data[24] == 16
    bits = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (8,))
    return any(b == 16 for b in (bits if isinstance(bits, tuple) else (bits,)))


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 100 else text[:97] + "..."
