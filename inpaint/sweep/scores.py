"""Which scores a sweep's trials log, asked before anything starts: a metric that nobody logs decides nothing."""

from __future__ import annotations

from importlib.util import find_spec

from inpaint.config.base import suggest
from inpaint.config.run import RunConfig
from inpaint.config.sweep import SweepConfig
from inpaint.errors import ConfigError
from inpaint.sweep.trials import planned, run_of

OF_NETWORKS = ("lpips_", "face_")  # how metrics that need a scoring network begin
LOOKS = ("hole_error", "valid_error", "checkerboard", "seam_error")  # of `training.health`, on the batch of a step


def check_metrics(sweep: SweepConfig, *, root: str) -> list[str]:
    """Refuse a metric that the trials do not log.

    Returns:
        What cannot be looked at here, as lines: the scores of a method's own are known where torch is installed.

    Raises:
        ConfigError: with the nearest metric that is logged.
        EvaluationError: the runs name no protocol.
    """
    run = run_of(sweep, planned(sweep)[0], root=root)
    known = logged_scores(run)
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


def logged_scores(run: RunConfig) -> list[str]:
    """Names that a run's evaluations and looks at its health always log, headline first; per bin as `psnr@10-20`.

    LPIPS of weights that need only be `present` is not among them: some machine may not have the file.
    """
    from inpaint.evaluation.protocols import find_protocols

    (protocol,) = find_protocols([run.evaluation.protocol])
    certain = {f"lpips_{network}" for network, source in run.evaluation.lpips.items() if source != "present"}
    plain = [column for column in protocol.columns if "@" not in column.name]
    columns = [c.name for c in plain if c.metric in certain or not c.metric.startswith(OF_NETWORKS)]
    bins = [] if run.holes.kind == "centre" else [found.name for found in (*protocol.bins, *protocol.unions)]
    looks = [f"health/{name}" for name in LOOKS] if run.health.every else []
    return [*columns, *looks, *(f"{column}@{row}" for row in bins for column in columns)]
