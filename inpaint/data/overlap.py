"""Exact and near duplicates between two shard sets, so that nothing is tested on what it was trained on.

A picture's fingerprint comes from the luma of its centred square, reduced to 32x32: 64 signs of its lowest spatial
frequencies (a perceptual hash in the manner of pHash), and a 16x16 thumbnail. Saving, resizing and brightening change
few of the signs. Aligned faces share many, so pairs that the hash proposes must also agree as thumbnails. Mirrored
copies count: training mirrors its images. Of copies that lost 2 % at every side five in six are found, of those that
lost 4 % one in four.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass

import numpy as np
import simplejpeg
from PIL import Image

from inpaint import storage
from inpaint.data.checking import local_shard, shard_images
from inpaint.data.index import Index, load_index
from inpaint.errors import DataError, StorageError

LUMA = 32  # side of the reduced luma
SIGNS = 8  # side of the block of low frequencies
THUMBNAIL = 16
MOST_SIGNS = 10  # of 64 that may differ
LEAST_CORRELATION = 0.95  # of the thumbnails; no two of 227,000 pairs of other aligned faces reach 0.93
FLAT = 2.0  # levels of standard deviation below which a picture has no features to compare
BLOCK = 2048  # pictures of one set compared at a time
THREADS = 4
VERSION = 2  # of the fingerprint and of what counts as the same

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Pair:
    """Two samples that show the same picture.

    Attributes:
        signs: how many of 64 differ.
        exact: they are the same bytes.
        mirrored: one is the other's mirror image.
    """

    first: str
    second: str
    signs: int
    exact: bool
    mirrored: bool


@dataclass(frozen=True)
class Overlap:
    """The duplicates between two sets.

    Attributes:
        first, second: digests of the sets' indices.
        images: in each set.
        pairs: sorted, exact ones first.
        in_first, in_second: how many samples of each set have a duplicate in the other.
    """

    first: str
    second: str
    images: tuple[int, int]
    pairs: tuple[Pair, ...]
    in_first: int
    in_second: int

    @property
    def exact(self) -> int:
        """Pairs of the same bytes."""
        return sum(pair.exact for pair in self.pairs)


@dataclass(frozen=True, eq=False)
class Fingerprints:
    """Of a set's samples, in its order.

    Attributes:
        signs, mirrored: 64 signs as a number, of the picture and of its mirror image, [N] uint64.
        thumbnails: [N, 16, 16] uint8.
    """

    signs: np.ndarray
    mirrored: np.ndarray
    thumbnails: np.ndarray


def check_overlap(
    first_url: str,
    second_url: str,
    *,
    planned: Progress = lambda images: None,
    progress: Progress = lambda images: None,
) -> Overlap:
    """The duplicates between two sets; the result is kept beside the first under both digests.

    Raises:
        DataError: one of them is not a whole set, or an image in it cannot be decoded.
    """
    first, second = load_index(first_url), load_index(second_url)
    place = storage.join(first_url, "overlap", f"{first.digest[:16]}-{second.digest[:16]}-v{VERSION}.json")
    known = _kept(place)
    if known is not None:
        return known
    planned(len(first) + len(second))
    found = _compare(first, fingerprints(first, progress=progress), second, fingerprints(second, progress=progress))
    _keep(place, json.dumps(asdict(found), indent=1).encode())
    return found


def fingerprints(index: Index, *, progress: Progress = lambda images: None) -> Fingerprints:
    """The fingerprint of every image of a set, made shard by shard; kept beside it under its digest."""
    place = storage.join(index.url, "overlap", f"{index.digest[:16]}-v{VERSION}.npz")
    with suppress(StorageError, ValueError, KeyError, OSError):
        kept = np.load(io.BytesIO(storage.read_bytes(place)), allow_pickle=False)
        if len(kept["signs"]) == len(index):
            progress(len(index))
            return Fingerprints(**kept)

    def of_shard(number: int) -> Fingerprints:
        with local_shard(index.shard_url(number)) as path:
            images = shard_images(index, number, path)
            lumas = [_luma(data, f"{index.url}: sample {index.key(row)}") for row, data in images]
        progress(len(lumas))
        return fingerprint(np.stack(lumas) if lumas else np.empty((0, LUMA, LUMA), np.uint8))

    with ThreadPoolExecutor(THREADS) as pool:
        shards = list(pool.map(of_shard, range(len(index.shards))))
    found = Fingerprints(
        np.concatenate([shard.signs for shard in shards]),
        np.concatenate([shard.mirrored for shard in shards]),
        np.concatenate([shard.thumbnails for shard in shards]),
    )
    file = io.BytesIO()
    np.savez(file, signs=found.signs, mirrored=found.mirrored, thumbnails=found.thumbnails)
    _keep(place, file.getvalue())
    return found


def fingerprint(lumas: np.ndarray) -> Fingerprints:
    """Fingerprints of reduced lumas, [N, 32, 32] uint8."""
    side = LUMA // THUMBNAIL
    thumbnails = lumas.reshape(-1, THUMBNAIL, side, THUMBNAIL, side).mean(axis=(2, 4)).round().astype(np.uint8)
    return Fingerprints(_signs(lumas), _signs(lumas[:, :, ::-1]), thumbnails)


def _signs(lumas: np.ndarray) -> np.ndarray:
    """Which of the low frequencies lie above their median, as bits; the mean brightness is left out."""
    low = (_cosines() @ lumas.astype(np.float32) @ _cosines().T).reshape(-1, SIGNS * SIGNS)
    above = low > np.median(low[:, 1:], axis=1, keepdims=True)
    above[:, 0] = False
    return np.packbits(above, axis=1).view(">u8").astype(np.uint64)[:, 0]


def reduced_luma(data: bytes) -> np.ndarray:
    """The luma of an image file's centred square, uint8 [32, 32]."""
    if simplejpeg.is_jpeg(data):
        grey = simplejpeg.decode_jpeg(data, "GRAY", min_height=2 * LUMA, min_width=2 * LUMA, strict=False)[:, :, 0]
        image = Image.fromarray(grey)
    else:
        image = Image.open(io.BytesIO(data)).convert("RGB").convert("L")
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((LUMA, LUMA), Image.Resampling.BOX, box=box))


def _luma(data: bytes, place: str) -> np.ndarray:
    try:
        return reduced_luma(data)
    except (ValueError, OSError, SyntaxError) as error:
        raise DataError(f"{place} cannot be decoded ({error}); `shards verify --decode` lists all such") from error


def _cosines() -> np.ndarray:
    """The first eight rows of the 32-point cosine transform, [8, 32]."""
    frequency, position = np.arange(SIGNS)[:, None], np.arange(LUMA)[None] + 0.5
    return np.cos(math.pi / LUMA * frequency * position).astype(np.float32)


def _compare(first: Index, ours: Fingerprints, second: Index, theirs: Fingerprints) -> Overlap:
    pairs = []
    for mirrored in (False, True):
        thumbnails = theirs.thumbnails[:, :, ::-1] if mirrored else theirs.thumbnails
        for i, j, signs in _near(ours.signs, theirs.mirrored if mirrored else theirs.signs):
            exact = bool(first.crc32[i] == second.crc32[j] and first.length[i] == second.length[j])
            if (exact and not mirrored) or _agree(ours.thumbnails[i], thumbnails[j]):
                pairs.append((Pair(first.key(i), second.key(j), signs, exact, mirrored), i, j))
    pairs = list({(i, j): (pair, i, j) for pair, i, j in reversed(pairs)}.values())  # a symmetric picture counts once
    listed = tuple(sorted((pair for pair, _, _ in pairs), key=lambda p: (not p.exact, p.signs, p.first, p.second)))
    return Overlap(
        first.digest,
        second.digest,
        (len(first), len(second)),
        listed,
        in_first=len({i for _, i, _ in pairs}),
        in_second=len({j for _, _, j in pairs}),
    )


def _near(ours: np.ndarray, theirs: np.ndarray) -> list[tuple[int, int, int]]:
    """(i, j, signs that differ) of the pairs that differ in at most `MOST_SIGNS`, every one against every one."""

    def block(start: int) -> list[tuple[int, int, int]]:
        found = []
        for i in range(start, min(start + BLOCK, len(ours))):
            differ = np.bitwise_count(theirs ^ ours[i])
            near = np.flatnonzero(differ <= MOST_SIGNS)
            found += [(i, int(j), int(differ[j])) for j in near]
        return found

    with ThreadPoolExecutor(THREADS) as pool:
        blocks = pool.map(block, range(0, len(ours), BLOCK))
        return [pair for found in blocks for pair in found]


def _agree(first: np.ndarray, second: np.ndarray) -> bool:
    a, b = first - first.mean(), second - second.mean()
    spread = float(a.std()) * float(b.std())
    return min(a.std(), b.std()) >= FLAT and float((a * b).mean()) >= LEAST_CORRELATION * spread


def _kept(place: str) -> Overlap | None:
    try:
        known = json.loads(storage.read_bytes(place))
        pairs = tuple(Pair(**pair) for pair in known["pairs"])
        return Overlap(**(known | {"pairs": pairs, "images": tuple(known["images"])}))
    except (StorageError, ValueError, KeyError, TypeError):
        return None


def _keep(place: str, data: bytes) -> None:
    with suppress(StorageError):  # a set that cannot be written to is compared anew each time
        storage.write_bytes(place, data)
