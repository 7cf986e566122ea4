"""From the bytes of an image file to square RGB pixels, the one step of loading that costs real work.

A JPEG goes through simplejpeg, straight into the row of a batch when its size fits; other formats, and what EXIF turns,
go through PIL as in an evaluation (torchvision's decoders are deprecated and warn). What is not square is cropped to
its largest square and scaled to the wanted size with an antialiased bicubic filter. A JPEG at least twice as large as
wanted may be decoded at 1/2, 1/4 or 1/8 of its size (`dct_scaling`, the default), which skips most of the inverse DCT
and leaves less to filter. On photographs of 512 to 1024 pixels the result lies 43 to 47 dB from the full decoding with
the same filter, keeps 96 to 105 % of its gradients, and lies 40 to 42 dB from a Lanczos reduction of the original where
full decoding lies 43 to 45 (`inpaint bench stream` measures it again).

`fast` decoding uses the approximate inverse DCT and repeats colour samples where the exact one interpolates them: 42
dB, or 1.3 of 255 levels, from the exact one, which gives the same pixels as PIL, bit for bit.
"""

from __future__ import annotations

import io
import threading
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError

try:
    import simplejpeg
except ImportError:  # PIL decodes then, at about twice the cost and always at full size
    simplejpeg = None

JPEG = b"\xff\xd8\xff"
EXIF, ORIENTATION = b"Exif\0\0", 0x0112
HEAD_BYTES = 64  # of a JPEG, in which its EXIF begins
SCALES = (8, 4, 2)  # the divisors with a vectorised inverse DCT; other eighths cost more than they save


class UndecodableImage(Exception):
    """The bytes are no image that can be read, or a damaged one."""


@dataclass(frozen=True)
class Decoder:
    """Decodes to [size, size, 3] uint8.

    Attributes:
        size: side of the result in pixels.
        fast_dct: the approximate inverse DCT.
        repeat_colours: repeat the samples of halved colour planes instead of interpolating them.
        dct_scaling: decode large JPEGs at a fraction of their size.
        crop_share: side of the square that is looked at, of the shorter side.
    """

    size: int
    fast_dct: bool
    repeat_colours: bool
    dct_scaling: bool
    crop_share: float = 1.0

    def into(self, row: np.ndarray, data: bytes | memoryview, across: float, down: float) -> bool:
        """Decode one image into a row of a batch.

        Args:
            row: [size, size, 3] uint8, contiguous.
            across, down: where the square lies in the image, from 0 (left, top) to 1.

        Returns:
            Whether the square is the whole image, so that `across` and `down` had nothing to choose.

        Raises:
            UndecodableImage: with the decoder's reason.
        """
        head = bytes(data[:HEAD_BYTES])
        exif = head.find(EXIF)
        if simplejpeg is None or not head.startswith(JPEG) or (exif > 0 and _is_turned(data, exif)):
            return self._place(row, _read(data), across, down)
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            if colours in ("CMYK", "YCCK"):
                return self._place(row, _read(data), across, down)
            if height == width == self.size and self.crop_share == 1:
                simplejpeg.decode_jpeg(data, "RGB", self.fast_dct, self.repeat_colours, buffer=row)
                return True
            divisor = self._divisor(self._side(height, width))
            image = simplejpeg.decode_jpeg(
                data, "RGB", self.fast_dct, self.repeat_colours, -(-height // divisor), -(-width // divisor),
                buffer=_scratch(height * width * 3),
            )  # fmt: skip
        except ValueError as error:
            raise UndecodableImage(str(error)) from error
        exact = min(height, width) / divisor if self.crop_share == 1 else None
        return self._place(row, image, across, down, side=exact)

    def _divisor(self, side: int) -> int:
        if not self.dct_scaling:
            return 1
        return next((divisor for divisor in SCALES if -(-side // divisor) >= self.size), 1)

    def _place(self, row: np.ndarray, image: np.ndarray, across: float, down: float, side: float | None = None) -> bool:
        """Crop the square and scale it into the row; `side` is the exact shorter side of an image that is not whole."""
        height, width = image.shape[:2]
        whole = self._side(height, width)
        left, top = round(across * (width - whole)), round(down * (height - whole))
        square = image[top : top + whole, left : left + whole]
        row[:] = square if whole == self.size else resize(square, self.size, side=side)
        return height == width == whole

    def _side(self, height: int, width: int) -> int:
        """Of the square that is looked at."""
        return max(round(min(height, width) * self.crop_share), 1)


def resize(image: np.ndarray, size: int, *, side: float | None = None) -> np.ndarray:
    """[H, W, 3] uint8 as [size, size, 3], antialiased bicubic; the pixels that PIL gives.

    Args:
        side: extent of the image in its own pixels when the last row and column are only partly filled.
    """
    pixels = torch.from_numpy(image)[None].permute(0, 3, 1, 2)  # the batch first: torch keeps a layout that it knows
    exact = {"size": (size, size)} if side is None or side == int(side) else {"scale_factor": size / side}
    scaled = F.interpolate(pixels, **exact, mode="bicubic", antialias=True)
    return scaled[0].permute(1, 2, 0).numpy()


def _is_turned(data: bytes | memoryview, place: int) -> bool:
    """Whether the EXIF at `place` in a JPEG says that its rows are not shown as they lie."""
    length = int.from_bytes(data[place - 2 : place], "big") - 2
    found = Image.Exif()
    try:
        found.load(bytes(data[place : place + length]))
        return found.get(ORIENTATION, 1) in range(2, 9)
    except Exception:  # EXIF blocks are written by everything and checked by nothing
        return False


def _read(data: bytes | memoryview) -> np.ndarray:
    """The pixels of an image file of any kind: those that an evaluation sees, which refuses what is transparent."""
    if simplejpeg is None:
        return _decode_with_pil(data)
    from inpaint.data.pictures import Refused, read_picture

    try:
        return np.array(read_picture(bytes(data)).pixels)
    except Refused as reason:
        raise UndecodableImage(str(reason)) from None


def _decode_with_pil(data: bytes | memoryview) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except UnidentifiedImageError:
        raise UndecodableImage("empty file" if not len(data) else "not an image in a known format") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UndecodableImage(str(error)) from error


def before_vectors(address: int) -> int:
    """How many bytes to leave out from `address` on, so that what is left begins 16 bytes past a multiple of 32.

    Where rows begin at multiples of 32, libjpeg-turbo's AVX2 colour conversion writes them past the caches: decoding a
    picture of 256 pixels then costs 8 to 10 % more.
    """
    return (16 - address) % 32


_local = threading.local()


def _scratch(length: int) -> np.ndarray:
    """This thread's buffer of at least `length` bytes."""
    buffer = getattr(_local, "buffer", None)
    if buffer is None or len(buffer) < length:
        memory = np.empty(length + 32, np.uint8)
        buffer = _local.buffer = memory[before_vectors(memory.ctypes.data) :]
    return buffer
