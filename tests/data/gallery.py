"""Awkward image files, made here: what a large data set throws at a reader."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image


def scene(width: int = 48, height: int = 32, *, seed: int = 0) -> np.ndarray:
    """A smooth colourful picture, RGB uint8 [height, width, 3]."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def save(image: Image.Image | np.ndarray, kind: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def turned(orientation: int) -> bytes:
    """A JPEG whose EXIF says how a viewer must turn it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return save(scene(), exif=exif, quality=95)


def damaged_inside() -> bytes:
    """A JPEG that lacks a piece of its coded pixels; lenient readers fill the rest with grey."""
    data = save(scene(128, 128), quality=95)
    middle = len(data) // 2
    return data[:middle] + data[middle + 300 :]


def deep_png(colour: bool) -> bytes:
    """A PNG of 16 bits per channel, 8x4, whose levels are 0, 32768 and 65535 from left to right."""
    levels = [0, 0, 32768, 32768, 65535, 65535, 65535, 65535]
    row = b"\x00" + b"".join(struct.pack(">H", level) * (3 if colour else 1) for level in levels)

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", 8, 4, 16, 2 if colour else 0, 0, 0, 0)
    body = zlib.compress(row * 4)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def bomb() -> bytes:
    """A PNG of a few hundred bytes that says it has 900 million pixels."""
    data = bytearray(save(np.zeros((4, 4), np.uint8), "PNG"))
    data[16:24] = struct.pack(">II", 30_000, 30_000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


def with_alpha(level: int) -> Image.Image:
    image = Image.fromarray(scene()).convert("RGBA")
    image.putalpha(Image.new("L", image.size, 255))
    image.paste((9, 9, 9, level), (0, 0, 12, 32))
    return image


def animation(kind: str) -> bytes:
    frames = [Image.fromarray(scene(seed=seed)) for seed in range(3)]
    return save(frames[0], kind, save_all=True, append_images=frames[1:])


GOOD = {
    "plain.jpg": save(scene(), quality=95),
    "grey.jpg": save(Image.fromarray(scene()).convert("L"), quality=95),
    "progressive.jpg": save(scene(seed=2), quality=95, progressive=True),
    "plain.png": save(scene(seed=3), "PNG"),
    "plain.webp": save(scene(seed=4), "WEBP", lossless=True),
    "plain.bmp": save(scene(seed=5), "BMP"),
    "wrong_ending.png": save(scene(seed=6), quality=95),
}

MENDED = {  # and what is done about them
    "cmyk.jpg": (save(Image.fromarray(scene()).convert("CMYK"), quality=95), "CMYK to RGB"),
    "turned.jpg": (turned(6), "turned upright by its EXIF orientation"),
    "opaque.png": (save(with_alpha(255), "PNG"), "opaque alpha left out"),
    "palette.png": (save(Image.fromarray(scene()).quantize(16), "PNG"), "palette to RGB"),
    "deep_grey.png": (deep_png(colour=False), "16 bits to 8"),
    "deep_colour.png": (deep_png(colour=True), "16 bits to 8"),
    "stray.jpg": (save(scene())[:-2] + b"\x11" * 12 + b"\xff\xd9", "stray bytes at the end left out"),
    "still.gif": (save(Image.fromarray(scene()).quantize(16), "GIF"), "palette to RGB"),
}

REFUSED = {  # and a word of the reason
    "empty.jpg": (b"", "empty file"),
    "page.jpg": (b"<html>404 not found</html>" * 20, "not an image"),
    "cut.jpg": (save(scene(128, 128), quality=95)[:2000], "cut short"),
    "cut_at_the_end.jpg": (save(scene(128, 128), quality=95)[:-2], "cut short"),
    "damaged.jpg": (damaged_inside(), "corrupt"),
    "cut.png": (save(scene(128, 128), "PNG")[:-600], "cut short"),
    "animated.gif": (animation("GIF"), "3 frames"),
    "animated.webp": (animation("WEBP"), "3 frames"),
    "animated.png": (animation("PNG"), "3 frames"),
    "pages.tif": (animation("TIFF"), "3 frames"),
    "bomb.png": (bomb(), "30000x30000"),
    "clear.png": (save(with_alpha(0), "PNG"), "transparent pixels (25.0%)"),
    "float.tif": (save(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8), "TIFF"), "unknown range"),
}


def write_gallery(folder) -> None:
    """Every file above, in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in GOOD.items():
        (folder / name).write_bytes(data)
    for name, (data, _) in (MENDED | REFUSED).items():
        (folder / name).write_bytes(data)
