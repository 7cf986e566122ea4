"""The scores of a part as one object in the store, so that a stopped evaluation goes on and workers share one."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from inpaint import storage
from inpaint.evaluation.scoring import Part, Score

_TEXTS = ("subject", "protocol", "bin", "image", "mask", "column")
_NUMBERS = ("ratio", "value")
_TRUTHS = b"inpaint.truths"


def write_part(folder: str, number: int, part: Part) -> None:
    """Keep a part under its number; its table is written last and says that it is whole."""
    if part.features:
        storage.write_bytes(_features_place(folder, number), _features_to_bytes(part.features))
    storage.write_bytes(_place(folder, number), to_parquet(part))


def read_part(folder: str, number: int) -> Part:
    """A part that was kept."""
    part = from_parquet(storage.read_bytes(_place(folder, number)))
    place = _features_place(folder, number)
    if not storage.exists(place):
        return part
    return replace(part, features=_features_from_bytes(storage.read_bytes(place)))


def kept_parts(folder: str) -> set[int]:
    """Numbers of the parts that are there."""
    names = [storage.name_of(info.url) for info in storage.list_objects(folder)]
    return {int(name.removesuffix(".parquet")) for name in names if name.endswith(".parquet")}


def to_parquet(part: Part) -> bytes:
    """Scores as a table, and the truths' digests in its metadata."""
    values = {name: [getattr(score, name) for score in part.scores] for name in (*_TEXTS, *_NUMBERS)}
    columns = {name: pa.array(values[name], pa.string()).dictionary_encode() for name in _TEXTS}
    columns |= {name: pa.array(values[name], pa.float64()) for name in _NUMBERS}
    table = pa.table(columns).replace_schema_metadata({_TRUTHS: json.dumps(part.truths, sort_keys=True).encode()})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def from_parquet(data: bytes) -> Part:
    """The inverse of `to_parquet`; every digit of a score comes back."""
    # Without Arrow's threads: a process that ends while they start is aborted by the C++ runtime.
    table = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False).read(use_threads=False)
    values = {name: table.column(name).to_pylist() for name in (*_TEXTS, *_NUMBERS)}
    scores = [Score(**dict(zip(values, row, strict=True))) for row in zip(*values.values(), strict=True)]
    return Part(scores, json.loads(table.schema.metadata[_TRUTHS]))


def joined(parts: Iterable[Part]) -> Part:
    """Parts as one, sorted."""
    scores: list[Score] = []
    truths: dict[str, dict[str, str]] = {}
    features: dict[tuple[str, str], dict[tuple[str, str], np.ndarray]] = {}
    for part in parts:
        scores += part.scores
        for key, found in part.features.items():
            features.setdefault(key, {}).update(found)
        for name, found in part.truths.items():
            truths.setdefault(name, {}).update(found)
    scores.sort(key=lambda s: (s.subject, s.protocol, s.image, s.bin, s.mask, s.column))
    return Part(scores, truths, features)


def _features_to_bytes(features: Mapping[tuple[str, str], Mapping[tuple[str, str], np.ndarray]]) -> bytes:
    arrays = {}
    for place, ((subject, protocol), found) in enumerate(sorted(features.items())):
        arrays[f"{place}-of"] = np.array([subject, protocol])
        arrays[f"{place}-names"] = np.array(sorted(found))
        arrays[f"{place}-values"] = np.stack([found[key] for key in sorted(found)])
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def _features_from_bytes(data: bytes) -> dict[tuple[str, str], dict[tuple[str, str], np.ndarray]]:
    features = {}
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        for place in range(len(arrays.files) // 3):
            subject, protocol = arrays[f"{place}-of"].tolist()
            names, values = arrays[f"{place}-names"].tolist(), arrays[f"{place}-values"]
            found = {(image, mask): value for (image, mask), value in zip(names, values, strict=True)}
            features[subject, protocol] = found
    return features


def _features_place(folder: str, number: int) -> str:
    return storage.join(folder, f"{number:06d}.npz")


def _place(folder: str, number: int) -> str:
    return storage.join(folder, f"{number:06d}.parquet")
