"""The trials of a sweep and their records in the store.

    <root>/sweeps/<sweep>/sweep.yaml            the definition it was started with
    <root>/sweeps/<sweep>/proposed/<id>.json    a point that a learning search asked for; written before it starts
    <root>/sweeps/<sweep>/trials/<id>.json      what became of a trial; written when it is over
    <root>/sweeps/<sweep>/runs/<sweep>-<id>/    the trial's run, like any other

The records are the truth about a sweep: a trial without one is to be done, from its run's newest checkpoint. So no
trial is lost or made twice, whoever is killed when. One that is recorded as failed is tried again at the next start.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import yaml

from inpaint import storage
from inpaint.config.base import load_yaml, validate
from inpaint.config.run import RunConfig
from inpaint.config.sweep import SweepConfig, trial_id, trial_run
from inpaint.errors import ConfigError

DEFINITION = "sweep.yaml"
GROWING = ("trials", "concurrent", "about")  # settings that may change while a sweep is under way

Status = Literal["finished", "stopped", "diverged", "failed"]


@dataclass(frozen=True)
class Trial:
    """One trial to be made.

    Attributes:
        id: three digits, and the seed when the sweep has several.
        label: of its fixed point, or "random <number>".
        values: of the varied paths.
        settings: beside the varied ones.
        seed: of its run.
    """

    id: str
    label: str
    values: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True)
class Record:
    """What became of a trial.

    Attributes:
        status: `finished`, `stopped` (by the scheduler), `diverged` (a loss was not finite, or a rule of
            `health.stop_when` ended it), or `failed`.
        step: the last one made.
        metrics: newest scores by name, and unweighted loss terms as `<update>/<term>`.
        seconds: of training, over all its starts.
        gpus: it held while it trained.
        reason: why it did not finish; empty when it did.
    """

    id: str
    label: str
    values: dict[str, Any]
    seed: int
    status: Status
    step: int
    metrics: dict[str, float]
    seconds: float
    gpus: float = 0.0
    reason: str = ""

    @property
    def gpu_hours(self) -> float:
        """Hours of GPU that the trial cost."""
        return self.seconds * self.gpus / 3600


def sweep_url(name: str, *, root: str) -> str:
    """The sweep's folder."""
    return storage.join(root, "sweeps", name)


def planned(sweep: SweepConfig) -> list[Trial]:
    """Every trial that is known beforehand: the fixed points, then seeded draws; each with every seed.

    A search that learns from results (tpe) proposes the later ones itself; then only the points are known.
    """
    points = [(point.label, point.values, point.settings) for point in sweep.points[: sweep.trials]]
    if sweep.search.kind == "random":
        points += [(f"random {n + 1}", sweep.draw(n), {}) for n in range(sweep.trials - len(points))]
    return [
        Trial(trial_id(sweep, number, seed), label, dict(values), dict(settings), seed)
        for number, (label, values, settings) in enumerate(points)
        for seed in sweep.seeds
    ]


def run_of(sweep: SweepConfig, trial: Trial, *, root: str) -> RunConfig:
    """The trial's run, in the sweep's folder, on the shards under `root`.

    Raises:
        ConfigError: values that the preset's run does not take.
    """
    name = f"{sweep.name}-{trial.id}"
    plain = trial_run(sweep, trial.values, name=name, root=root, seed=trial.seed, settings=trial.settings)
    shards = {"data.train": plain.train_url, "data.held_out": plain.held_out_url}
    return trial_run(
        sweep,
        trial.values,
        name=name,
        root=sweep_url(sweep.name, root=root),
        seed=trial.seed,
        settings={**trial.settings, **shards},
    )


def begin(sweep: SweepConfig, *, root: str) -> None:
    """Write the definition, or check that a sweep of this name was started with the same one.

    Raises:
        ConfigError: it was started with another definition; names what differs.
    """
    text = yaml.safe_dump(sweep.model_dump(mode="json"), sort_keys=False).encode()
    try:
        storage.write_bytes(_definition(sweep.name, root), text, if_absent=True)
    except storage.AlreadyExists:
        check_unchanged(sweep, root=root)
        storage.write_bytes(_definition(sweep.name, root), text)


def check_unchanged(sweep: SweepConfig, *, root: str) -> None:
    """Refuse another definition than the one that a sweep of this name was started with, if it was.

    Raises:
        ConfigError: names what differs.
    """
    place = _definition(sweep.name, root)
    if not storage.exists(place):
        return
    known, asked = (s.model_dump(mode="json") for s in (recorded(sweep.name, root=root), sweep))
    known["metrics"], asked["metrics"] = list(known["metrics"].items()), list(asked["metrics"].items())  # first decides
    changed = [key for key in asked if key not in GROWING and known[key] != asked[key]]
    if changed:
        raise ConfigError(
            f"{place}: the sweep was started with another {', '.join(changed)}; "
            "give the definition that it was started with, or another --name"
        )


def recorded(name: str, *, root: str) -> SweepConfig:
    """The definition a sweep was started with.

    Raises:
        ConfigError: no such sweep under this root.
    """
    place = _definition(name, root)
    if not storage.exists(place):
        raise ConfigError(f"{place}: no sweep of this name here; `inpaint sweep run {name}` starts one")
    return validate(SweepConfig, load_yaml(storage.read_bytes(place).decode(), place=place), place=place)


def write_record(sweep: SweepConfig, record: Record, *, root: str) -> None:
    """Keep what became of a trial."""
    place = storage.join(sweep_url(sweep.name, root=root), "trials", f"{record.id}.json")
    storage.write_bytes(place, json.dumps(asdict(record), indent=1).encode())


def read_records(name: str, *, root: str, seen: dict[str, str] | None = None) -> dict[str, Record]:
    """Records by trial, in order.

    Args:
        name: of the sweep.
        root: of the storage layout.
        seen: URL → version of those that are not read again; gets those that were, when all could be.
    """
    found: dict[str, Record] = {}
    seen = {} if seen is None else seen
    infos = storage.list_objects(storage.join(sweep_url(name, root=root), "trials"))
    new = [info for info in infos if seen.get(info.url) != info.etag]
    for info in new:
        values: Mapping[str, Any] = json.loads(storage.read_bytes(info.url))
        found[values["id"]] = Record(**values)
    seen.update((info.url, info.etag) for info in new)
    return dict(sorted(found.items()))


def propose_points(
    sweep: SweepConfig, points: Sequence[Mapping[str, Any]], *, first: int, root: str
) -> list[Trial]:
    """Write down points that a search asked for, so that a sweep started again makes these and no others.

    Each is one object: whenever the sweep is killed, a point is known with every seed, or not at all.

    Args:
        sweep: checked definition.
        points: values of the varied paths.
        first: number of the first of them, from 0.
        root: of the storage layout.

    Returns:
        Their trials.
    """
    trials = []
    for number, values in enumerate(points, start=first):
        seed = sweep.seeds[0]
        trial = Trial(trial_id(sweep, number, seed), f"tpe {number + 1}", dict(values), {}, seed)
        place = storage.join(sweep_url(sweep.name, root=root), "proposed", f"{trial.id}.json")
        storage.write_bytes(place, json.dumps(asdict(trial), indent=1).encode())
        trials += _with_every_seed(sweep, trial)
    return trials


def known_trials(sweep: SweepConfig, *, root: str) -> list[Trial]:
    """The planned trials, and those of the points that the search has proposed so far."""
    infos = storage.list_objects(storage.join(sweep_url(sweep.name, root=root), "proposed"))
    proposed = [Trial(**json.loads(storage.read_bytes(info.url))) for info in infos]
    trials = {trial.id: trial for one in proposed for trial in _with_every_seed(sweep, one)}
    return planned(sweep) + list(trials.values())


def _with_every_seed(sweep: SweepConfig, trial: Trial) -> list[Trial]:
    number = int(trial.id.partition("-")[0])
    return [replace(trial, id=trial_id(sweep, number, seed), seed=seed) for seed in sweep.seeds]


def foreseen(sweep: SweepConfig, *, root: str) -> list[Trial]:
    """The known trials; before a search has proposed its first one, a drawn one that stands for it in checks."""
    return known_trials(sweep, root=root) or [example(sweep)]


def example(sweep: SweepConfig) -> Trial:
    """The first planned trial, else one of drawn values; known without a look into the store."""
    seed = sweep.seeds[0]
    return next(iter(planned(sweep)), Trial(trial_id(sweep, 0, seed), "drawn", sweep.draw(0), {}, seed))


def remaining(sweep: SweepConfig, *, root: str) -> list[Trial]:
    """Trials that are to be done, in order: those without a record, and those that failed."""
    records = read_records(sweep.name, root=root)
    over = {name for name, record in records.items() if record.status != "failed"}
    return [trial for trial in known_trials(sweep, root=root) if trial.id not in over]


def _definition(name: str, root: str) -> str:
    return storage.join(sweep_url(name, root=root), DEFINITION)
