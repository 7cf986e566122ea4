"""The index of a shard set: where every image lies, so that any sample can be read without walking its tar.

A set is a folder of WebDataset tars with `samples.parquet` (one row per sample: shard, key, byte offset, length, CRC-32
and file ending of its image) and `index.json` (per shard: name, bytes, SHA-256, samples; a digest over everything).
`index.json` is written last, so a set is whole or absent.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from isal import isal_zlib

from inpaint import storage
from inpaint.data.tars import ShardRecord, index_tar, index_tar_at
from inpaint.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Index", "ShardInfo", "ShardRecord", "index_set", "index_tar", "load_index", "read_index", "write_index"]

FORMAT = "inpaint-shards"
VERSION = 1
INDEX = "index.json"
SAMPLES = "samples.parquet"
SPOT_CHECKS = 8  # shards changed after the index was written that are looked into before they are believed


@dataclass(frozen=True)
class ShardInfo:
    """One tar of a set: file name, size, content digest, number of samples."""

    name: str
    bytes: int
    sha256: str
    samples: int


@dataclass(frozen=True, eq=False, repr=False)
class Index:
    """A set's samples in the order of their shards; sample i is row i of every array.

    Attributes:
        url: folder of the set.
        digest: over shards and samples; two sets with one digest hold the same images under the same keys.
        shards: the tars, sorted by name.
        first: sample number of each shard's first sample, and the number of samples at the end, [shards + 1].
        shard, offset, length, crc32: where each sample's image lies and what it must sum to, [samples].
        provenance: what the writer said of where the images come from.
    """

    url: str
    digest: str
    shards: tuple[ShardInfo, ...]
    first: np.ndarray
    shard: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    crc32: np.ndarray
    keys: pa.StringArray
    exts: pa.StringArray
    provenance: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.shard)

    def key(self, sample: int) -> str:
        """The key of a sample, as WebDataset reads it."""
        return self.keys[int(sample)].as_py()

    def keys_of(self, samples: np.ndarray) -> tuple[str, ...]:
        """The keys of several samples at once."""
        ends, letters = self._letters
        starts = ends[samples].tolist()
        return tuple(str(letters[i:j], "utf-8") for i, j in zip(starts, ends[samples + 1].tolist(), strict=True))

    @cached_property
    def _letters(self) -> tuple[np.ndarray, memoryview]:
        """Where each key begins, and all of them in one; a batch's keys cost a fifth of Arrow's way between images."""
        _, ends, letters = self.keys.buffers()
        return np.frombuffer(ends, np.int32)[self.keys.offset :], memoryview(letters or b"")

    def shard_url(self, shard: int) -> str:
        """Where a shard lies."""
        return storage.join(self.url, self.shards[shard].name)

    @property
    def bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.bytes for shard in self.shards)


def write_index(url: str, records: Iterable[ShardRecord], *, provenance: Mapping[str, Any]) -> Index:
    """Write `samples.parquet` and then `index.json` beside the shards they describe.

    Raises:
        DataError: no samples at all, or one key in two places.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    records = sorted(records, key=lambda record: record.name)
    _refuse_empty(url, sum(len(record.keys) for record in records))
    _refuse_duplicates(url, records)
    shard = np.repeat(np.arange(len(records), dtype=np.int32), [len(record.keys) for record in records])
    columns = {
        "shard": pa.array(shard),
        "key": pa.array([key for record in records for key in record.keys], pa.string()),
        "offset": pa.array(np.concatenate([record.offsets for record in records])),
        "length": pa.array(np.concatenate([record.lengths for record in records])),
        "crc32": pa.array(np.concatenate([record.crc32 for record in records])),
        "ext": pa.array([ext for record in records for ext in record.exts], pa.string()).dictionary_encode(),
    }
    shards = tuple(ShardInfo(r.name, r.bytes, r.sha256, len(r.keys)) for r in records)
    table, parquet = pa.table(columns), io.BytesIO()
    pq.write_table(table, parquet, compression="zstd")
    header = {
        "format": FORMAT,
        "version": VERSION,
        "digest": _digest(shards, table),
        "samples": len(shard),
        "samples_sha256": hashlib.sha256(parquet.getvalue()).hexdigest(),
        "shards": [asdict(s) for s in shards],
        "provenance": dict(provenance),
    }
    storage.write_bytes(storage.join(url, SAMPLES), parquet.getvalue())
    storage.write_bytes(storage.join(url, INDEX), json.dumps(header, indent=1).encode())
    return _index(url, header, table)


def load_index(url: str) -> Index:
    """The index of the set at `url`, after a look at whether its shards are still the ones it describes.

    Raises:
        DataError: there is no index, it is another program's, it is damaged, or it is older than its shards.
    """
    index = read_index(url)
    _refuse_stale(index)
    return index


def read_index(url: str) -> Index:
    """The index of the set at `url` as it was written, without a look at the shards.

    Raises:
        DataError: there is no index, it is another program's, or it is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    header = _read_header(url)
    try:
        parquet = storage.read_bytes(storage.join(url, SAMPLES))
    except storage.MissingObject:
        raise DataError(f"{url}: {INDEX} is there but {SAMPLES} is not; {_again(url)}") from None
    if hashlib.sha256(parquet).hexdigest() != header["samples_sha256"]:
        raise DataError(f"{url}: {SAMPLES} is not the one {INDEX} was written with; {_again(url)}")
    # Without Arrow's threads: a process that ends while they start is aborted by the C++ runtime.
    table = pq.ParquetFile(pa.BufferReader(parquet), pre_buffer=False).read(use_threads=False)
    return _index(url, header, table)


def index_set(url: str, *, progress: storage.Progress | None = None) -> Index:
    """Index a folder of tars that any WebDataset writer made; they are read once and not changed.

    Args:
        progress: gets the bytes done since last time.

    Raises:
        DataError: no tars, a damaged one, keys without an image, duplicate keys.
    """
    tars = _tars(url)
    if not tars:
        raise DataError(f"{url}: no *.tar shards here; `inpaint shards write --help` makes them")
    records = []
    for info in tars.values():
        records.append(index_tar_at(info.url))
        if progress:
            progress(info.size)
    return write_index(url, records, provenance={"indexed": "existing shards"})


def _read_header(url: str) -> dict[str, Any]:
    try:
        text = storage.read_bytes(storage.join(url, INDEX))
    except storage.MissingObject:
        if _tars(url):
            raise DataError(f"{url}: there are shards but no {INDEX}; `inpaint shards index {url}` writes it") from None
        raise DataError(f"{url}: no *.tar shards here; `inpaint shards write --help` makes them") from None
    try:
        header = json.loads(text)
    except ValueError:
        raise DataError(f"{url}: {INDEX} is not JSON; {_again(url)}") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise DataError(f"{url}: {INDEX} was written by another program, not for these shards; {_again(url)}")
    if header.get("version") != VERSION:
        version = header.get("version")
        raise DataError(f"{url}: {INDEX} has version {version}, this program reads {VERSION}; {_again(url)}")
    missing = {"digest", "samples", "samples_sha256", "shards", "provenance"} - header.keys()
    if missing:
        raise DataError(f"{url}: {INDEX} lacks {', '.join(sorted(missing))}; {_again(url)}")
    return header


def _index(url: str, header: Mapping[str, Any], table: pa.Table) -> Index:
    try:
        shards = tuple(ShardInfo(**shard) for shard in header["shards"])
        table = table.combine_chunks()
        keys, exts = table["key"].combine_chunks(), table["ext"].combine_chunks().cast("string")
        arrays = {name: table[name].to_numpy() for name in ("shard", "offset", "length", "crc32")}
        digest = _digest(shards, table)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{url}: the index is damaged ({error}); {_again(url)}") from error
    if digest != header["digest"] or len(table) != header["samples"]:
        raise DataError(f"{url}: {INDEX} and {SAMPLES} do not belong together; {_again(url)}")
    _refuse_empty(url, len(table))
    first = np.concatenate([[0], np.cumsum([shard.samples for shard in shards])])
    return Index(url, digest, shards, first, keys=keys, exts=exts, provenance=header["provenance"], **arrays)


def _digest(shards: tuple[ShardInfo, ...], table: pa.Table) -> str:
    digest = hashlib.sha256(json.dumps([asdict(shard) for shard in shards]).encode())
    for name in ("shard", "offset", "length", "crc32"):
        digest.update(np.ascontiguousarray(table[name].to_numpy()).tobytes())
    keys = table["key"].combine_chunks()
    digest.update("\n".join(keys.to_pylist()).encode())
    return digest.hexdigest()


def _tars(url: str) -> dict[str, storage.ObjectInfo]:
    """The tars directly in the folder, by name."""
    depth = url.rstrip("/").count("/") + 1
    found = (info for info in storage.list_objects(url) if info.url.endswith(".tar") and info.url.count("/") == depth)
    return {storage.name_of(info.url): info for info in found}


def _refuse_stale(index: Index) -> None:
    tars = _tars(index.url)
    known = {shard.name: shard for shard in index.shards}
    for name in sorted(known.keys() - tars.keys()):
        raise DataError(f"{index.url}: shard {name} of the index is missing; bring it back or {_again(index.url)}")
    for name in sorted(tars.keys() - known.keys()):
        raise DataError(f"{index.url}: the index is older than its shards: {name} is not in it; {_again(index.url)}")
    for name, shard in known.items():
        if tars[name].size != shard.bytes:
            raise DataError(
                f"{index.url}: the index is older than its shards: {name} has {tars[name].size} bytes, not "
                f"{shard.bytes}; bring the shard back or {_again(index.url)}"
            )
    written = storage.stat(storage.join(index.url, INDEX)).modified
    later = [name for name, info in tars.items() if info.modified > written]
    for name in later[:SPOT_CHECKS]:  # a copied set has late shards too, but with the content that the index knows
        _spot_check(index, name)


def _spot_check(index: Index, name: str) -> None:
    number = [shard.name for shard in index.shards].index(name)
    low, high = index.first[number], index.first[number + 1]
    for sample in {low, (low + high) // 2, high - 1} if high > low else ():
        data = storage.read_range(index.shard_url(number), int(index.offset[sample]), int(index.length[sample]))
        if isal_zlib.crc32(data) != index.crc32[sample]:
            raise DataError(
                f"{index.url}: the index is older than its shards: {name} has other content now "
                f"(sample {index.key(sample)}); {_again(index.url)}"
            )


def _refuse_empty(url: str, samples: int) -> None:
    if not samples:
        raise DataError(f"{url}: the set is empty (no sample in its shards); write shards with images in them")


def _refuse_duplicates(url: str, records: list[ShardRecord]) -> None:
    where: dict[str, str] = {}
    for record in records:
        for key in record.keys:
            if key in where:
                raise DataError(
                    f"{url}: key {key} is twice in the set, in {where[key]} and {record.name}; "
                    "keys must be unique, write the shards again with other keys"
                )
            where[key] = record.name


def _again(url: str) -> str:
    return f"`inpaint shards index {url}` writes a new one"
