"""A set of mask files as packed bits in memory, chosen from by hole ratio."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inpaint import archives
from inpaint.archives import Entry
from inpaint.config.holes import MaskSetHoles
from inpaint.errors import DataError
from inpaint.masks.files import Polarity, Threshold, load_mask
from inpaint.masks.ratios import Ratio

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")
EVERY_RATIO: Ratio = (0.0, 1.0)
BORDER_CUE = 0.02  # by which the border is more often hole; -0.03 to -0.21 in seven sets of true polarity
FEW = 5  # masks, of which the border alone is no evidence
READERS = 4  # threads; decoding a mask file releases the interpreter


@dataclass(frozen=True)
class MaskSet:
    """Masks of one size.

    Attributes:
        names: of the files, sorted.
        packed: eight pixels to a byte, [N, ceil(size² / 8)].
        ratios: exact hole ratio of each mask at this size, [N].
        borders: share of the pixels near the image's border (a thirty-second of the side) that are hole, [N].
        size: pixels of both sides.
        sha256: digest of names, pixels and size; the same masks have the same one, wherever they were read from.
    """

    names: tuple[str, ...]
    packed: np.ndarray
    ratios: np.ndarray
    borders: np.ndarray
    size: int
    sha256: str

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> np.ndarray:
        """Mask `index`, uint8 [size, size], 1 = hole."""
        bits = np.unpackbits(self.packed[index], count=self.size * self.size)
        return bits.reshape(self.size, self.size)

    def inside(self, ratio: Ratio) -> np.ndarray:
        """Indices of the masks whose ratio lies in the bin (low, high]; never one that is all known or all hole."""
        return np.nonzero((self.ratios > ratio[0]) & (self.ratios <= ratio[1]) & (self.ratios < 1))[0]


def load_mask_set(
    url: str, *, hole: Polarity, threshold: Threshold, size: int, ratio: Ratio = EVERY_RATIO
) -> MaskSet:
    """Every mask of a folder, tar, zip or shard set, at one size; kept on disk for the next call.

    Args:
        url: where the files are.
        hole: the value that means hole in these files.
        threshold: see `load_mask`.
        size: pixels of both sides.
        ratio: the bin the masks are meant for; tells large holes from a wrong polarity.

    Raises:
        DataError: no masks there, a file that is not a mask, or a polarity that the masks speak against.
    """
    with _files(url) as entries:
        kept = _cache_path(entries, url, hole, threshold, size)
        masks = _from_cache(kept, size) or _load(entries, hole=hole, threshold=threshold, size=size)
    _to_cache(kept, masks)
    _check_polarity(masks, url, hole, ratio)
    return masks


def set_holes(config: MaskSetHoles, size: int) -> Callable[[np.random.Generator], np.ndarray]:
    """A maker that draws from the masks of a set whose ratio lies in the config's bin, each as likely as another.

    Raises:
        DataError: as `load_mask_set`, and when no mask lies in the bin.
    """
    masks = load_mask_set(config.url, hole=config.hole, threshold=config.threshold, size=size, ratio=config.ratio)
    chosen = masks.inside(config.ratio)
    if not len(chosen):
        raise DataError(
            f"{config.url}: none of {len(masks)} masks has a hole ratio in ({config.ratio[0]:g}, {config.ratio[1]:g}] "
            f"at {size} pixels; they lie between {masks.ratios.min():.3f} and {masks.ratios.max():.3f}"
        )

    def draw(rng: np.random.Generator) -> np.ndarray:
        mask = masks[chosen[int(rng.integers(len(chosen)))]]
        return np.ascontiguousarray(np.rot90(mask, int(rng.integers(4)))) if config.rotate else mask

    return draw


@contextmanager
def _files(url: str) -> Iterator[list[Entry]]:
    """The mask files of a source; of a folder of shards, the files inside the shards."""
    with archives.open_source(url) as entries:
        found = [entry for entry in entries if _is_mask(entry.name)]
        if not found:
            shards = [entry.url for entry in entries if entry.name.endswith(".tar")]
            found = [entry for shard in shards for entry in _inside(shard) if _is_mask(entry.name)]
        if not found:
            raise DataError(f"{url}: no mask files here; expected {', '.join(SUFFIXES[:3])}, ... or shards of them")
        yield found


def _inside(shard: str) -> list[Entry]:
    with archives.open_source(shard) as entries:
        return entries


def _is_mask(name: str) -> bool:
    last = name.rsplit("/", 1)[-1].lower()
    return last.endswith(SUFFIXES) and not last.startswith(".") and "__MACOSX/" not in name


def _load(entries: list[Entry], *, hole: Polarity, threshold: Threshold, size: int) -> MaskSet:
    border = np.ones((size, size), dtype=bool)
    rim = max(1, size // 32)
    border[rim : size - rim, rim : size - rim] = False

    def one(entry: Entry) -> tuple[np.ndarray, float, float]:
        mask = load_mask(archives.read(entry), hole=hole, threshold=threshold, size=size, name=entry.name)
        return np.packbits(mask), float(mask.mean()), float(mask[border].mean())

    with ThreadPoolExecutor(READERS) as pool:
        loaded = list(pool.map(one, entries))
    names = tuple(entry.name for entry in entries)
    packed = np.stack([bits for bits, _, _ in loaded])
    ratios, borders = np.array([share for _, *share in loaded]).T
    return MaskSet(names, packed, ratios, borders, size, _digest(names, packed, size))


def _digest(names: tuple[str, ...], packed: np.ndarray, size: int) -> str:
    digest = hashlib.sha256(f"{size}\n".encode() + "\n".join(names).encode())
    digest.update(packed.tobytes())
    return digest.hexdigest()


def _check_polarity(masks: MaskSet, url: str, hole: Polarity, ratio: Ratio) -> None:
    """Refuse a declared polarity that the masks speak against.

    No single file can say which value is the hole, but a set can. Strokes, objects and boxes keep away from the
    image's border, so its pixels are hole less often than the others; under the opposite polarity, more often. And a
    bin of ratios that was asked for is hit by more masks under the true polarity.
    """
    near_border = masks.borders - masks.ratios
    cue = float(near_border.mean()) > BORDER_CUE and float((near_border > 0).mean()) > 0.6
    right = len(masks) >= FEW and float(near_border.mean()) < -BORDER_CUE and float((near_border < 0).mean()) > 0.6
    if ratio == EVERY_RATIO:
        large = float(np.median(masks.ratios)) > 0.5
        wrong = cue and (large or len(masks) >= FEW)
    else:
        low, high = ratio
        declared = ((masks.ratios > low) & (masks.ratios <= high)).sum()
        opposite = ((1 - masks.ratios > low) & (1 - masks.ratios <= high)).sum()
        wrong = (opposite > declared and not right) or (cue and 2 * opposite > declared)
    if wrong:
        other = "black" if hole == "white" else "white"
        raise DataError(
            f"{url}: hole: {hole} contradicts these masks: it makes the median hole {np.median(masks.ratios):.0%} of "
            f"the image and {masks.borders.mean():.0%} of its border (wanted: {ratio[0]:g} to {ratio[1]:g}). Set hole: "
            f"{other}, or, when the holes are truly so, a ratio that only they have, for instance [0.5, 0.99]"
        )


def _cache_path(entries: list[Entry], url: str, hole: str, threshold: str, size: int) -> Path:
    """Where the loaded set is kept: a name that changes with the files and with the way they are read."""
    digest = hashlib.sha256(f"2 {url} {hole} {threshold} {size} {np.__version__}".encode())
    for entry in entries:
        digest.update(f"\n{entry.name} {entry.size} {entry.tag}".encode())
    folder = os.environ.get("INPAINT_CACHE") or os.path.join(tempfile.gettempdir(), f"inpaint-cache-{os.getuid()}")
    return Path(folder, "masks", f"{digest.hexdigest()[:32]}.npz")


def _from_cache(path: Path, size: int) -> MaskSet | None:
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as kept:
            names, packed = tuple(kept["names"].tolist()), kept["packed"]
            ratios, borders = kept["ratios"], kept["borders"]
            digest = str(kept["sha256"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    return MaskSet(names, packed, ratios, borders, size, digest) if digest == _digest(names, packed, size) else None


def _to_cache(path: Path, masks: MaskSet) -> None:
    """Keep the set for the next call; a full or read-only disk costs time, not the run."""
    if path.exists():
        return
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix="writing-") as folder:
            written = Path(folder) / path.name
            arrays = {"packed": masks.packed, "ratios": masks.ratios, "borders": masks.borders}
            np.savez(written, names=np.array(masks.names), sha256=np.array(masks.sha256), **arrays)
            os.replace(written, path)
