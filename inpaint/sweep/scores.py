"""Which scores a run or a sweep's trials log, asked before anything starts: one that nobody logs decides nothing."""

from __future__ import annotations

from collections.abc import Collection
from importlib.util import find_spec
from typing import TYPE_CHECKING

from inpaint.checkpoints.layout import direction
from inpaint.config.base import suggest
from inpaint.config.run import RunConfig
from inpaint.config.sweep import ASHA, SweepConfig
from inpaint.errors import ConfigError, EvaluationError
from inpaint.sweep.trials import example, run_of

if TYPE_CHECKING:
    from inpaint.methods import Method

OF_NETWORKS = ("lpips_", "face_")  # how metrics that need a scoring network begin
LOOKS = ("hole_error", "valid_error", "checkerboard", "seam_error")  # of `training.health`, on the batch of a step


def check_metrics(sweep: SweepConfig, *, root: str) -> list[str]:
    """Refuse a metric that the trials do not log.

    Returns:
        What cannot be looked at here, as lines: the scores of a method's own are known where torch is installed.

    Raises:
        ConfigError: with the nearest metric that is logged.
        EvaluationError: a published table that is not there.
    """
    from inpaint.evaluation.published import find_tables

    find_tables(list(sweep.published))
    run = run_of(sweep, example(sweep), root=root)
    check_scores(run)
    for name, mode in sweep.metrics.items():
        best = direction(name) or mode
        if mode != best:
            raise ConfigError(f"{sweep.name}: metrics: {name}: {mode} would look for the worst; set it to {best}")
    known = logged_scores(run)
    _check_rungs(sweep, run, known)
    if set(sweep.metrics) <= set(known):
        return []
    if find_spec("torch") is None:
        return [f"metrics {', '.join(sorted(set(sweep.metrics) - set(known)))}, for which torch has to be installed"]
    from inpaint.methods import METHODS

    known += METHODS[run.method.name].own_scores
    for name in sweep.metrics:
        if name not in known:
            shown = ", ".join(score for score in known if "@" not in score)
            raise ConfigError(f"{sweep.name}: metrics: no trial logs {name}{suggest(name, known)} ({shown})")
    return []


def check_scores(run: RunConfig) -> list[str]:
    """Refuse a protocol that is not there, best checkpoints by a score that is not logged, or by its wrong end, and a
    rule of `health.stop_when` that waits for what no stage logs.

    Returns:
        What cannot be looked at here, as lines: what is a method's own is known where torch is installed.

    Raises:
        ConfigError: with the nearest name that is logged.
    """
    try:
        known = logged_scores(run, present=True)
    except EvaluationError as error:
        raise ConfigError(f"evaluation.protocol: {error}") from None
    wanted = {"checkpoints.metric": run.checkpoints.metric} if run.checkpoints.keep_best else {}
    wanted |= {f"health.stop_when.{name}": name for name in run.health.stop_when}
    unknown = {setting: name for setting, name in wanted.items() if name not in known}
    if unknown and find_spec("torch") is None:
        return [f"{setting} {name}, for which torch has to be installed" for setting, name in unknown.items()]
    if unknown:
        from inpaint.methods import METHODS

        known += METHODS[run.method.name].own_scores
    of_stages = _logged_values(run) if any("/" in name for name in unknown.values()) else set()
    for setting, name in unknown.items():
        names = known if setting == "checkpoints.metric" else {*known, *of_stages}  # losses are not scored
        if name not in names:
            shown = ", ".join(score for score in known if "@" not in score)
            raise ConfigError(f"{setting}: the run logs no {name}{suggest(name, names)} (it logs {shown})")
    metric, mode = run.checkpoints.metric, run.checkpoints.mode
    best = direction(metric) or mode
    if run.checkpoints.keep_best and mode != best:
        raise ConfigError(f"checkpoints.mode {mode} would keep the worst by {metric}; set it to {best}")
    return []


def _check_rungs(sweep: SweepConfig, run: RunConfig, known: Collection[str]) -> None:
    """Refuse rungs at which trials are judged by fills of a network that none of their steps has trained yet."""
    if not isinstance(sweep.scheduler, ASHA) or sweep.metric not in known or find_spec("torch") is None:
        return
    from inpaint.methods import untrained

    method, first = _without_data(run), sweep.scheduler.grace_steps
    if unready := untrained(method, run, first):
        raise ConfigError(
            f"{sweep.name}: at scheduler.grace_steps {first} no step has trained {' and '.join(unready)}, so "
            f"{sweep.metric} would judge trials by noise; set it to steps of the stage that does"
        )


def _logged_values(run: RunConfig) -> set[str]:
    """Names of the losses and rates of a run's stages, and of the looks at their networks."""
    from inpaint.training.plan import logged_names

    stages = [stage for stage in _without_data(run).stages() if stage.steps]
    values = logged_names(stages, clipped=run.training.clip_gradient_norm is not None)
    return values if run.health.every else {name for name in values if not name.startswith("health/")}


def _without_data(run: RunConfig) -> Method:
    """The run's method, of which only shapes are known."""
    import torch

    from inpaint.methods import build_method

    with torch.device("meta"):
        return build_method(run)


def logged_scores(run: RunConfig, *, present: bool = False) -> list[str]:
    """Names that a run's evaluations and looks at its health log, headline first; per bin as `psnr@10-20`.

    LPIPS of weights that need only be `present` is among them only if asked for: some machine may not have the file.
    """
    from inpaint.evaluation.protocols import find_protocols

    (protocol,) = find_protocols([run.evaluation.protocol])
    sources = run.evaluation.lpips
    certain = {f"lpips_{network}" for network in sources if present or sources[network] != "present"}
    plain = [column for column in protocol.columns if "@" not in column.name]
    columns = [c.name for c in plain if c.metric in certain or not c.metric.startswith(OF_NETWORKS)]
    bins = [] if run.holes.kind == "centre" else [found.name for found in (*protocol.bins, *protocol.unions)]
    looks = [f"health/{name}" for name in LOOKS] if run.health.every else []
    return [*columns, *looks, *(f"{column}@{row}" for row in bins for column in columns)]
