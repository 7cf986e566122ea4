"""The tables of the five papers as data: every number as printed, with its source and row, misprints flagged."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

import yaml

from inpaint.config.base import suggest
from inpaint.errors import EvaluationError
from inpaint.evaluation.protocols import Protocol


@dataclass(frozen=True)
class Number:
    """One printed number.

    Attributes:
        row: of the table, from 1, as in the paper's order.
        label: what the row is called.
        bin: hole ratio in percent, or `all`.
        metric: `psnr`, `ssim`, `l1`, `lpips_alex`, or what else was printed.
        printed: its digits.
        settings: what the row was trained with, `name=value` in one line.
        note: why the number is doubted; empty for most.
    """

    row: int
    label: str
    bin: str
    metric: str
    printed: str
    settings: str
    note: str

    @property
    def value(self) -> float:
        """As a number."""
        return float(self.printed)


@dataclass(frozen=True)
class PublishedTable:
    """One table of a paper.

    Attributes:
        name: `isnet_table5`.
        paper: short name.
        source: authors, journal and table number.
        title: what it shows.
        method: our name of the paper's method.
        dataset: that it was scored on.
        protocol: whose columns stand nearest to its own; None where ours cannot be laid beside it.
        images: how many were scored; None where the paper does not say.
        steps: that the method was trained for; None where the paper does not say.
        batch: images of each of these steps.
        columns: metric → column of the protocol.
        notes: what a reader has to know.
        numbers: all of them, in the paper's order; empty where the printed table is lost.
    """

    name: str
    paper: str
    source: str
    title: str
    method: str
    dataset: str
    protocol: str | None
    images: int | None
    steps: int | None
    batch: int | None
    columns: Mapping[str, str]
    notes: tuple[str, ...]
    numbers: tuple[Number, ...]

    @property
    def bins(self) -> list[str]:
        """In the order of the table; `all` for a table without."""
        return list(dict.fromkeys(number.bin for number in self.numbers)) or ["all"]

    @property
    def metrics(self) -> list[str]:
        """In the order of the table."""
        return list(dict.fromkeys(number.metric for number in self.numbers)) or list(self.columns)

    def rows(self, bin_name: str) -> dict[str, dict[str, Number]]:
        """Label → metric → number, of one bin."""
        rows: dict[str, dict[str, Number]] = {}
        for number in self.numbers:
            if number.bin == bin_name:
                rows.setdefault(number.label, {})[number.metric] = number
        return rows

    @property
    def doubts(self) -> list[str]:
        """The distinct notes on single numbers, in order."""
        return list(dict.fromkeys(number.note for number in self.numbers if number.note))


@lru_cache(maxsize=1)
def published_tables() -> Mapping[str, PublishedTable]:
    """Every table by name."""
    folder = resources.files("inpaint.evaluation") / "published"
    listed: dict[str, dict[str, Any]] = yaml.safe_load((folder / "tables.yaml").read_text())
    return {name: _table(name, values, folder / f"{name}.csv") for name, values in listed.items()}


def find_tables(names: list[str]) -> list[PublishedTable]:
    """The tables of these names; every one when none is given.

    Raises:
        EvaluationError: a name that is none, with the nearest that is.
    """
    known = published_tables()
    for name in names:
        if name not in known:
            raise EvaluationError(f"{name} is not a published table{suggest(name, known)}; known: {', '.join(known)}")
    return [known[name] for name in names or known]


def other_masks(papers: Protocol, kind: str, *, scored_by: Protocol) -> str:
    """What sets the masks of a result apart from those that a protocol was published with; empty where nothing does.

    Files say nothing of where they come from, so they are never taken for the published ones.

    Args:
        papers: the published protocol.
        kind: of the masks, as a result's stamp has it.
        scored_by: the protocol that loaded them.
    """
    if papers.mask_kinds == "any" or papers.mask_loading == scored_by.mask_loading == "centre":
        return ""
    surely_other = kind == "drawn strokes" or (kind == "centred square" and papers.mask_loading != "centre")
    return f"{kind}, {'not' if surely_other else 'not verified to be'} {papers.mask_kinds}"


def _table(name: str, values: Mapping[str, Any], file: Any) -> PublishedTable:
    numbers = _numbers(file.read_text()) if file.is_file() else ()
    optional = {key: values.get(key) for key in ("protocol", "images", "steps", "batch")}
    given = {key: values[key] for key in ("paper", "source", "title", "method", "dataset", "columns")}
    return PublishedTable(name=name, **given, **optional, notes=tuple(values.get("notes", ())), numbers=numbers)


def _numbers(text: str) -> tuple[Number, ...]:
    return tuple(
        Number(int(row["row"]), row["label"], row["bin"], row["metric"], row["value"], row["settings"], row["note"])
        for row in csv.DictReader(io.StringIO(text))
    )
