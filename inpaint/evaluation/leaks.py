"""Whether test images were trained on, asked before a table is printed; the answer is kept beside the training set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from inpaint import storage
from inpaint.data.overlap import check_overlap
from inpaint.errors import InpaintError
from inpaint.evaluation.collection import Found

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Leaks:
    """Answers by (training set, test set).

    Attributes:
        found: pairs of sets with duplicates, in a sentence each.
        clean: pairs of sets without.
        unknown: pairs of sets that could not be compared, and why.
    """

    found: Mapping[tuple[str, str], str]
    clean: frozenset[tuple[str, str]]
    unknown: Mapping[tuple[str, str], str]


def check_leaks(pairs: Iterable[tuple[str, str]], *, planned: Progress, progress: Progress) -> Leaks:
    """Compare training and test sets, each pair once.

    Args:
        pairs: URLs of training set and test set.
        planned: gets the number of images that will be looked at; nothing is, when the answer is kept.
        progress: gets the images done since last time.
    """
    found, clean, unknown = {}, set(), {}
    for pair in sorted(set(pairs)):
        train, test = pair
        missing = next((url for url in pair if not storage.exists(storage.join(url, "index.json"))), None)
        if missing:
            unknown[pair] = f"leaks not checked: {missing} is not a shard set that can be read here"
            continue
        try:
            overlap = check_overlap(train, test, planned=planned, progress=progress)
        except InpaintError as error:
            unknown[pair] = f"leaks not checked: {error}"
            continue
        if overlap.in_second:
            found[pair] = (
                f"{overlap.in_second} of {overlap.images[1]} images of {test} are in {train}, {overlap.exact} of them "
                f"exactly; `inpaint shards overlap {train} {test}` lists them"
            )
        else:
            clean.add(pair)
    return Leaks(found, frozenset(clean), unknown)


def sets_of(found: Found) -> tuple[str, str] | None:
    """Training and test set behind a result; None for what was not trained."""
    about = found.about
    return (str(about["train"]), str(about["data"])) if about.get("train") and about.get("data") else None
