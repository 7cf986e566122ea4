"""The logged history of a run: one JSON line per logged step, the same for a run that was killed and one that was not.

`<run>/history.jsonl` is rewritten with each checkpoint, before its manifest. A resumed run takes the lines up to its
checkpoint's step and logs the others again, so nothing is missing and nothing is there twice. Only what the training
decides is in it (losses, learning rates, scores); speed and time are in W&B and the gauges.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from inpaint import storage

FILE = "history.jsonl"


class History:
    """The rows of a run so far, in order of their steps."""

    def __init__(self, rows: list[dict[str, Any]] | None = None) -> None:
        self.rows = rows or []

    @classmethod
    def resume(cls, run: str, step: int) -> History:
        """The history of the run at this URL up to and including `step`."""
        return cls([row for row in read_history(run) if row["step"] <= step] if step else [])

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """Log `values` at `step`; a second call for a step adds to its row."""
        if self.rows and self.rows[-1]["step"] == step:
            self.rows[-1] |= values
        else:
            self.rows.append({"step": step, **values})

    def newest(self, name: str, count: int) -> list[Any]:
        """The last `count` values logged under a name, oldest first."""
        return [row[name] for row in self.rows if name in row][-count:]

    def cut(self, step: int) -> None:
        """Forget what lies after `step` (after a rollback)."""
        self.rows = [row for row in self.rows if row["step"] <= step]

    def to_bytes(self) -> bytes:
        """The file's content."""
        return b"".join(json.dumps(row).encode() + b"\n" for row in self.rows)


def read_history(run: str) -> list[dict[str, Any]]:
    """The logged rows of the run at this URL, oldest first; empty before the first checkpoint."""
    place = storage.join(run, FILE)
    if not storage.exists(place):
        return []
    return [json.loads(line) for line in storage.read_bytes(place).splitlines()]
