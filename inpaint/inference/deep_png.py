"""PNG with 16 bits per channel, which Pillow cuts down to 8 when there is more than one.

Source: W3C, Portable Network Graphics, third edition (chunks, filter types, eXIf, iCCP).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # by number of channels: grey, grey + alpha, RGB, RGBA
BIT_DEPTH, COLOUR_TYPE = 24, 25  # offsets in the file
METRES_PER_INCH = 0.0254
UP = 2  # filter: difference from the row above


def is_deep(data: bytes) -> bool:
    """Whether these are the bytes of a PNG of 16 bits with more than one channel."""
    return data[:8] == SIGNATURE and len(data) > COLOUR_TYPE and data[BIT_DEPTH] == 16 and data[COLOUR_TYPE] != 0


def decode(data: bytes) -> np.ndarray:
    """The pixels of a 16-bit PNG, uint16 [H, W, channels]; a colour that means transparent becomes an alpha channel.

    Raises:
        ValueError: the file is damaged, or interlaced.
    """
    chunks = list(_chunks(data))
    width, height, _, colour_type, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[0][1])
    if interlaced:
        raise ValueError("an interlaced PNG of 16 bits; save it without interlacing")
    channels = {colour: count for count, colour in COLOUR_TYPES.items()}[colour_type]
    try:
        packed = zlib.decompress(b"".join(body for name, body in chunks if name == b"IDAT"))
    except zlib.error as error:
        raise ValueError(f"damaged pixel data: {error}") from None
    rows = np.frombuffer(packed, np.uint8)
    if rows.size != height * (1 + 2 * channels * width):
        raise ValueError(f"{rows.size} bytes of pixels for {width}x{height}")
    rows = rows.reshape(height, -1)
    pixels = _unfiltered(rows[:, 0], rows[:, 1:].reshape(height, width, 2 * channels))
    values = pixels.view(">u2").astype(np.uint16)
    clear = next((np.frombuffer(body, ">u2") for name, body in chunks if name == b"tRNS"), None)
    return values if clear is None else with_alpha(values, clear)


def with_alpha(pixels: np.ndarray, clear: np.ndarray | int) -> np.ndarray:
    """uint16 [H, W, channels] with a channel of alpha: 0 where a pixel has the colour `clear`, else 65535."""
    opaque = (pixels != clear).any(axis=2, keepdims=True)
    return np.concatenate([pixels, opaque * np.uint16(65535)], axis=2)


def encode(
    pixels: np.ndarray,
    *,
    exif: bytes | None = None,
    icc_profile: bytes | None = None,
    dpi: tuple[float, float] | None = None,
) -> bytes:
    """A PNG file of uint16 [H, W, channels], 1 to 4 channels."""
    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, COLOUR_TYPES[channels], 0, 0, 0)
    parts = [SIGNATURE, _chunk(b"IHDR", header)]
    if icc_profile:
        parts.append(_chunk(b"iCCP", b"icc\0\0" + zlib.compress(icc_profile)))
    if dpi:
        parts.append(_chunk(b"pHYs", struct.pack(">IIB", *(round(dots / METRES_PER_INCH) for dots in dpi), 1)))
    if exif:
        parts.append(_chunk(b"eXIf", exif.removeprefix(b"Exif\0\0")))
    parts += [_chunk(b"IDAT", _rows(pixels)), _chunk(b"IEND", b"")]
    return b"".join(parts)


def _unfiltered(filters: np.ndarray, coded: np.ndarray) -> np.ndarray:
    """Bytes of pixels, [H, W, bytes], from differences and each row's filter.

    A pixel needs its left, upper and upper-left neighbours, so all pixels of an antidiagonal are had at once.
    """
    height, width, _ = coded.shape
    out = np.zeros((height + 1, width + 1, coded.shape[2]), np.uint8)
    for diagonal in range(height + width - 1):
        row = np.arange(max(0, diagonal - width + 1), min(height, diagonal + 1))
        column = diagonal - row
        left, up, corner = (out[row + a, column + b].astype(np.int16) for a, b in ((1, 0), (0, 1), (0, 0)))
        kind = filters[row][:, None]
        guess = np.select(
            [kind == 1, kind == 2, kind == 3, kind == 4], [left, up, (left + up) // 2, _paeth(left, up, corner)], 0
        )
        out[row + 1, column + 1] = coded[row, column] + guess.astype(np.uint8)
    return np.ascontiguousarray(out[1:, 1:])


def _paeth(left: np.ndarray, up: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """Whichever neighbour is nearest to left + up - corner; ties go to left, then up."""
    to_left, to_up, to_corner = np.abs(up - corner), np.abs(left - corner), np.abs(left + up - 2 * corner)
    return np.where((to_left <= to_up) & (to_left <= to_corner), left, np.where(to_up <= to_corner, up, corner))


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and body of each chunk.

    Raises:
        ValueError: a chunk is cut short or its checksum is wrong.
    """
    place, name = len(SIGNATURE), b""
    while name != b"IEND":
        if place + 12 > len(data):
            raise ValueError("the file is cut short")
        length, name = struct.unpack(">I4s", data[place : place + 8])
        body, check = data[place + 8 : place + 8 + length], data[place + 8 + length : place + 12 + length]
        if len(body) < length or check != struct.pack(">I", zlib.crc32(name + body)):
            raise ValueError(f"chunk {name.decode('latin1')} is damaged or cut short")
        yield name, body
        place += 12 + length


def _rows(pixels: np.ndarray) -> bytes:
    """All rows, each as the difference of its bytes from the row above, compressed."""
    rows = np.ascontiguousarray(pixels.astype(">u2")).view(np.uint8).reshape(pixels.shape[0], -1)
    packer = zlib.compressobj(6)
    above, parts = np.zeros_like(rows[0]), []
    for row in rows:
        parts.append(packer.compress(bytes([UP]) + (row - above).tobytes()))
        above = row
    return b"".join([*parts, packer.flush()])


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
