"""The results of a root: which runs were scored, where, and how far each was trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from inpaint import storage
from inpaint.evaluation.results import Result, load_result


@dataclass(frozen=True)
class Found:
    """A result and where it lies."""

    url: str
    result: Result
    modified: float

    @property
    def about(self) -> dict[str, object]:
        """What was scored, without the way it filled."""
        first = dict(next(iter(self.result.subjects.values())))
        return {key: value for key, value in first.items() if key != "fill"}


def results_of(folder: str) -> list[Found]:
    """Every whole result below a folder (a root, a run, one evaluation), the oldest first."""
    return sorted(_below(folder), key=lambda found: (found.modified, found.url))


def results_of_root(root: str) -> list[Found]:
    """Every whole result of the runs of a root, and of the baselines and finished images beside them."""
    places = [storage.join(root, kind) for kind in ("runs", "evaluations")]
    return [found for place in places for found in results_of(place)]


def _below(folder: str) -> Iterator[Found]:
    for info in storage.list_objects(folder):
        if storage.name_of(info.url) == "result.json":
            yield Found(info.url.removesuffix("/result.json"), load_result(info.url), info.modified)
