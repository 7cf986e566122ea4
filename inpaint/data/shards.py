"""Writing a shard set: WebDataset tars of `<key>.jpg` and `<key>.json`, the index last.

Which samples go into which shard is decided before the first is written, from the sorted list of files alone. So a
shard is a pure function of its task: shards are written in any order, by any number of processes or machines, a run
that was interrupted keeps the finished ones, and the set comes out the same, byte for byte. A refused image leaves its
shard one sample smaller.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from inpaint import __version__, storage
from inpaint.data.catalog import find_dataset
from inpaint.data.index import INDEX, ShardRecord, index_tar, load_index, write_index
from inpaint.data.pictures import Refused
from inpaint.data.samples import ShardOptions, encode_sample
from inpaint.data.sources import Candidate, Selection, select
from inpaint.errors import DataError, StorageError

UNFINISHED = "unfinished"  # folder beside the shards while a set is being written: the plan, and a note per shard
PLAN = "plan.json"
REPORT = "report.json"
MEASURED = 32  # images encoded to find out how many samples make a shard of so many bytes
LOOKS = 16  # finished shards that are looked at at a time
LAYOUT = 1  # changes when the same task would give other bytes

Progress = Callable[[int], None]


@dataclass(frozen=True)
class ShardTask:
    """One shard to be written: all that its writer needs, on whatever machine."""

    name: str
    url: str
    candidates: tuple[Candidate, ...]
    options: ShardOptions
    plan: str


@dataclass(frozen=True)
class ShardResult:
    """What became of a task.

    Attributes:
        record: of the tar, for the index; None when every image was refused and there is no tar.
        refused: (file, reason) of the images that are not in it.
        mended: how many images needed which change.
    """

    name: str
    record: ShardRecord | None
    refused: tuple[tuple[str, str], ...]
    mended: dict[str, int]


@dataclass(frozen=True)
class SetReport:
    """What was written, and every file that was not, with the reason.

    Attributes:
        refused: (file, reason) of each image that could not be used.
        mended: how many images needed which change.
        left_out: how many files were not considered, by reason.
        kept: shards that were finished before this call.
    """

    url: str
    digest: str
    shards: int
    samples: int
    bytes: int
    refused: tuple[tuple[str, str], ...]
    mended: dict[str, int]
    left_out: dict[str, int]
    kept: int = 0


Runner = Callable[[Sequence[ShardTask], Progress], Iterable[ShardResult]]


def write_shards(
    source: str,
    url: str,
    *,
    options: ShardOptions,
    run: Runner,
    dataset: str | None = None,
    split: str | None = None,
    list_file: str | None = None,
    shuffle: int | None = None,
    limit: int | None = None,
    planned: Progress = lambda images: None,
    progress: Progress = lambda images: None,
) -> SetReport:
    """Write the images of a source as a shard set at `url`; the same call again finishes one that was interrupted.

    Args:
        source: folder, tar or zip.
        url: folder of the set.
        options: sizes and encoding.
        run: turns tasks into results: `workers.in_processes`, or a Ray cluster.
        dataset, split, list_file, shuffle, limit: see `sources.select`.
        planned: gets the number of images once it is known.
        progress: gets the images done since last time.

    Raises:
        DataError: nothing usable in the source, or another set at `url`, finished or not.
        StorageError: `url` cannot be written.
    """
    if dataset and options.center_crop is None and not options.keep_original:
        options = replace(options, center_crop=find_dataset(dataset).center_crop)
    chosen: dict[str, Any] = {"dataset": dataset, "split": split, "shuffle": shuffle, "limit": limit}
    with select(source, list_file=list_file, **chosen) as selection:
        storage.check_writable(url)
        plan = _digest(selection.candidates, options)
        told = {
            "written_by": f"inpaint {__version__}",
            "source": storage.name_of(source),
            "options": asdict(options),
            "chosen": chosen,
            "images": len(selection.candidates),
            "plan": plan,
        }
        planned(len(selection.candidates))
        if storage.exists(storage.join(url, INDEX)):
            progress(len(selection.candidates))
            return _finished(url, told)
        _claim(url, told)
        _sweep(url)
        tasks = _tasks(url, selection.candidates, options, plan)
        kept, missing = _resume(url, tasks, progress)
        results = sorted([*kept, *run(missing, progress)], key=lambda result: result.name)
    return _finish(url, results, selection, told, kept=len(kept))


def write_shard(task: ShardTask, progress: Progress = lambda images: None) -> ShardResult:
    """Write one shard, and after it a note, by which a later run knows that it need not be written again."""
    refused: list[tuple[str, str]] = []
    mended: Counter[str] = Counter()
    record = None
    with tempfile.TemporaryDirectory(prefix="inpaint-shard-") as folder:
        path = Path(folder) / task.name
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
            for candidate in task.candidates:
                try:
                    members, changes = encode_sample(candidate, task.options)
                    mended.update(changes)
                    for name, content in members:
                        _add(tar, name, content)
                except (Refused, DataError) as reason:
                    refused.append((candidate.entry.name, str(reason)))
                progress(1)
        if len(refused) < len(task.candidates):
            record = index_tar(path, place=task.name)
            storage.upload(path, storage.join(task.url, task.name))
    result = ShardResult(task.name, record, tuple(refused), dict(mended))
    storage.write_bytes(_note_url(task.url, task.name), _to_note(task.plan, result))
    return result


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """A member that says nothing of who wrote it when."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o644
    tar.addfile(member, io.BytesIO(content))


def _digest(candidates: Sequence[Candidate], options: ShardOptions) -> str:
    """Of everything that decides the bytes of the set."""
    digest = hashlib.sha256(json.dumps([LAYOUT, asdict(options)], sort_keys=True).encode())
    for candidate in candidates:
        entry = candidate.entry
        digest.update(f"\n{candidate.key} {entry.size} {entry.crc} ".encode())
        digest.update(entry.name.encode(errors="surrogateescape"))
    return digest.hexdigest()


def _tasks(url: str, candidates: Sequence[Candidate], options: ShardOptions, plan: str) -> list[ShardTask]:
    size = options.samples or _samples_per(options, candidates)
    groups = [tuple(candidates[start : start + size]) for start in range(0, len(candidates), size)]
    return [ShardTask(f"{i:06d}.tar", url, group, options, plan) for i, group in enumerate(groups)]


def _samples_per(options: ShardOptions, candidates: Sequence[Candidate]) -> int:
    """How many samples make a shard of the wanted bytes, by the mean of a few images spread over the source."""
    sizes = []
    for candidate in candidates[:: max(1, len(candidates) // MEASURED)][:MEASURED]:
        try:
            members, _ = encode_sample(candidate, options)
        except (Refused, DataError):
            continue
        sizes.append(sum(512 + -(-len(content) // 512) * 512 for _, content in members))
    assert options.shard_bytes is not None
    return max(1, int(options.shard_bytes // (sum(sizes) / len(sizes)))) if sizes else 1000


def _finished(url: str, told: dict[str, Any]) -> SetReport:
    """The report of the set that is already there.

    Raises:
        DataError: it is another set.
    """
    index = load_index(url)
    if index.provenance.get("plan") != told["plan"]:
        raise DataError(
            f"{url}: another set is here ({_difference(index.provenance, told)}); choose another place or delete it"
        )
    storage.delete_tree(storage.join(url, UNFINISHED))
    report = json.loads(storage.read_bytes(storage.join(url, REPORT)))
    refused = tuple((name, reason) for name, reason in report["refused"])
    shards = len(index.shards)
    return SetReport(
        url, index.digest, shards, len(index), index.bytes, refused, report["mended"], report["left_out"], kept=shards
    )


def _difference(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """What is different between the set that is there and the wanted one, for a message."""
    if "options" not in there:
        return "made by another program"
    then = {**there["options"], **there["chosen"], "images": there["images"], "source": there["source"]}
    now = {**wanted["options"], **wanted["chosen"], "images": wanted["images"], "source": wanted["source"]}
    differences = [f"{name} {then.get(name)} there, {now[name]} wanted" for name in now if now[name] != then.get(name)]
    return ", ".join(differences) or "the same options, but the source's files have changed"


def _claim(url: str, told: dict[str, Any]) -> None:
    """Say at `url` which set is being written there.

    Raises:
        DataError: shards of another one, or of unknown origin, are there.
    """
    claim = storage.join(url, UNFINISHED, PLAN)
    if storage.exists(claim):
        there = json.loads(storage.read_bytes(claim))
        if there["plan"] != told["plan"]:
            raise DataError(
                f"{url}: another set is unfinished here ({_difference(there, told)}); finish it with the command that "
                "began it, or delete it first"
            )
        return
    depth = url.rstrip("/").count("/") + 1
    strangers = [info.url for info in storage.list_objects(url) if info.url.count("/") == depth]
    if any(name.endswith(".tar") for name in strangers):
        raise DataError(f"{url}: shards of unknown origin are here; `inpaint shards index {url}` makes them a set")
    storage.write_bytes(claim, json.dumps(told).encode())


def _sweep(url: str) -> None:
    """Remove what a writer that was killed in the middle of a local file has left of it."""
    if not storage.is_remote(url):
        for folder in (storage.local_path(url), storage.local_path(storage.join(url, UNFINISHED))):
            for path in folder.glob(".*.tmp"):
                path.unlink(missing_ok=True)


def _resume(url: str, tasks: Sequence[ShardTask], progress: Progress) -> tuple[list[ShardResult], list[ShardTask]]:
    """Results of the shards that were finished before, and the tasks that are left."""
    noted = {storage.name_of(info.url) for info in storage.list_objects(storage.join(url, UNFINISHED))}
    kept, missing = [], []

    def finished(task: ShardTask) -> ShardResult | None:
        if f"{task.name}.json" not in noted:
            return None
        result = _from_note(storage.read_bytes(_note_url(url, task.name)), task.plan)
        return result if result is not None and _is_there(url, result.record) else None

    with ThreadPoolExecutor(LOOKS) as pool:
        for task, result in zip(tasks, pool.map(finished, tasks), strict=True):
            if result is not None:
                kept.append(result)
                progress(len(task.candidates))
            else:
                missing.append(task)
    return kept, missing


def _is_there(url: str, record: ShardRecord | None) -> bool:
    """Whether the shard is as its note says; a local one is read for it."""
    if record is None:
        return True
    place = storage.join(url, record.name)
    if not storage.exists(place) or storage.stat(place).size != record.bytes:
        return False
    return storage.is_remote(place) or storage.sha256_file(storage.local_path(place)) == record.sha256


def _refuse_lost(url: str, records: list[ShardRecord]) -> None:
    sizes = {info.url: info.size for info in storage.list_objects(url)}
    lost = [record.name for record in records if sizes.get(storage.join(url, record.name)) != record.bytes]
    if lost:
        raise StorageError(
            f"{url}: the store did not keep {', '.join(lost[:3])} as written ({len(lost)} of {len(records)} shards); "
            "run the same command again, which writes these anew"
        )


def _finish(
    url: str, results: list[ShardResult], selection: Selection, told: dict[str, Any], *, kept: int
) -> SetReport:
    refused = tuple(pair for result in results for pair in result.refused)
    records = [result.record for result in results if result.record is not None]
    mended = dict(sorted(sum((Counter(result.mended) for result in results), Counter()).items()))
    if not records:
        storage.delete_tree(storage.join(url, UNFINISHED))
        reasons = ", ".join(f"{reason} ({n})" for reason, n in Counter(reason for _, reason in refused).most_common(3))
        raise DataError(f"{told['source']}: none of {len(refused)} images can be used: {reasons}")
    _refuse_lost(url, records)
    report = {"refused": refused, "mended": mended, "left_out": selection.left_out}
    storage.write_bytes(storage.join(url, REPORT), json.dumps(report, indent=1, sort_keys=True).encode())
    index = write_index(url, records, provenance=told | {"refused": len(refused)})
    storage.delete_tree(storage.join(url, UNFINISHED))
    return SetReport(
        url, index.digest, len(records), len(index), index.bytes, refused, mended, selection.left_out, kept=kept
    )


def _note_url(url: str, name: str) -> str:
    return storage.join(url, UNFINISHED, f"{name}.json")


def _to_note(plan: str, result: ShardResult) -> bytes:
    note: dict[str, Any] = {"plan": plan, "name": result.name, "refused": result.refused, "mended": result.mended}
    if result.record is not None:
        columns = asdict(result.record)
        note["record"] = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in columns.items()}
    return json.dumps(note).encode()


def _from_note(data: bytes, plan: str) -> ShardResult | None:
    note = json.loads(data)
    if note["plan"] != plan:
        return None
    record = None
    if "record" in note:
        kinds = {"offsets": np.int64, "lengths": np.int32, "crc32": np.uint32}
        columns = {k: np.array(v, kinds[k]) if k in kinds else v for k, v in note["record"].items()}
        record = ShardRecord(**(columns | {"keys": tuple(columns["keys"]), "exts": tuple(columns["exts"])}))
    refused = tuple((name, reason) for name, reason in note["refused"])
    return ShardResult(note["name"], record, refused, note["mended"])
