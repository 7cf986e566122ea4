"""The driver of a sweep: `python -m ray_jobs.tune sweep.yaml`. Ray Tune hands out trials; the store remembers them.

Tune's own state stays in a temporary folder: it is pickled, written at most every ten seconds, and holds the results
of nothing but this start. What counts are the trials' records (`inpaint.sweep.trials`) and their runs' checkpoints, so
a sweep started again does what is missing, whoever was killed when.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from inpaint import storage
from inpaint.cluster.task import MAX_NODES
from inpaint.config.sweep import DRIVER_CPUS, SweepConfig, load_sweep
from inpaint.errors import InpaintError, MendableError, TrainingError
from inpaint.sweep.capacity import check_capacity
from inpaint.sweep.proposing import propose
from inpaint.sweep.scores import check_metrics
from inpaint.sweep.trials import (
    Record,
    Trial,
    begin,
    check_unchanged,
    foreseen,
    known_trials,
    planned,
    propose_points,
    read_records,
    remaining,
    run_of,
    sweep_url,
    write_record,
)
from ray_jobs.lease import Lease
from ray_jobs.preflight import machine, preflight
from ray_jobs.verdict import is_mendable, once_for_all

log = logging.getLogger(__name__)

RESTARTS = 2  # of a trial that broke, before it is recorded as failed
WATCH_SECONDS = 1.0
RAY_WATCH_SECONDS = 3.0

Report = Callable[[Record, int, int], None]


def run_sweep(
    sweep: SweepConfig,
    *,
    root: str,
    address: str | None = None,
    on_record: Report = lambda record, done, total: None,
    on_note: Callable[[str], None] = lambda text: log.info("%s", text),
) -> dict[str, Record]:
    """Make every trial of a sweep that has no record yet, and those that failed.

    Args:
        sweep: checked definition.
        root: of the storage layout.
        address: of a Ray cluster; `RAY_ADDRESS` from the environment, else a Ray of its own on this machine.
        on_record: called with each new record, how many there are, and of how many.
        on_note: called with a line about what goes on.

    Returns:
        All records by trial.

    Raises:
        ConfigError: a definition other than the one the sweep was started with, or a metric that nobody logs.
        ClusterError: more at a time than the cluster holds.
        TrainingError: another driver makes this sweep.
    """
    import ray

    from ray_jobs.runtime import start_ray
    from ray_jobs.stopping import clear_stop_mark

    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # with verbose=0, nothing of Tune's on the screen
    root = root if storage.is_remote(root) else str(Path(root).absolute())
    known = planned(sweep)
    check_unchanged(sweep, root=root)
    check_metrics(sweep, root=root)
    if not (address or os.environ.get("RAY_ADDRESS") or ray.is_initialized()):
        check_capacity(sweep, foreseen(sweep, root=root), root=root, nodes=here())
    preflight(run_of(sweep, foreseen(sweep, root=root)[0], root=root), local=False)
    with ExitStack() as stack:
        stack.enter_context(Lease(sweep_url(sweep.name, root=root)).acquire(on_wait=on_note))
        if start_ray(address):
            stack.callback(ray.shutdown)
        stack.enter_context(_RayWatch())
        concurrent = check_capacity(sweep, foreseen(sweep, root=root), root=root, nodes=_most_nodes())
        begin(sweep, root=root)
        clear_stop_mark(sweep_url(sweep.name, root=root))
        total = max(len(known), sweep.trials * len(sweep.seeds))
        watch = stack.enter_context(_Watch(sweep, root, total, on_record))
        todo = remaining(sweep, root=root)
        on_note(f"{sweep.name}: {len(watch.seen)} of {total} trials done, {concurrent} at a time")
        if todo:
            _fit(sweep, todo, root=root, concurrent=concurrent)
        if sweep.search.kind == "tpe":
            _search(sweep, root=root, concurrent=concurrent)
    return read_records(sweep.name, root=root)


def here() -> list[dict[str, float]]:
    """What the one node of a Ray of our own on this machine would hold."""
    found = machine()
    return [{"CPU": found["cpus"], "GPU": found["gpus"]}]


def _nodes() -> list[dict[str, float]]:
    """What each node of the cluster holds."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _most_nodes() -> list[dict[str, float]]:
    """What each node holds: of those there are, or under an autoscaler of those that the cluster may grow to."""
    given = os.environ.get(MAX_NODES)
    return json.loads(given) if given else _nodes()


def _fit(sweep: SweepConfig, trials: list[Trial], *, root: str, concurrent: int) -> None:
    """Make these trials with Tune; those that stay broken are recorded as failed, unless another start may mend it."""
    from ray import tune

    by_id = {trial.id: trial for trial in trials}
    first = run_of(sweep, trials[0], root=root)
    plain = {"sweep": sweep.model_dump(mode="json"), "root": root}
    with tempfile.TemporaryDirectory(prefix="inpaint-tune-") as folder:
        results = tune.Tuner(
            tune.with_resources(_trial, _demand(first.resources)),
            param_space={**plain, "trial": tune.grid_search([asdict(trial) for trial in trials])},
            tune_config=tune.TuneConfig(  # without the metric: a trial that diverges at once has none to report
                max_concurrent_trials=concurrent,
                reuse_actors=first.resources.num_workers == 1,  # workers of a trial end with its own process
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name=sweep.name,
                storage_path=folder,
                failure_config=tune.FailureConfig(max_failures=RESTARTS),
                verbose=0,
            ),
        ).fit()
    broken = [(by_id[r.config["trial"]["id"]], r.error) for r in results if r.config and r.error]
    _record_failures(sweep, broken, root=root)


def _record_failures(sweep: SweepConfig, broken: list[tuple[Trial, BaseException]], *, root: str) -> None:
    """Record trials that stayed broken as failed; one that another start may mend stays without a record."""
    done = read_records(sweep.name, root=root)
    for trial, error in broken:
        if trial.id not in done and not is_mendable(error):
            write_record(sweep, _failed(trial, error), root=root)


def _search(sweep: SweepConfig, *, root: str, concurrent: int) -> None:
    """Trials that learn from the recorded ones, a round of `concurrent` at a time, until there are enough.

    A round is written down before it starts, so a sweep that was killed makes the same trials and not others.
    """
    while (number := len(known_trials(sweep, root=root)) // len(sweep.seeds)) < sweep.trials:
        records = read_records(sweep.name, root=root)
        if len(records) < len(known_trials(sweep, root=root)):
            return  # it was interrupted; started again, it goes on from here
        proposed = propose(sweep, list(records.values()), min(concurrent, sweep.trials - number))
        trials = propose_points(sweep, proposed, first=number, root=root)
        _fit(sweep, trials, root=root, concurrent=concurrent)


def _trial(config: dict[str, Any]) -> None:
    """Imports torch and the rest in the trial's process only."""
    from ray_jobs.trial import work

    work(config)


def _demand(resources: Any) -> Any:
    if resources.num_workers > 1:
        return {"CPU": DRIVER_CPUS}
    return {"CPU": resources.cpus_per_worker} | (
        {"GPU": resources.gpus_per_worker} if resources.gpus_per_worker else {}
    )


def _failed(trial: Trial, error: BaseException) -> Record:
    reason = str(error).strip().splitlines()[-1]
    return Record(trial.id, trial.label, trial.values, trial.seed, "failed", 0, {}, 0.0, reason=reason)


def check_all_made(sweep: SweepConfig, records: Mapping[str, Record], *, root: str) -> None:
    """Refuse to call a sweep finished that its next start goes on with.

    Raises:
        TrainingError: a trial has failed, at each of its restarts or by what would come again on any cluster.
        MendableError: a trial was lost before it had a record.
    """
    left = [trial.id for trial in remaining(sweep, root=root)]
    if lost := [name for name in left if name not in records]:
        raise MendableError(f"{sweep.name}: {len(lost)} trials were not made ({lost[0]}, ...); start it again")
    if failed := [records[name] for name in left]:
        raise TrainingError(
            f"{sweep.name}: {len(failed)} of {len(records)} trials failed ({failed[0].id}: {failed[0].reason}); "
            "mend what it names and start the sweep again, it tries only these"
        )


class _RayWatch:
    """Ends this process when Ray has died under it: Tune would wait for trials that never come back."""

    def __enter__(self) -> None:
        self._end = threading.Event()
        threading.Thread(target=self._work, name="ray-watch", daemon=True).start()

    def __exit__(self, *error: object) -> None:
        self._end.set()

    def _work(self) -> None:
        while not self._end.wait(RAY_WATCH_SECONDS):
            if not _nodes() and not self._end.is_set():
                print("inpaint: Ray has died under the sweep; run it again, it goes on from here", file=sys.stderr)
                sys.stderr.flush()
                os._exit(1)


class _Watch:
    """Tells of records as they appear, from a thread of its own."""

    def __init__(self, sweep: SweepConfig, root: str, total: int, on_record: Report) -> None:
        self._sweep, self._root, self._total, self._on_record = sweep, root, total, on_record
        self._versions: dict[str, str] = {}
        self.seen = {record.id for record in self._news() if record.status != "failed"}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, name="sweep-watch", daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._end.wait(WATCH_SECONDS):
            self._look()
        self._look()

    def _look(self) -> None:
        try:
            for record in self._news():
                if record.id not in self.seen and record.status != "failed":
                    self.seen.add(record.id)
                    self._on_record(record, len(self.seen), self._total)
        except InpaintError as error:  # the store hiccups; the next look tells
            log.warning("%s", error)

    def _news(self) -> Iterable[Record]:
        """The records that were written since the last call."""
        return read_records(self._sweep.name, root=self._root, seen=self._versions).values()


def main(arguments: list[str] | None = None) -> int:
    """`python -m ray_jobs.tune sweep.yaml --root URL`: exit code 0 when every trial came to an end of its own or
    `inpaint stop` ended the sweep, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m ray_jobs.tune", description=main.__doc__)
    parser.add_argument("definition", help="a definition's name, or a YAML file")
    parser.add_argument("--root", required=True)
    parser.add_argument("--budget")
    parser.add_argument("--address")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    from ray_jobs.stopping import stop_is_asked

    try:
        sweep = load_sweep(options.definition, budget=options.budget)
        place = sweep_url(sweep.name, root=options.root)
        with once_for_all(place):
            records = run_sweep(sweep, root=options.root, address=options.address)
            if stop_is_asked(place):
                print(f"stopped with {len(records)} trials recorded; start it again to go on")
            else:
                check_all_made(sweep, records, root=options.root)
    except InpaintError as error:
        print(f"inpaint: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
