"""Which files of a folder, tar or zip are the samples of a set, in which order, and under which keys."""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from inpaint import archives, storage
from inpaint.archives import Entry
from inpaint.data.catalog import find_dataset, find_split
from inpaint.errors import DataError

IMAGE_ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".jp2", ".avif",
    ".heic",
)  # fmt: skip
LEFTOVERS = re.compile(r"(^|/)(__MACOSX/|\._|\.DS_Store$|Thumbs\.db$|desktop\.ini$|\.)")  # of file managers
NOT_IN_A_KEY = re.compile(r"[^\w-]+")
LONGEST_KEY = 80  # bytes; plain tar headers hold 100


@dataclass(frozen=True)
class Candidate:
    """A file that is to become the sample `key`."""

    key: str
    entry: Entry


@dataclass(frozen=True)
class Selection:
    """What a source offers.

    Attributes:
        candidates: in the order they will have in the shards.
        left_out: how many files were not considered, by reason.
    """

    candidates: tuple[Candidate, ...]
    left_out: dict[str, int]


@contextmanager
def select(
    source: str,
    *,
    dataset: str | None = None,
    split: str | None = None,
    list_file: str | None = None,
    shuffle: int | None = None,
    limit: int | None = None,
) -> Iterator[Selection]:
    """The images of a source that belong to a set; valid inside the `with` block.

    Args:
        source: folder, tar or zip; local or in S3.
        dataset, split: of the catalog; None = all images of the source.
        list_file: text file whose lines name the images of the split, with or without folders or ending; further
            columns (classes, partitions) are allowed.
        shuffle: seed of a fixed shuffle of the samples; None = sorted by name.
        limit: the first so many of that order.

    Raises:
        DataError: no images, or a list that names files that are not there or are there twice.
        ConfigError: unknown data set or split.
    """
    belongs = find_split(dataset, split) if dataset and split else None
    with archives.open_source(source) as entries:
        images = [entry for entry in entries if not _why_not(entry.name)]
        left_out = Counter(why for entry in entries if (why := _why_not(entry.name)))
        if not images:
            raise DataError(f"{source}: {_contents(entries)}; expected images ({', '.join(IMAGE_ENDINGS[:5])}, ...)")
        keys = _keys([entry.name for entry in images])
        chosen = [Candidate(key, entry) for key, entry in zip(keys, images, strict=True)]
        if belongs:
            chosen = _in_split(chosen, belongs, source, f"{dataset} {split}", left_out)
            if not chosen:
                examples = ", ".join(entry.name for entry in images[:3])
                raise DataError(
                    f"{source}: no image belongs to {dataset} {split} by its name (for instance {examples}); expected "
                    f"{find_dataset(str(dataset)).layout}"
                )
        if list_file:
            chosen = _in_list(chosen, list_file, left_out)
        if shuffle is not None:
            random.Random(shuffle).shuffle(chosen)
        if limit is not None and limit < len(chosen):
            left_out["beyond the limit"] = len(chosen) - limit
            chosen = chosen[:limit]
        yield Selection(tuple(chosen), dict(left_out))


def _why_not(name: str) -> str:
    if LEFTOVERS.search(name):
        return "hidden or left by a file manager"
    last = name.rsplit("/", 1)[-1]
    if "." in last and not last.lower().endswith(IMAGE_ENDINGS):
        return f"not an image by its name (.{last.rsplit('.', 1)[1].lower()})"
    return ""


def _keys(names: Sequence[str]) -> list[str]:
    """A key per name: the path below the folder that all share, without ending, `/` and dots turned to `_`.

    Two names that would get one key both get a digest of their name as well, whichever else is there.
    """
    shared = _shared_folder(names)
    plain = [NOT_IN_A_KEY.sub("_", name[len(shared) :].rsplit(".", 1)[0]).strip("_") or "image" for name in names]
    times = Counter(key.lower() for key in plain)

    def key(plain_key: str, name: str) -> str:
        fits = times[plain_key.lower()] == 1 and len(plain_key.encode()) <= LONGEST_KEY
        return plain_key if fits else f"{_cut(plain_key, LONGEST_KEY - 9)}-{_short_digest(name)}"

    return [key(plain_key, name) for plain_key, name in zip(plain, names, strict=True)]


def _shared_folder(names: Sequence[str]) -> str:
    """The folder, with `/`, that all names lie below."""
    first, last = min(names).split("/")[:-1], max(names).split("/")[:-1]
    same = 0
    while same < min(len(first), len(last)) and first[same] == last[same]:
        same += 1
    return "".join(f"{folder}/" for folder in first[:same])


def _short_digest(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def _cut(text: str, most_bytes: int) -> str:
    return text.encode()[:most_bytes].decode(errors="ignore")


def _contents(entries: Sequence[Entry]) -> str:
    found = sum(archives.is_archive(entry.name) for entry in entries)
    if found:
        return f"{len(entries)} files, {found} of them archives and no images; give one of the archives"
    return f"{len(entries)} files, none of them an image"


def _in_split(
    candidates: list[Candidate], belongs: Callable[[str], bool], source: str, split: str, left_out: Counter[str]
) -> list[Candidate]:
    folder = re.sub(r"(\.(tar|zip|tgz|gz|bz2|xz))+$", "", storage.name_of(source), flags=re.IGNORECASE)
    chosen = [c for c in candidates if belongs(f"{folder}/{c.entry.name}")]
    left_out[f"not in {split}"] = len(candidates) - len(chosen)
    return chosen


def _in_list(candidates: list[Candidate], list_file: str, left_out: Counter[str]) -> list[Candidate]:
    """The candidates a list names, in the order of the list."""
    lines = storage.read_bytes(list_file).decode("utf-8", "surrogateescape").splitlines()
    lines = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    _refuse_several_parts(list_file, lines)
    by_name = _by_every_name(candidates)
    chosen: dict[str, Candidate] = {}
    missing: list[str] = []
    for line in lines:
        found = next((by_name[form] for form in _forms(line) if form in by_name), None)
        if found is None:
            missing.append(line)
        elif len(found) > 1:
            two = " and ".join(c.entry.name for c in found[:2])
            raise DataError(f"{list_file}: {line} may be {two}; give it with its folder")
        else:
            chosen[found[0].key] = found[0]
    if missing or not chosen:
        raise DataError(
            f"{list_file}: {len(missing)} of its {len(lines)} lines name no image of the source (for instance "
            f"{missing[0] if missing else 'no line at all'!r}); expected one file name per line"
        )
    left_out["not in the list"] = len(candidates) - len(chosen)
    return list(chosen.values())


def _refuse_several_parts(list_file: str, lines: Sequence[str]) -> None:
    """A partition file, such as CelebA's `list_eval_partition.txt`, names the images of all parts."""
    parts = sorted({line.split()[-1].rpartition(",")[2] for line in lines})
    if "partition" in storage.name_of(list_file) and len(parts) > 1 and set(parts) <= {"0", "1", "2"}:
        raise DataError(
            f"{list_file}: names images of the parts {', '.join(parts)} (0 train, 1 validation, 2 test); give a list "
            "of one part's lines, for instance from grep ' 2$'"
        )


def _by_every_name(candidates: list[Candidate]) -> dict[str, list[Candidate]]:
    """Candidates by every tail of their path, with and without ending: a/b/c.jpg, b/c.jpg, c.jpg, a/b/c, b/c, c."""
    named: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        folders = candidate.entry.name.split("/")
        for start in range(len(folders)):
            tail = "/".join(folders[start:])
            for form in dict.fromkeys((tail, tail.rsplit(".", 1)[0])):
                named.setdefault(form, []).append(candidate)
    return named


def _forms(line: str) -> Iterator[str]:
    """Ways to read a line: as it is, and its first column; each without a leading `./` or `/`."""
    for text in (line, line.split("\t")[0], line.split(",")[0], line.split()[0]):
        yield text.strip().strip('"').removeprefix("./").lstrip("/")


