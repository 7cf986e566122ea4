"""Reading a shard set back: is every byte, checksum and count as the index says, and what is there at all."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from isal import isal_zlib

from inpaint import storage
from inpaint.data.index import INDEX, Index, read_index
from inpaint.data.pictures import Refused, read_picture
from inpaint.data.shards import UNFINISHED
from inpaint.data.tars import index_tar
from inpaint.errors import DataError, StorageError

Progress = Callable[[int], None]
THREADS = 4


@dataclass(frozen=True)
class Fault:
    """Something wrong: where, and what."""

    place: str
    problem: str


@dataclass(frozen=True)
class Verdict:
    """What a verification saw.

    Attributes:
        shards, samples, bytes: that were read and are as the index says.
        faults: everything that is not; empty for a whole set.
    """

    url: str
    digest: str
    shards: int
    samples: int
    bytes: int
    faults: tuple[Fault, ...]


@dataclass(frozen=True)
class SetSummary:
    """A set found below a folder; `problem` says why its index cannot be used, or that it is being written."""

    url: str
    shards: int
    samples: int
    bytes: int
    digest: str
    source: str
    problem: str = ""


def verify_set(
    url: str,
    *,
    decode: bool = False,
    planned: Progress = lambda images: None,
    progress: Progress = lambda images: None,
) -> Verdict:
    """Read every shard of a set and compare it with the index.

    Args:
        decode: also decode every image, strictly.
        planned: gets the number of samples.
        progress: gets the samples done since last time.

    Raises:
        DataError: there is no index to compare with.
    """
    index = read_index(url)
    planned(len(index))
    faults: list[Fault] = list(_strangers(index))
    shards = samples = size = 0

    def check(number: int) -> list[Fault]:
        found = list(_check_shard(index, number, decode=decode))
        progress(index.shards[number].samples)
        return found

    with ThreadPoolExecutor(THREADS) as pool:
        for shard, found in zip(index.shards, pool.map(check, range(len(index.shards))), strict=True):
            faults += found
            if not found:
                shards, samples, size = shards + 1, samples + shard.samples, size + shard.bytes
    return Verdict(url, index.digest, shards, samples, size, tuple(faults))


def list_sets(url: str) -> list[SetSummary]:
    """The shard sets at `url` and below it, sorted by place.

    Raises:
        DataError: there is none.
    """
    below = url.rstrip("/") + "/"
    shards: dict[str, list[int]] = {}
    for info in storage.list_objects(url):
        folder, _, name = info.url.rpartition("/")
        if name.endswith(".tar"):
            shards.setdefault(folder, []).append(info.size)
        elif name == INDEX or (name == "plan.json" and storage.name_of(folder) == UNFINISHED):
            shards.setdefault(folder if name == INDEX else folder.rpartition("/")[0], [])
    if not shards:
        raise DataError(f"{below}: no shard sets here; `inpaint shards write --help` makes them")
    return [_summary(folder, sizes) for folder, sizes in sorted(shards.items())]


def _summary(url: str, sizes: list[int]) -> SetSummary:
    try:
        index = read_index(url)
    except DataError as error:
        writing = storage.exists(storage.join(url, UNFINISHED, "plan.json"))
        problem = "being written, or interrupted: no index yet" if writing else str(error).removeprefix(f"{url}: ")
        return SetSummary(url, len(sizes), 0, sum(sizes), "", "", problem)
    problem = ""
    if len(sizes) != len(index.shards) or sum(sizes) != index.bytes:
        problem = f"the index knows {len(index.shards)} shards, {index.bytes:,} bytes; `shards verify` says more"
    source = str(index.provenance.get("source", ""))
    return SetSummary(url, len(sizes), len(index), sum(sizes), index.digest, source, problem)


def _strangers(index: Index) -> Iterator[Fault]:
    known = {shard.name for shard in index.shards}
    depth = index.url.rstrip("/").count("/") + 1
    for info in storage.list_objects(index.url):
        name = storage.name_of(info.url)
        if info.url.count("/") == depth and name.endswith(".tar") and name not in known:
            yield Fault(name, "not in the index")


def _check_shard(index: Index, number: int, *, decode: bool) -> Iterator[Fault]:
    shard = index.shards[number]
    try:
        size = storage.stat(index.shard_url(number)).size
        if size != shard.bytes:
            yield Fault(shard.name, f"{size:,} bytes; the index says {shard.bytes:,}")
        with local_shard(index.shard_url(number)) as path:
            if size != shard.bytes or storage.sha256_file(path) != shard.sha256:
                if size == shard.bytes:
                    yield Fault(shard.name, "its SHA-256 is not the one in the index")
                yield from _damaged_samples(index, number, path)
            else:
                yield from _check_members(index, number, path)
                if decode:
                    yield from _undecodable(index, number, path)
    except StorageError as error:
        yield Fault(shard.name, "missing" if isinstance(error, storage.MissingObject) else f"cannot be read: {error}")


def _check_members(index: Index, number: int, path: Path) -> Iterator[Fault]:
    """Whether the tar's members are those of the index."""
    shard, rows = index.shards[number], slice(index.first[number], index.first[number + 1])
    try:
        record = index_tar(path, place=shard.name)
    except DataError as error:
        yield Fault(shard.name, str(error).removeprefix(f"{shard.name}: "))
        return
    if len(record.keys) != shard.samples:
        yield Fault(shard.name, f"{len(record.keys)} samples; the index says {shard.samples}")
    elif list(record.keys) != index.keys[rows].to_pylist():
        yield Fault(shard.name, "its keys are not those in the index")
    elif not all(
        np.array_equal(ours, theirs)
        for ours, theirs in (
            (record.offsets, index.offset[rows]),
            (record.lengths, index.length[rows]),
            (record.crc32, index.crc32[rows]),
        )
    ):
        yield Fault(shard.name, "its images do not lie where the index says, or sum to something else")


def _damaged_samples(index: Index, number: int, path: Path) -> Iterator[Fault]:
    """Which samples of a damaged shard are damaged."""
    for row, data in shard_images(index, number, path):
        if len(data) < index.length[row]:
            yield Fault(f"{index.shards[number].name} {index.key(row)}", "cut off")
        elif isal_zlib.crc32(data) != index.crc32[row]:
            yield Fault(f"{index.shards[number].name} {index.key(row)}", "its CRC-32 is not the one in the index")


def _undecodable(index: Index, number: int, path: Path) -> Iterator[Fault]:
    for row, data in shard_images(index, number, path):
        try:
            read_picture(data)
        except Refused as reason:
            yield Fault(f"{index.shards[number].name} {index.key(row)}", str(reason))


def shard_images(index: Index, number: int, path: Path) -> Iterator[tuple[int, bytes]]:
    """Sample number and image bytes of every sample of a shard that lies at `path`."""
    with open(path, "rb") as file:
        for row in range(index.first[number], index.first[number + 1]):
            file.seek(int(index.offset[row]))
            yield row, file.read(int(index.length[row]))


@contextmanager
def local_shard(url: str) -> Iterator[Path]:
    """The shard as a local file for a while."""
    if not storage.is_remote(url):
        yield storage.local_path(url)
        return
    with tempfile.TemporaryDirectory(prefix="inpaint-verify-") as folder:
        path = Path(folder) / storage.name_of(url)
        storage.download(url, path)
        yield path
