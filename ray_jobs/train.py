"""The driver of a run: `python -m ray_jobs.train run.yaml`. Starts workers through Ray Train until the run is done.

Ray's own failure handling restarts a group of workers; this driver's loop survives what Ray calls fatal. Checkpoints
are ours, in the run's folder: Ray's storage path is a temporary folder of the driver's node, into which nothing goes
but an empty marker, so no hiccup of the store reaches Ray's controller.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from inpaint import errors, storage
from inpaint.checkpoints import latest
from inpaint.checkpoints.records import check_free, describe
from inpaint.config import RunConfig, load_run
from inpaint.errors import InpaintError, TrainingError
from ray_jobs.lease import Lease

log = logging.getLogger(__name__)

ATTEMPTS = 6  # starts without a new checkpoint in between
PAUSE_SECONDS = 2.0  # before the second one; twice as long before each further one
LONGEST_PAUSE_SECONDS = 60.0
GRACE_SECONDS = 90.0  # after a wish to stop, until it is enforced
POLL_SECONDS = 0.25

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
    with ExitStack() as stack:
        lease = stack.enter_context(Lease(run.url).acquire(on_wait=on_note))
        storage.delete(storage.join(run.url, "stop"))
        wish = stack.enter_context(_signals())
        stack.enter_context(_own_log(run, lease.attempt))
        provenance = {**describe(run, overrides=overrides), "attempt": lease.attempt}
        return _Driver(run, address, lease, wish, provenance, on_progress, on_note).work()


class _Driver:
    """Starts groups of workers one after another."""

    def __init__(
        self, run: RunConfig, address: str | None, lease: Lease, wish: _Wish, provenance: dict[str, Any],
        on_progress: Report, on_note: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.run, self.address, self.lease, self.wish = run, address, lease, wish
        self.provenance, self.on_progress, self.on_note = provenance, on_progress, on_note
        self.own_ray = False

    def work(self) -> dict[str, Any]:
        pause, failures, reached = PAUSE_SECONDS, 0, self._checkpoint_step()
        while True:
            try:
                result = self._start()
            except _Retry as error:
                step = self._checkpoint_step()
                failures = 1 if step > reached else failures + 1
                pause = PAUSE_SECONDS if step > reached else pause
                reached = step
                if failures >= ATTEMPTS:
                    raise TrainingError(
                        f"{self.run.name}: {failures} starts in a row ended without a checkpoint ({error}); "
                        f"see {self.run.url}/logs, then start it again"
                    ) from error
                self.on_note(f"{error}; going on from step {reached} in {pause:.0f} s")
                self._rest(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
                if self.wish.signal:
                    return {"step": reached, "reason": "stopped", "signal": self.wish.signal}
                continue
            if result["reason"] == "preempted" and not self.wish.signal:
                self.on_note(f"a node goes away; checkpoint at step {result['step']}, starting again")
                continue
            if result["reason"] == "failed":
                raise getattr(errors, result["kind"], TrainingError)(result["message"])
            return result | ({"signal": self.wish.signal} if self.wish.signal else {})

    def _start(self) -> dict[str, Any]:
        """One start of the workers; what rank 0 returned.

        Raises:
            _Retry: it broke in a way that another start may mend.
            InpaintError: it cannot be mended by itself.
        """
        import ray
        import ray.train

        from ray_jobs.channel import Channel
        from ray_jobs.fitting import fit
        from ray_jobs.runtime import start_ray

        self.own_ray = start_ray(self.address) or self.own_ray
        self.wish.listen()
        channel = Channel(uuid.uuid4().hex)
        config = {
            "run": self.run.to_dict(),
            "token": channel.token,
            "holder": self.lease.holder,
            "provenance": self.provenance,
        }
        with tempfile.TemporaryDirectory(prefix="inpaint-ray-") as folder:
            fitting = _InThread(lambda: fit(self.run, config, folder, own_ray=self.own_ray))
            try:
                self._watch(fitting, channel)
                return fitting.result()
            except InpaintError:
                raise
            except Exception as error:
                if failure := self._failure(channel):
                    raise getattr(errors, failure["kind"], TrainingError)(failure["message"]) from error
                if isinstance(error, ray.train.WorkerGroupError):
                    raise TrainingError(
                        f"{self.run.name}: workers failed {self.run.resources.max_failures + 1} times, at last with "
                        f"{_last_cause(error)}; see {self.run.url}/logs"
                    ) from error
                if self.own_ray:
                    ray.shutdown()  # and start anew
                raise _Retry(_first_line(error)) from error

    def _watch(self, fitting: _InThread, channel: Any) -> None:
        """Pass on progress and the wish to stop, until the workers are done."""
        seen: dict[str, Any] = {}
        notes = 0
        asked_at: float | None = None
        while not fitting.wait(POLL_SECONDS):
            progress = channel.progress()
            if progress != seen:
                seen = progress
                self.on_progress(progress)
            while (text := channel.noted(notes)) is not None:
                self.on_note(text)
                notes += 1
            if self.lease.lost:
                raise TrainingError(f"{self.run.url} was taken over by another driver; this one ends")
            if self.wish.signal and asked_at is None:
                asked_at = time.monotonic()
                channel.ask_to_stop("stopped")
                self.on_note("stopping after the present step, with a checkpoint")
            if asked_at and time.monotonic() - asked_at > GRACE_SECONDS:
                raise TrainingError(
                    f"{self.run.name} did not stop within {GRACE_SECONDS:.0f} s and was ended; "
                    "its last checkpoint is whole"
                )
        if (progress := channel.progress()) != seen:
            self.on_progress(progress)

    def _failure(self, channel: Any) -> dict[str, str] | None:
        try:
            return channel.failure()
        except Exception:  # the Ray instance is gone, and what was said in it
            return None

    def _checkpoint_step(self) -> int:
        try:
            found = latest(self.run.url)
        except InpaintError as error:
            log.warning("%s", error)
            return 0
        return found.step if found else 0

    def _rest(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.wish.signal:
            time.sleep(0.1)


class _Retry(Exception):
    """A start broke in a way that another may mend."""


class _InThread:
    """A function running beside this thread; Ray installs no signal handlers there."""

    def __init__(self, function: Callable[[], dict[str, Any]]) -> None:
        self._function = function
        self._done = threading.Event()
        self._error: BaseException | None = None
        self._value: dict[str, Any] = {}
        threading.Thread(target=self._work, name="ray-train", daemon=True).start()

    def wait(self, seconds: float) -> bool:
        return self._done.wait(seconds)

    def result(self) -> dict[str, Any]:
        if self._error:
            raise self._error
        return self._value

    def _work(self) -> None:
        try:
            self._value = self._function()
        except BaseException as error:
            self._error = error
        finally:
            self._done.set()


class _Wish:
    """The signal that asked this driver to stop, if any; a second SIGINT ends the process."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def listen(self) -> None:
        """Take SIGINT and SIGTERM; again after `ray.init`, which takes SIGTERM for itself."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._note)

    def _note(self, number: int, frame: Any) -> None:
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number


@contextmanager
def _signals() -> Iterator[_Wish]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    wish = _Wish()
    wish.listen()
    try:
        yield wish
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def _own_log(run: RunConfig, attempt: int) -> Iterator[None]:
    """Keep the driver's log in a file, and copy it to `<run>/logs` at the end, however it ends."""
    with tempfile.TemporaryDirectory(prefix="inpaint-log-") as folder:
        path = Path(folder) / f"driver-{attempt}.log"
        handler = logging.FileHandler(path)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logging.getLogger().addHandler(handler)
        logging.getLogger("ray_jobs").setLevel(logging.INFO)
        try:
            yield
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


def _last_cause(error: Any) -> str:
    """What the first failing worker raised."""
    causes = getattr(error, "worker_failures", None) or {0: error}
    return _first_line(next(iter(causes.values())))


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else 'no message'}"


def main() -> None:
    """Entry point on a cluster: exit code 0 when finished or stopped by `inpaint stop`, 1 on an error that another
    start will not mend, 128 + the signal's number when a signal ended it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="run file (YAML)")
    parser.add_argument("--address", help="of a Ray cluster; RAY_ADDRESS, else a Ray of its own")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        result = run_training(load_run(arguments.run), address=arguments.address, on_progress=_print_progress)
    except InpaintError as error:
        print(f"inpaint: {error}", file=sys.stderr)
        sys.exit(1)
    print(f"{result['reason']} at step {result['step']}")
    sys.exit(128 + result["signal"] if result.get("signal") else 0)


def _print_progress(progress: Mapping[str, Any]) -> None:
    numbers = " ".join(f"{name}={value:.4g}" for name, value in progress.items() if isinstance(value, float))
    print(f"step {progress['step']}/{progress['total_steps']} {numbers}", flush=True)


if __name__ == "__main__":
    main()
