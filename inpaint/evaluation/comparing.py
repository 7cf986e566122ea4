"""Two results side by side: refused when their stamps differ, paired image by image when they do not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from inpaint import storage
from inpaint.errors import EvaluationError
from inpaint.evaluation.collection import Found
from inpaint.evaluation.parts import from_parquet
from inpaint.evaluation.results import Table, differences
from inpaint.evaluation.scoring import Score
from inpaint.evaluation.stamp import check_comparable

OURS, THEIRS = "A", "B"


@dataclass(frozen=True)
class Comparison:
    """One protocol of two results.

    Attributes:
        protocol: whose columns are compared.
        ours, theirs: their tables.
        difference: A less B, paired; empty when the stamps differ.
        marks: what differs between the stamps; not empty only where that was forced.
    """

    protocol: str
    ours: Table
    theirs: Table
    difference: Table
    marks: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for `--json`."""

        def plain(table: Table) -> dict[str, Any]:
            return {row: {name: cell.to_dict() for name, cell in cells.items()} for row, cells in table.items()}

        return {
            "protocol": self.protocol,
            "a": plain(self.ours),
            "b": plain(self.theirs),
            "a - b": plain(self.difference),
            "differ in": list(self.marks),
        }


def compare(ours: Found, theirs: Found, *, fills: tuple[str, str], force: bool) -> list[Comparison]:
    """Every protocol that both results have.

    Args:
        ours, theirs: the results.
        fills: which way of filling is taken of each.
        force: compare means although the stamps differ, and say in what.

    Raises:
        EvaluationError: no protocol in common, a way of filling that a result has not, or stamps that differ.
    """
    shared = [name for name in ours.result.stamp.protocols if name in theirs.result.stamp.protocols]
    if not shared:
        raise EvaluationError(
            f"no protocol in common: {', '.join(ours.result.stamp.protocols)} and "
            f"{', '.join(theirs.result.stamp.protocols)}; score both by one"
        )
    tables = [_tables(found, fill) for found, fill in zip((ours, theirs), fills, strict=True)]
    marks = {name: ours.result.stamp.differences(theirs.result.stamp, name) for name in shared}
    if not force:
        for name in shared:
            check_comparable(ours.result.stamp, theirs.result.stamp, name)
    scores = [*_scores(ours, fills[0], OURS), *_scores(theirs, fills[1], THEIRS)] if not all(marks.values()) else []
    found = differences(scores, OURS, THEIRS, seed=ours.result.stamp.seeds["bootstrap"])
    return [
        Comparison(
            name, tables[0][name], tables[1][name], {} if marks[name] else found.get(name, {}), tuple(marks[name])
        )
        for name in shared
    ]


def _tables(found: Found, fill: str) -> Mapping[str, Table]:
    if fill not in found.result.tables:
        raise EvaluationError(f"{found.url}: nothing was filled {fill} here; there is {', '.join(found.result.tables)}")
    return found.result.tables[fill]


def _scores(found: Found, fill: str, name: str) -> list[Score]:
    everything = from_parquet(storage.read_bytes(storage.join(found.url, "scores.parquet")))
    return [score._replace(subject=name) for score in everything.scores if score.subject == fill]
