"""Which scores a sweep's trials log, asked before anything starts: a metric that nobody logs decides nothing."""

from __future__ import annotations

from importlib.util import find_spec

from inpaint.config.base import suggest
from inpaint.config.run import RunConfig
from inpaint.config.sweep import SweepConfig
from inpaint.errors import ConfigError
from inpaint.sweep.trials import planned, run_of

LOOKS = ("hole_error", "valid_error", "checkerboard", "seam_error")  # of `training.health`, on the batch of a step


def check_metrics(sweep: SweepConfig, *, root: str) -> list[str]:
    """Refuse a metric that the trials do not log.

    Returns:
        What cannot be looked at here, as lines: the scores need numpy and torch.

    Raises:
        ConfigError: with the nearest metric that is logged.
        EvaluationError: the runs name no protocol.
    """
    missing = [package for package in ("numpy", "torch") if find_spec(package) is None]
    if missing:
        return [f"metrics, which need {' and '.join(missing)}"]
    run = run_of(sweep, planned(sweep)[0], root=root)
    known = logged_scores(run)
    for name in sweep.metrics:
        if name not in known:
            shown = ", ".join(score for score in known if "@" not in score)
            raise ConfigError(f"{sweep.name}: metrics: no trial logs {name}{suggest(name, known)} ({shown})")
    return []


def logged_scores(run: RunConfig) -> list[str]:
    """Names that a run's evaluations and looks at its health log, headline first; per bin as `psnr@10-20`."""
    from inpaint.evaluation.metrics import METRICS
    from inpaint.evaluation.protocols import find_protocols
    from inpaint.methods import METHODS

    (protocol,) = find_protocols([run.evaluation.protocol])
    columns = [column.name for column in protocol.columns if column.metric in METRICS and "@" not in column.name]
    bins = [] if run.holes.kind == "centre" else [found.name for found in (*protocol.bins, *protocol.unions)]
    looks = [f"health/{name}" for name in LOOKS] if run.health.every else []
    own = METHODS[run.method.name].own_scores
    return [*columns, *own, *looks, *(f"{column}@{row}" for row in bins for column in columns)]
