"""A search: which preset, which settings vary and how, what is measured, what it may cost. Torch-free, like a run.

A definition is a file in `sweeps/`, or a YAML file of the user's. Every trial of a sweep is a run like any other: the
preset, the chosen budget, the sweep's own settings, and the trial's values, laid over each other by dotted path. What a
trial asks of the cluster is its run's `resources`: with one worker it is a plain Tune function (`gpus_per_worker` below
1 lets trials share a GPU), with several a Ray Train run of its own.

Unless told otherwise, a trial looks at its health and shows samples whenever it is scored, and is scored with LPIPS
where AlexNet's weights lie on the machine: score and look disagree.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from inpaint.config.base import (
    Strict,
    apply_overrides,
    known_paths,
    lay_over,
    parse_overrides,
    read_yaml,
    suggest,
    validate,
)
from inpaint.config.run import RUN_NAME, RunConfig, Seed, list_presets, load_run
from inpaint.errors import ConfigError

Value = bool | int | float | str
SET_BY_SWEEP = {
    "name": "a trial's name is its sweep's with a number",
    "root": "trials lie in their sweep, whose root is --root",
    "seed": "the sweep's seeds are those of its runs",
    "tracking.group": "a sweep's runs are grouped by its name",
}
Direction = Literal["max", "min"]
INNER = 0.618  # where between two bounds a value is tried: on no whole number, and on no round share of the way
CHECKED_TRIALS = 1000  # of a search, before it starts
DRIVER_CPUS = 0.05  # of a trial whose workers are a Ray Train run of their own


class LogUniform(Strict):
    """Uniform in the logarithm, between the two bounds."""

    loguniform: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]

    def draw(self, generator: random.Random) -> float:
        low, high = self.loguniform
        return math.exp(generator.uniform(math.log(low), math.log(high)))

    def probes(self) -> list[Value]:
        """The values to check before a sweep starts: both bounds, then one between them."""
        low, high = self.loguniform
        return [low, high, math.exp(math.log(low) * (1 - INNER) + math.log(high) * INNER)]

    @model_validator(mode="after")
    def _ordered(self) -> LogUniform:
        _check_bounds(*self.loguniform)
        return self


class Uniform(Strict):
    """Uniform between the two bounds."""

    uniform: tuple[float, float]

    def draw(self, generator: random.Random) -> float:
        return generator.uniform(*self.uniform)

    def probes(self) -> list[Value]:
        """The values to check before a sweep starts: both bounds, then one between them."""
        low, high = self.uniform
        return [low, high, low * (1 - INNER) + high * INNER]

    @model_validator(mode="after")
    def _ordered(self) -> Uniform:
        _check_bounds(*self.uniform)
        return self


class Choice(Strict):
    """One of the listed values, all equally likely."""

    choice: tuple[Any, ...] = Field(min_length=1)

    def draw(self, generator: random.Random) -> Any:
        return generator.choice(self.choice)

    def probes(self) -> list[Any]:
        """The values to check before a sweep starts: all."""
        return list(self.choice)


def _kind_of(value: Any) -> str | None:
    if isinstance(value, Mapping):
        kinds = (LogUniform, Uniform, Choice)
        return next((kind.__name__ for kind in kinds if value.keys() & kind.model_fields.keys()), None)
    return type(value).__name__


Distribution = Annotated[
    Annotated[LogUniform, Tag("LogUniform")] | Annotated[Uniform, Tag("Uniform")] | Annotated[Choice, Tag("Choice")],
    Discriminator(
        _kind_of,
        custom_error_type="distribution",
        custom_error_message="expected loguniform: [low, high], uniform: [low, high] or choice: [one, another, ...]",
    ),
]


class Point(Strict):
    """Fixed values that are tried before anything is drawn.

    Attributes:
        label: what the point is called in reports ("Table 1, row 3").
        values: by dotted path; what a point leaves out keeps the preset's value.
        settings: by dotted path, beside the varied ones (another design, say).
    """

    label: str
    values: dict[str, Any] = {}
    settings: dict[str, Any] = {}


class RandomSearch(Strict):
    """Independent draws; trial i is a function of the seed and i alone."""

    kind: Literal["random"] = "random"
    seed: int = 0


class TPESearch(Strict):
    """Optuna's tree-structured Parzen estimator; with several metrics, its multi-objective form."""

    kind: Literal["tpe"] = "tpe"
    seed: int = Field(0, ge=0, lt=2**31)  # what the sampler takes
    multi_objective: bool = False


class FixedBudget(Strict):
    """Every trial trains for the whole budget, as in the paper."""

    kind: Literal["fixed"] = "fixed"


class ASHA(Strict):
    """Successive halving: at each rung, a trial goes on only if it is among the best 1/`reduction` seen there."""

    kind: Literal["asha"] = "asha"
    grace_steps: int = Field(gt=0)
    reduction: int = Field(3, ge=2)


class SweepConfig(Strict):
    """A whole search, with the budget that was chosen."""

    name: str
    preset: str
    preset_settings: dict[str, Any] | None = None  # of a preset that is a user's file; `load_sweep` reads them
    about: str = ""
    settings: dict[str, Any] = {}
    vary: dict[str, Distribution] = {}
    points: tuple[Point, ...] = ()
    trials: int = Field(gt=0, le=100_000)  # all are planned beforehand
    metrics: dict[str, Direction]
    budgets: dict[str, dict[str, Any]] = {}
    budget: str | None = None
    search: Annotated[RandomSearch | TPESearch, Field(discriminator="kind")] = RandomSearch()
    scheduler: Annotated[FixedBudget | ASHA, Field(discriminator="kind")] = FixedBudget()
    seeds: tuple[Seed, ...] = (0,)
    concurrent: int | None = Field(None, gt=0)  # trials at a time; None = as many as the cluster holds
    published: tuple[str, ...] = ()  # tables whose rows the points are; "Table 1, row 3" in a label says which

    @field_validator("name")
    @classmethod
    def _name_is_a_label(cls, name: str) -> str:
        if not RUN_NAME.fullmatch(name) or len(name) > 32:
            raise ValueError(f"{name!r} cannot name a sweep; use up to 32 of a-z, 0-9 and -, starting with a letter")
        return name

    @model_validator(mode="after")
    def _parts_fit(self) -> SweepConfig:
        if not self.metrics:
            raise ValueError("metrics: name at least one, with max or min")
        if not self.vary and self.trials > len(self.points):
            raise ValueError(f"trials {self.trials}, but nothing varies; there are {len(self.points)} points to try")
        if len(set(self.seeds)) != len(self.seeds) or not self.seeds:
            raise ValueError(f"seeds {list(self.seeds)}: give one or more, each once")
        own = [p.settings for p in self.points] + list(self.budgets.values())
        for path in (*self.vary, *self.settings, *(path for settings in own for path in settings)):
            if path in SET_BY_SWEEP:
                raise ValueError(f"{path}: {SET_BY_SWEEP[path]}; leave it out")
        for point in self.points:
            for path in point.values:
                if path not in self.vary:
                    raise ValueError(f"points {point.label!r}: {path} does not vary{suggest(path, self.vary)}")
        if self.budget is not None and self.budget not in self.budgets:
            known = ", ".join(self.budgets) or "none is defined"
            raise ValueError(f"budget {self.budget!r} is unknown ({known}){suggest(self.budget, self.budgets)}")
        longest = max((f"{self.name}-{trial_id(self, self.trials - 1, seed)}" for seed in self.seeds), key=len)
        if not RUN_NAME.fullmatch(longest):
            raise ValueError(f"name {self.name!r}: a trial would be named {longest}, longer than 40; shorten it")
        return self

    @property
    def metric(self) -> str:
        """The metric that decides: the first one."""
        return next(iter(self.metrics))

    def draw(self, number: int) -> dict[str, Any]:
        """The values of the `number`-th random trial, from 0; a function of the search's seed and the number alone."""
        generator = random.Random(f"{self.search.seed}/{number}")
        return {path: distribution.draw(generator) for path, distribution in sorted(self.vary.items())}


def trial_id(sweep: SweepConfig, number: int, seed: int) -> str:
    """The name of a trial inside its sweep."""
    return f"{number:03d}" if len(sweep.seeds) == 1 else f"{number:03d}-s{seed}"


def load_sweep(
    source: str,
    *,
    budget: str | None = None,
    name: str | None = None,
    assignments: Iterable[str] = (),
) -> SweepConfig:
    """The search that a definition in `sweeps/` or a YAML file describes.

    Args:
        source: a definition's name, or a file's path.
        budget: one of its budgets; its first when None.
        name: of the sweep; the file's or definition's when None.
        assignments: `["trials=10", "settings.data.dataset=mine", ...]`; a path after `settings.` is a run's.

    Raises:
        ConfigError: no such definition, or a wrong setting; names the place and the nearest right word.
    """
    values = {"name": Path(source).stem, **read_yaml(source, kind="sweep", folder=_folder())}
    overrides = parse_overrides(assignments)
    own = {path: value for path, value in overrides.items() if not path.startswith("settings.")}
    settings = {path.removeprefix("settings."): value for path, value in overrides.items() if path not in own}
    if "preset" in own:
        values.pop("preset_settings", None)
    values = apply_overrides(values, own)
    values["settings"] = {**values.get("settings", {}), **settings}
    values["budget"] = budget or values.get("budget") or next(iter(values.get("budgets") or {}), None)
    values["name"] = name or values["name"]
    sweep = validate(SweepConfig, values, place=source)
    if sweep.preset_settings is None and sweep.preset not in list_presets():
        settings = load_run(sweep.preset, name="preset", root="nowhere").to_dict()
        sweep = sweep.model_copy(update={"preset_settings": settings})
    try:
        for _ in foreseen_runs(sweep, root="nowhere"):
            pass
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    _check_rungs(sweep, place=source)
    return sweep


def trial_run(
    sweep: SweepConfig,
    values: Mapping[str, Any],
    *,
    name: str,
    root: str,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
) -> RunConfig:
    """The run of one trial.

    Args:
        sweep: the search.
        values: of the varied paths.
        name: of the run.
        root: of the storage layout.
        seed: of the run: initial weights, data order and holes are functions of it, so trials of a seed share them.
        settings: beside the varied ones (a point's own).

    Raises:
        ConfigError: a path or value that the preset's run does not take.
    """
    return _laid_over(_preset(sweep), sweep, values, name=name, root=root, seed=seed, settings=settings or {})


def foreseen_runs(sweep: SweepConfig, *, root: str) -> Iterator[RunConfig]:
    """Runs that the sweep can make: of its points and draws (the first thousand), and at and between the bounds of
    every distribution, for a search that learns what it tries.

    Raises:
        ConfigError: one of them cannot be; names its point, path or draw.
    """
    checks = [(f"point {p.label!r}", p.values, p.settings) for p in sweep.points]
    checks += [(what, {path: value}, {}) for what, path, value in _probes(sweep)]
    if sweep.search.kind == "random":
        draws = range(min(sweep.trials - len(sweep.points), CHECKED_TRIALS))
        checks += [(f"random {n + 1}", sweep.draw(n), {}) for n in draws]
    preset = _preset(sweep)
    for what, values, settings in checks or [("settings", {}, {})]:
        try:
            yield _laid_over(preset, sweep, values, settings=settings, name="trial", root=root, seed=sweep.seeds[0])
        except ConfigError as error:
            raise ConfigError(f"{what}: {error}") from None


def _preset(sweep: SweepConfig) -> RunConfig:
    """The run that all trials are laid over."""
    if sweep.preset_settings is None:
        return load_run(sweep.preset, name="preset", root="nowhere")
    return validate(RunConfig, sweep.preset_settings, place=sweep.preset)


def _laid_over(
    preset: RunConfig, sweep: SweepConfig, values: Mapping[str, Any], *, settings: Mapping[str, Any], **own: Any
) -> RunConfig:
    budget = sweep.budgets.get(sweep.budget or "", {})
    given = {**budget, **sweep.settings, **settings, **values, "tracking.group": sweep.name, **own}
    _check_paths(given, preset, place=sweep.name)
    run = validate(RunConfig, lay_over(RunConfig, preset.to_dict(), given), place=sweep.name)
    unsaid = {path: value for path, value in _watching(run).items() if not _is_given(path, given)}
    return validate(RunConfig, apply_overrides(run.to_dict(), unsaid), place=sweep.name)


def _watching(run: RunConfig) -> dict[str, Any]:
    """What a trial logs beside its scores, by default."""
    every = run.evaluation.every
    return {
        "health.every": run.health.every or every,
        "tracking.images_every": min(run.tracking.images_every, every),
        "evaluation.lpips": run.evaluation.lpips or {"alex": "present"},
    }


def _is_given(path: str, given: Mapping[str, Any]) -> bool:
    return any(path == other or path.startswith(f"{other}.") or other.startswith(f"{path}.") for other in given)


def _check_paths(given: Iterable[str], run: RunConfig, *, place: str) -> None:
    """Refuse paths at which a run has no setting, as far as that is known before they are laid over it."""
    known = known_paths(run)
    parents = {path.rpartition(".")[0] for path in known} | set(known)
    for path in given:
        if path not in parents and path.rpartition(".")[0] not in parents:
            raise ConfigError(f"{place}: {path} is not a setting of a run{suggest(path, known)}")


def _probes(sweep: SweepConfig) -> Iterator[tuple[str, str, Any]]:
    """What is tried, its path, and a value of it, for every distribution."""
    for path, distribution in sweep.vary.items():
        *ends, inner = distribution.probes()
        yield from ((f"vary {path}", path, value) for value in ends)
        between = "" if isinstance(distribution, Choice) else ", which draws between its bounds (or list a choice)"
        yield f"vary {path}{between}", path, inner


def _check_rungs(sweep: SweepConfig, *, place: str) -> None:
    """Refuse rungs at which nobody is ever judged: behind the end of a trial, or behind its last score before that."""
    if not isinstance(sweep.scheduler, ASHA):
        return
    run, grace = trial_run(sweep, {}, name="check", root="nowhere"), sweep.scheduler.grace_steps
    if grace >= run.total_steps:
        raise ConfigError(f"{place}: scheduler.grace_steps {grace} of {run.total_steps} steps in all")
    what = "health" if sweep.metric.startswith("health/") else "evaluation"
    every = run.health.every if what == "health" else run.evaluation.every
    if every and (run.total_steps - 1) // every * every < grace:
        raise ConfigError(
            f"{place}: scheduler.grace_steps {grace}, but {sweep.metric} comes every {every} of {run.total_steps} "
            f"steps, so no trial is judged before its end; set settings.{what}.every to {grace}"
        )


def _check_bounds(low: float, high: float) -> None:
    if not low < high:
        raise ValueError(f"bounds [{low:g}, {high:g}]: the first must be below the second")


def _folder() -> Path:
    return Path(__file__).parents[2] / "sweeps"  # beside the package, in a checkout and where it is installed
