"""From numbers per image to the tables of a result: rows are bins, columns scores, each a mean with its interval."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from inpaint import storage
from inpaint.errors import EvaluationError, StorageError
from inpaint.evaluation.distributions import SetScore
from inpaint.evaluation.protocols import PROTOCOLS, Protocol
from inpaint.evaluation.scoring import Score
from inpaint.evaluation.stamp import Stamp
from inpaint.evaluation.statistics import Estimate, estimate, paired_difference

FORMAT = 1
ALL = "all"
Table = dict[str, dict[str, Estimate]]  # row → column → estimate
Rows = Mapping[str, Sequence[tuple[str, str, float]]]  # column → (image, mask, value), per protocol row


@dataclass(frozen=True)
class Result:
    """What an evaluation found.

    Attributes:
        subjects: what filled, by its name in tables, with where it came from and the digest of its weights.
        stamp: the conditions, which two results must share to be compared.
        tables: subject → protocol → row → column → estimate.
        differences: "a - b" → protocol → row → column → paired difference over the same pairs.
        sets: subject → protocol → FID and its kin, over all its pairs.
        absent: protocol → column → why it is not there.
        marks: what a reader has to know before quoting a number, by protocol.
        skipped: protocols that were left out, and why.
    """

    subjects: Mapping[str, Mapping[str, Any]]
    stamp: Stamp
    tables: Mapping[str, Mapping[str, Table]]
    differences: Mapping[str, Mapping[str, Table]] = field(default_factory=dict)
    sets: Mapping[str, Mapping[str, Mapping[str, SetScore]]] = field(default_factory=dict)
    absent: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    marks: Mapping[str, Sequence[str]] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for `result.json`."""
        return {
            "format": FORMAT,
            "subjects": {name: dict(found) for name, found in self.subjects.items()},
            "stamp": self.stamp.to_dict(),
            "tables": _plain(self.tables),
            "differences": _plain(self.differences),
            "sets": {
                subject: {name: {k: score.to_dict() for k, score in found.items()} for name, found in protocols.items()}
                for subject, protocols in self.sets.items()
            },
            "absent": {name: dict(found) for name, found in self.absent.items()},
            "marks": {name: list(found) for name, found in self.marks.items()},
            "skipped": dict(self.skipped),
        }

    @classmethod
    def of(cls, values: Mapping[str, Any], *, place: str) -> Result:
        """The inverse of `to_dict`.

        Raises:
            EvaluationError: not a result of this format.
        """
        if not isinstance(values, Mapping) or values.get("format") != FORMAT:
            raise EvaluationError(f"{place}: not a result that this version reads (format {FORMAT}); evaluate anew")
        return cls(
            values["subjects"],
            Stamp.of(values["stamp"]),
            _estimates(values["tables"]),
            _estimates(values["differences"]),
            {
                subject: {name: {k: SetScore(**s) for k, s in found.items()} for name, found in protocols.items()}
                for subject, protocols in values["sets"].items()
            },
            values["absent"],
            values["marks"],
            values["skipped"],
        )


def load_result(url: str) -> Result:
    """The result in `url`: a `result.json`, or the folder it lies in.

    Raises:
        EvaluationError: there is none, or it is not one.
    """
    place = url if url.endswith(".json") else storage.join(url, "result.json")
    try:
        values = json.loads(storage.read_bytes(place))
    except (StorageError, ValueError) as error:
        raise EvaluationError(f"{place}: no result here ({error}); `inpaint evaluate` writes them") from error
    return Result.of(values, place=place)


def tabulate(scores: Iterable[Score], *, seed: int) -> dict[str, dict[str, Table]]:
    """Subject → protocol → row → column → estimate. The order in which scores come makes no difference."""
    tables: dict[str, dict[str, Table]] = {}
    for (subject, name), rows in sorted(group(scores).items()):
        protocol = PROTOCOLS[name]
        table: Table = {}
        for row, columns in rows.items():
            cells = {column: _mean(columns[column], protocol, seed) for column in _ordered(protocol, columns)}
            table[row] = {column: cell for column, cell in cells.items() if cell}
        tables.setdefault(subject, {})[name] = table
    return tables


def differences(scores: Iterable[Score], ours: str, theirs: str, *, seed: int) -> dict[str, Table]:
    """Protocol → row → column → mean of (ours - theirs) over the pairs both were scored on."""
    grouped = group(scores)
    found: dict[str, Table] = {}
    for (subject, name), rows in sorted(grouped.items()):
        other = grouped.get((theirs, name))
        if subject != ours or other is None:
            continue
        found[name] = {}
        for row, columns in rows.items():
            cells = {c: _paired(columns[c], other[row].get(c, []), seed) for c in _ordered(PROTOCOLS[name], columns)}
            found[name][row] = {column: cell for column, cell in cells.items() if cell}
    return found


def group(scores: Iterable[Score]) -> dict[tuple[str, str], dict[str, dict[str, list[tuple[str, str, float]]]]]:
    """(subject, protocol) → row → column → sorted (image, mask, value); rows are bins, unions and `all`."""
    cells: dict[tuple[str, str], dict[str, dict[str, list[tuple[str, str, float]]]]] = {}
    for score in scores:
        rows = cells.setdefault((score.subject, score.protocol), defaultdict(lambda: defaultdict(list)))
        for row in _rows_of(score.protocol, score.bin):
            rows[row][score.column].append((score.image, score.mask, score.value))
    return {
        key: {
            row: {column: sorted(values) for column, values in rows[row].items()}
            for row in _row_order(PROTOCOLS[key[1]])
            if row in rows
        }
        for key, rows in cells.items()
    }


@lru_cache
def _rows_of(name: str, score_bin: str) -> tuple[str, ...]:
    """The rows of a protocol's table in which a score of this bin counts."""
    protocol = PROTOCOLS[name]
    low = next((b.low for b in protocol.bins if b.name == score_bin), None)
    unions = [u.name for u in protocol.unions if low is not None and u.low <= low < u.high]
    return (*([score_bin] if score_bin else []), *unions, ALL)


def _row_order(protocol: Protocol) -> list[str]:
    return [*(b.name for b in protocol.bins), *(u.name for u in protocol.unions), ALL]


def _ordered(protocol: Protocol, columns: Mapping[str, Any]) -> list[str]:
    known = [column.name for column in protocol.columns if column.name in columns]
    return known + sorted(set(columns) - set(known))


def _mean(values: Sequence[tuple[str, str, float]], protocol: Protocol, seed: int) -> Estimate | None:
    images = [image for image, _, _ in values]
    return estimate(np.array([value for *_, value in values]), images=images, perfect=protocol.perfect, seed=seed)


def _paired(
    ours: Sequence[tuple[str, str, float]], theirs: Sequence[tuple[str, str, float]], seed: int
) -> Estimate | None:
    other = {(image, mask): value for image, mask, value in theirs}
    pairs = [(image, value, other[image, mask]) for image, mask, value in ours if (image, mask) in other]
    if not pairs:
        return None
    images, mine, others = zip(*pairs, strict=True)
    return paired_difference(np.array(mine), np.array(others), images=images, seed=seed)


def _plain(tables: Mapping[str, Mapping[str, Table]]) -> dict[str, Any]:
    return {
        subject: {
            protocol: {row: {c: found.to_dict() for c, found in columns.items()} for row, columns in table.items()}
            for protocol, table in protocols.items()
        }
        for subject, protocols in tables.items()
    }


def _estimates(values: Mapping[str, Any]) -> dict[str, dict[str, Table]]:
    return {
        subject: {
            protocol: {row: {c: Estimate.of(found) for c, found in columns.items()} for row, columns in table.items()}
            for protocol, table in protocols.items()
        }
        for subject, protocols in values.items()
    }
