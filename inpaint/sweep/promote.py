"""A trial made into a preset."""

from __future__ import annotations

import yaml

from inpaint import __version__
from inpaint.config.run import RUN_NAME
from inpaint.config.sweep import trial_run
from inpaint.errors import ConfigError
from inpaint.sweep.analysis import ranked
from inpaint.sweep.trials import Trial, planned, read_records, recorded

OF_THE_TRIAL = ("name", "root", "preset")  # what a preset does not say


def promoted(name: str, trial: str | None, *, preset: str, root: str) -> str:
    """A preset's YAML with a finished trial's settings; its first lines say where they come from.

    Args:
        name: of the sweep.
        trial: its id, or that of a point (without the seed), whose first seed is taken; the point that is best on
            average over seeds when None.
        preset: its name.
        root: of the storage layout.

    Raises:
        ConfigError: no such sweep or trial, a trial that did not finish, or a name that cannot be a preset's.
    """
    if not RUN_NAME.fullmatch(preset):
        raise ConfigError(f"--as {preset}: expected a-z, 0-9 and -, starting with a letter")
    sweep, records = recorded(name, root=root), read_records(name, root=root)
    best = ranked(records, sweep)
    if trial is None and not best:
        raise ConfigError(f"{name} has no finished trial yet; wait for one, see `inpaint sweep status {name}`")
    if trial not in records:
        trial = next((point.trials[0].id for point in best if trial in (None, point.id)), trial)
    if trial not in records:
        raise ConfigError(f"{name} has no record of trial {trial}; known: {', '.join(records) or 'none'}")
    record = records[trial]
    if record.status != "finished":
        raise ConfigError(f"trial {trial} of {name} {record.status} at step {record.step}; promote a finished one")
    proposed = Trial(record.id, record.label, record.values, {}, record.seed)  # by a search that learns from results
    found = next((t for t in planned(sweep) if t.id == trial), proposed)
    run = trial_run(sweep, found.values, name=preset, root=root, seed=found.seed, settings=found.settings)
    settings = run.to_dict()
    for key in OF_THE_TRIAL:
        settings.pop(key)
    settings["tracking"]["group"] = None
    seen = next((point.told(sweep.metric) for point in best if record in point.trials), "not finite")
    head = [
        f"# {preset}: trial {trial} ({record.label}) of sweep {name}, {sweep.metric} {seen}"
        f" after {record.step} steps; inpaint {__version__}.",
        "# " + " ".join(f"{path}={value}" for path, value in record.values.items()),
    ]
    return "\n".join(head) + "\n" + yaml.safe_dump(settings, sort_keys=False)
