"""The driver of a run: `python -m ray_jobs.train run.yaml`. Makes attempts at training it until one comes to its end.

A worker that dies is restarted by Ray inside an attempt; this loop survives what ends an attempt: Ray's fatal errors,
and the death of Ray or of the process that drove it. It holds the run's lease and never touches Ray itself. Checkpoints
are ours, in the run's folder: Ray's storage path is a temporary folder of the driver's node, into which nothing goes
but an empty marker, so no hiccup of the store reaches Ray's controller.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from inpaint import storage
from inpaint.checkpoints import latest
from inpaint.checkpoints.records import check_free, describe
from inpaint.config import RunConfig, load_run
from inpaint.errors import InpaintError, MendableError, StorageError
from inpaint.sweep.scores import check_scores
from ray_jobs.attempt import LOG_FORMAT, Attempt, Broken
from ray_jobs.lease import Lease
from ray_jobs.preflight import check_data
from ray_jobs.signals import StopSignal, stop_signal
from ray_jobs.verdict import once_for_all

log = logging.getLogger(__name__)

ATTEMPTS = 6  # without a new checkpoint in between
PAUSE_SECONDS = 2.0  # before the second one; twice as long before each further one
LONGEST_PAUSE_SECONDS = 60.0

Report = Callable[[dict[str, Any]], None]


def run_training(
    run: RunConfig,
    *,
    address: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    on_progress: Report = lambda progress: None,
    on_note: Callable[[str], None] = lambda text: log.info("%s", text),
) -> dict[str, Any]:
    """Train a run to its end, on this machine or on a Ray cluster.

    Args:
        run: checked settings.
        address: of a Ray cluster; `RAY_ADDRESS` from the environment, else a Ray of its own on this machine.
        overrides: dotted paths changed on the preset, for the provenance.
        on_progress: called with each new report of rank 0.
        on_note: called with a line about what goes on.

    Returns:
        "step", "reason" ("finished", or "stopped" by a wish), "signal" (its number, if one was the wish), and the
        newest scores.

    Raises:
        ConfigError: the name is taken by another run.
        TrainingError: another driver trains it, or it cannot go on.
    """
    run = with_absolute_root(run)
    check_free(run)
    newest = latest(run.url)
    if newest and newest.step == run.total_steps:
        return {"step": newest.step, "reason": "finished", **newest.metrics}
    with ExitStack() as stack:
        lease = stack.enter_context(Lease(run.url).acquire(on_wait=on_note))
        storage.delete(storage.join(run.url, "stop"))
        wish = stack.enter_context(stop_signal())
        log_file = stack.enter_context(_own_log(run, lease.attempt))
        provenance = {**describe(run, overrides=overrides), "attempt": lease.attempt}
        return _Driver(run, address, lease, wish, provenance, log_file, on_progress, on_note).work()


class _Driver:
    """Makes one attempt after another."""

    def __init__(
        self, run: RunConfig, address: str | None, lease: Lease, wish: StopSignal, provenance: dict[str, Any],
        log_file: Path, on_progress: Report, on_note: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.run, self.address, self.lease, self.wish = run, address, lease, wish
        self.provenance, self.log_file = provenance, log_file
        self.on_progress, self.on_note = on_progress, on_note

    def work(self) -> dict[str, Any]:
        """Attempts until one ends well, with longer and longer pauses while none gets any further."""
        pause, failures, reached = PAUSE_SECONDS, 0, self._checkpoint_step()
        while not self.wish.number:
            try:
                result = self._attempt()
            except (Broken, StorageError) as error:
                step = self._checkpoint_step()
                if step > reached:
                    pause, failures, reached = PAUSE_SECONDS, 0, step
                elif getattr(error, "exhausted", False):
                    raise MendableError(
                        f"{self.run.name}: workers failed {self.run.resources.max_failures + 1} times without a "
                        f"checkpoint, at last with {error}; see {self.run.url}/logs"
                    ) from error
                failures += 1
                if failures >= ATTEMPTS:
                    raise MendableError(
                        f"{self.run.name}: {failures} attempts in a row ended without a checkpoint, the last with "
                        f"{error}; see {self.run.url}/logs, then start it again"
                    ) from error
                self.on_note(f"{error}; going on from step {reached} in {pause:.0f} s")
                self._rest(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
                continue
            if result["reason"] == "preempted" and not self.wish.number:
                self.on_note(f"a node goes away; checkpoint at step {result['step']}, starting again")
                continue
            return result | ({"signal": self.wish.number} if self.wish.number else {})
        return {"step": self._checkpoint_step(), "reason": "stopped", "signal": self.wish.number}

    def _attempt(self) -> dict[str, Any]:
        """One attempt; in this process where it is already connected to Ray, as a trial is."""
        self.lease.fence()
        attempt = Attempt(self.run.to_dict(), self.address, self.lease.holder, self.provenance, str(self.log_file))
        if _knows_ray():
            return attempt.make(self._say, self.wish)
        return attempt.make_apart(self._say, self.wish, lambda: self.lease.lost)

    def _say(self, kind: str, value: Any) -> None:
        if kind == "progress":
            self.on_progress(value)
        else:
            log.info("%s", value)
            self.on_note(value)

    def _checkpoint_step(self) -> int:
        try:
            found = latest(self.run.url)
        except InpaintError as error:
            log.warning("%s", error)
            return 0
        return found.step if found else 0

    def _rest(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.wish.number:
            time.sleep(0.1)


def _knows_ray() -> bool:
    """Whether this process is connected to Ray."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


@contextmanager
def _own_log(run: RunConfig, attempt: int) -> Iterator[Path]:
    """Keep the driver's log in a file, and copy it to `<run>/logs` at the end, however it ends."""
    with tempfile.TemporaryDirectory(prefix="inpaint-log-") as folder:
        path = Path(folder) / f"driver-{attempt}.log"
        handler = logging.FileHandler(path)
        handler.setFormatter(logging.Formatter(LOG_FORMAT))
        logging.getLogger().addHandler(handler)
        logging.getLogger("ray_jobs").setLevel(logging.INFO)
        try:
            yield path
        except BaseException:
            log.info("driver ends", exc_info=True)
            raise
        finally:
            logging.getLogger().removeHandler(handler)
            handler.close()
            with suppress(InpaintError):
                storage.upload(path, storage.join(run.url, "logs", path.name))


def with_absolute_root(run: RunConfig) -> RunConfig:
    """The run with a root that means the same in every working directory."""
    if storage.is_remote(run.root) or "://" in run.root:
        return run
    return run.model_copy(update={"root": str(Path(run.root).absolute())})


def main() -> None:
    """Entry point on a cluster: exit code 0 when finished or stopped by `inpaint stop`, 1 on an error that another
    start will not mend, 128 + the signal's number when a signal ended it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="run file (YAML)")
    parser.add_argument("--address", help="of a Ray cluster; RAY_ADDRESS, else a Ray of its own")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        run = with_absolute_root(load_run(arguments.run))
        with once_for_all(run.url):
            check_scores(run)
            check_data(run)
            result = run_training(run, address=arguments.address, on_progress=partial(_print_progress, run))
    except InpaintError as error:
        print(f"inpaint: {error}", file=sys.stderr)
        sys.exit(1)
    print(f"{result['reason']} at step {result['step']}")
    sys.exit(128 + result["signal"] if result.get("signal") else 0)


def _print_progress(run: RunConfig, progress: Mapping[str, Any]) -> None:
    numbers = " ".join(f"{name}={value:.4g}" for name, value in progress.items() if isinstance(value, float))
    step = progress["step"]
    print(f"step {step}/{progress['total_steps']} stage={run.stage_at(step)} {numbers}", flush=True)


if __name__ == "__main__":
    main()
