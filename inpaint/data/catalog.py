"""The data sets of the papers: which files of a distribution are images, and which belong to which split.

A split is a rule over file names, so it holds for the whole distribution and for any part of it, whether it is read
from a folder, a tar or a zip.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from inpaint.config.base import suggest
from inpaint.errors import ConfigError

Rule = Callable[[str], bool]  # whether the file with this name (path inside the source, `/`) belongs


@dataclass(frozen=True)
class Dataset:
    """A data set as it is distributed.

    Attributes:
        title: its name in the literature.
        layout: how its files are laid out, for `--help` and messages.
        images: which files are its photographs; distributions carry masks, annotations and corrupted copies too.
        splits: by name, which photographs belong.
        center_crop: side in pixels of the centred square cut out first; None = the whole image.
    """

    title: str
    layout: str
    images: Rule
    splits: dict[str, Rule]
    center_crop: int | None = None


def in_folders(*patterns: str) -> Rule:
    """Files with a folder on their path that fully matches one of the patterns (any case)."""
    expression = re.compile("|".join(f"(?:{pattern})" for pattern in patterns), re.IGNORECASE)
    return lambda name: any(expression.fullmatch(folder) for folder in name.split("/")[:-1])


def numbered(first: int, last: int) -> Rule:
    """Files whose name ends in a number from `first` to `last`."""

    def rule(name: str) -> bool:
        number = number_of(name)
        return number is not None and first <= number <= last

    return rule


def drawn(low: int, high: int, *, first: int, total: int, seed: str) -> Rule:
    """Files whose number has a place from `low` up to, not including, `high` in a seeded shuffle of all `total`.

    The shuffle is over the numbers of the whole distribution, so a file's split does not depend on which others are
    there.
    """

    @cache
    def places() -> frozenset[int]:
        numbers = range(first, first + total)
        shuffled = sorted(numbers, key=lambda number: hashlib.sha256(f"{seed}/{number}".encode()).digest())
        return frozenset(shuffled[low:high])

    return lambda name: number_of(name) in places()


def share(part: float, *, seed: str) -> Rule:
    """Files that a seeded hash of their own name puts into the first `part` of all, 0 to 1; so many on average."""

    def rule(name: str) -> bool:
        digest = hashlib.sha256(f"{seed}/{name.rsplit('/', 1)[-1]}".encode()).digest()
        return int.from_bytes(digest[:8]) < part * 2**64

    return rule


def both(one: Rule, other: Rule) -> Rule:
    """Files that both rules hold for."""
    return lambda name: one(name) and other(name)


def either(one: Rule, other: Rule) -> Rule:
    """Files that one of the rules holds for."""
    return lambda name: one(name) or other(name)


def number_of(name: str) -> int | None:
    """The number a file name ends in: 7 of `img/0007.jpg`, 9 of `celeba_000009.png`; None without one."""
    stem = name.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    digits = re.search(r"(\d+)(?:_im)?$", stem)
    return int(digits.group(1)) if digits else None


def no(rule: Rule) -> Rule:
    """Files the rule does not hold for."""
    return lambda name: not rule(name)


def _any(name: str) -> bool:
    return True


_CELEBA_HQ_EXTRAS = in_folders("CelebAMask-HQ-mask-anno", ".*mask.*anno.*", "CelebAMask-HQ-attribute.*")

DATASETS: dict[str, Dataset] = {
    "places2": Dataset(
        title="Places2 (Places365-Standard)",
        layout="easy layout train/<class>/*.jpg and val/<class>/*.jpg; or data_256 | data_large, val_256 | val_large",
        images=no(in_folders("test_256", "test_large")),  # without labels and truth tables; no paper uses them
        splits={  # 1,803,460 and 36,500 images in the whole distribution
            "train": in_folders("train", r"data_(256|large)(_standard)?", r"train_(256|large).*"),
            "test": in_folders("val", r"val_(256|large)"),
        },
    ),
    "celeba-hq": Dataset(
        title="CelebA-HQ",
        layout="0.jpg .. 29999.jpg in CelebA-HQ-img (CelebAMask-HQ), or 00000 .. 29999 as png or jpg exports",
        images=no(_CELEBA_HQ_EXTRAS),
        splits={"train": numbered(0, 27_999), "test": numbered(28_000, 29_999)},  # DiNA: first 28,000, last 2,000
    ),
    "celeba-hq-27000": Dataset(
        title="CelebA-HQ, random 27,000 / 3,000 (hybrid dilated convolutions paper; the seed is ours)",
        layout="as celeba-hq",
        images=no(_CELEBA_HQ_EXTRAS),
        splits={
            "train": drawn(0, 27_000, first=0, total=30_000, seed="celeba-hq-27000"),
            "test": drawn(27_000, 30_000, first=0, total=30_000, seed="celeba-hq-27000"),
        },
    ),
    "celeba": Dataset(
        title="CelebA, aligned and cropped, official split",
        layout="img_align_celeba/000001.jpg .. 202599.jpg",
        images=_any,
        splits={  # list_eval_partition.txt: 162,770 / 19,867 / 19,962
            "train": numbered(1, 162_770),
            "validation": numbered(162_771, 182_637),
            "test": numbered(182_638, 202_599),
        },
    ),
    "celeba-182339": Dataset(
        title="CelebA, random 182,339 / 20,260, centre 178 pixels (ISFRNet; the seed is ours)",
        layout="as celeba",
        images=_any,
        splits={
            "train": drawn(0, 182_339, first=1, total=202_599, seed="celeba-182339"),
            "test": drawn(182_339, 202_599, first=1, total=202_599, seed="celeba-182339"),
        },
        center_crop=178,
    ),
    "paris-streetview": Dataset(
        title="Paris StreetView",
        layout="paris_train_original/*.JPG (14,900) and paris_eval/paris_eval_gt/*.png (100)",
        images=no(in_folders(".*corrupted.*", ".*_mask.*")),
        splits={
            "train": in_folders("paris_train.*", "train"),
            "test": in_folders("paris_eval_gt", "paris_eval", "test", "val"),
        },
    ),
    "imagenet-100k": Dataset(
        title="ImageNet (ILSVRC 2012), about 80,000 + 10,000 / 10,000 (context encoder paper; the choice is ours)",
        layout="train/<class>/*.JPEG and val/ILSVRC2012_val_00000001.JPEG .. 00050000, flat or by class",
        images=no(in_folders("test", "Annotations")),
        splits={
            "train": either(
                both(in_folders("train"), share(80_000 / 1_281_167, seed="imagenet-100k")),
                both(in_folders("val"), drawn(0, 10_000, first=1, total=50_000, seed="imagenet-100k")),
            ),
            "test": both(in_folders("val"), drawn(10_000, 20_000, first=1, total=50_000, seed="imagenet-100k")),
        },
    ),
}


def find_dataset(name: str) -> Dataset:
    """A data set by its name.

    Raises:
        ConfigError: unknown; names the nearest.
    """
    if name not in DATASETS:
        raise ConfigError(f"{name} is not a known data set{suggest(name, DATASETS)}; known: {', '.join(DATASETS)}")
    return DATASETS[name]


def find_split(name: str, split: str) -> Rule:
    """The photographs of a data set that belong to a split.

    Raises:
        ConfigError: unknown data set or split.
    """
    dataset = find_dataset(name)
    if split not in dataset.splits:
        known = ", ".join(dataset.splits)
        raise ConfigError(f"{split} is not a split of {name}{suggest(split, dataset.splits)}; splits: {known}")
    rule = dataset.splits[split]
    return lambda file: dataset.images(file) and rule(file)
