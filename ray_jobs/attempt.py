"""One attempt at training a run: connect to Ray, run the workers through Ray Train, pass on what they say.

The driver makes each attempt in a process of its own, so that whatever Ray does to the process that drives it (it ends
it when its control store dies) costs an attempt and not the run. Words go from there to the driver as lines of JSON;
the process ends with its driver, because it reads a pipe from it that closes then.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from inpaint import errors
from inpaint.config import RunConfig
from inpaint.errors import InpaintError, MendableError, TrainingError
from ray_jobs.signals import StopSignal, stop_signal

log = logging.getLogger(__name__)

STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"  # how long Ray waits for a driver that it asked to stop; the chart sets it
STOP_WAIT_SECONDS = 120.0  # where nobody sets it
LAST_WORDS_SECONDS = 3.0  # for a worker that cannot go on to put its log into the store
POLL_SECONDS = 0.25
STDERR = 2
END_SECONDS = 30.0  # for Ray to end after the last word
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

Say = Callable[[str, Any], None]  # kind ("progress", "note"), and what


class Broken(Exception):
    """An attempt broke in a way that another one may mend.

    Attributes:
        exhausted: workers failed as often as `resources.max_failures` allows.
    """

    def __init__(self, text: str, *, exhausted: bool = False) -> None:
        super().__init__(text)
        self.exhausted = exhausted


@dataclass(frozen=True)
class Attempt:
    """What an attempt needs to know, as plain values.

    Attributes:
        run: settings, with an absolute root.
        address: of a Ray cluster; `RAY_ADDRESS`, else a Ray of its own.
        holder: of the driver's lease, without which workers write nothing.
        provenance: of this start of the run.
        log: local file for the log.
    """

    run: dict[str, Any]
    address: str | None
    holder: str
    provenance: dict[str, Any]
    log: str

    def make(self, say: Say, wish: StopSignal) -> dict[str, Any]:
        """Train in this process.

        Returns:
            What rank 0 returned.

        Raises:
            Broken: another attempt may mend it.
            InpaintError: it cannot be mended by itself.
        """
        import ray
        import ray.train

        from ray_jobs.channel import Channel
        from ray_jobs.runtime import start_ray
        from ray_jobs.worker_group import fit

        run = RunConfig.model_validate(self.run)
        own_ray = start_ray(self.address)
        wish.listen()
        channel = Channel(uuid.uuid4().hex)
        config = {"run": self.run, "token": channel.token, "holder": self.holder, "provenance": self.provenance}
        with tempfile.TemporaryDirectory(prefix="inpaint-ray-") as folder:
            fitting = _InThread(lambda: fit(run, config, folder, own_ray=own_ray))
            try:
                _watch(run, fitting, channel, say, wish)
                result = fitting.result()
            except InpaintError:
                raise
            except Exception as error:
                failure = _failure(channel)
                if failure is None:
                    exhausted = isinstance(error, ray.train.WorkerGroupError)
                    text = _last_cause(error) if exhausted else _first_line(error)
                    raise Broken(text, exhausted=exhausted) from error
                raise _as_error(failure) from error
        if result["reason"] == "failed":
            raise _as_error(result)
        return result

    def make_apart(self, say: Say, wish: StopSignal, is_lost: Callable[[], bool]) -> dict[str, Any]:
        """Train in a process of its own; as `make`.

        Args:
            say: told what the workers say.
            wish: to stop, passed on.
            is_lost: whether another driver has taken the run over; the attempt is ended then.
        """
        theirs, ours = os.pipe()
        with subprocess.Popen(
            [sys.executable, "-m", "ray_jobs.attempt", str(ours)],
            stdin=subprocess.PIPE, stdout=STDERR, pass_fds=[ours], start_new_session=True,
        ) as process:  # fmt: skip
            os.close(ours)
            try:
                process.stdin.write(json.dumps(asdict(self)).encode() + b"\n")
                process.stdin.flush()
                ended = _listen(process, theirs, say, wish, is_lost)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(END_SECONDS)
            except BrokenPipeError:  # it died before it had read its task
                os.close(theirs)
                ended = None
            finally:
                process.kill()
                _end_session(process.pid)
        if ended is None:
            raise Broken(f"the process that drove Ray ended {_how(process.returncode)}")
        kind, value = ended
        if kind == "broken":
            raise Broken(value["text"], exhausted=value["exhausted"])
        if kind == "error":
            raise _as_error(value)
        return value


def _listen(
    process: subprocess.Popen[bytes], pipe: int, say: Say, wish: StopSignal, is_lost: Callable[[], bool]
) -> tuple[str, Any] | None:
    """Pass words on until the last one, which comes back; None when the process ended without one."""
    words: SimpleQueue[tuple[str, Any] | None] = SimpleQueue()

    def read() -> None:
        with open(pipe, "rb") as lines:
            for line in lines:
                with suppress(ValueError):  # cut off by its end
                    words.put(tuple(json.loads(line)))
        words.put(None)

    threading.Thread(target=read, name="attempt", daemon=True).start()
    told = False
    while True:
        if is_lost():
            process.kill()
            raise MendableError("this run was taken over by another driver; this one ends")
        if wish.number and not told:
            process.send_signal(signal.SIGTERM)
            told = True
        with suppress(Empty):
            word = words.get(timeout=POLL_SECONDS)
            if word is None or word[0] in ("result", "broken", "error"):
                return word
            say(*word)


def _watch(run: RunConfig, fitting: _InThread, channel: Any, say: Say, wish: StopSignal) -> None:
    """Pass on what the workers say, and the wish to stop, until they are done.

    Raises:
        InpaintError: what a worker says that trying again will not mend; Ray would start all workers anew, to hear it
            once more.
        MendableError: they do not stop when asked.
    """
    seen: dict[str, Any] = {}
    notes = 0
    grace = grace_seconds()
    asked_at: float | None = None
    failed_at: float | None = None
    done = False
    while not done:
        done = fitting.wait(POLL_SECONDS)
        if (progress := channel.progress()) and progress != seen:
            seen = progress
            say("progress", progress)
        while (text := channel.noted(notes)) is not None:
            say("note", text)
            notes += 1
        failure = _failure(channel)
        if failure and failed_at is None:
            failed_at = time.monotonic()
        if failure and failed_at and time.monotonic() - failed_at > LAST_WORDS_SECONDS:
            raise _as_error(failure)
        if wish.number and asked_at is None:
            asked_at = time.monotonic()
            channel.ask_to_stop("stopped")
            say("note", "stopping after the present step, with a checkpoint")
        if asked_at and time.monotonic() - asked_at > grace and not done:
            raise MendableError(
                f"{run.name} did not stop within {grace:.0f} s and was ended; its last checkpoint is whole"
            )


def grace_seconds() -> float:
    """Time after a wish to stop until it is enforced: as long as Ray waits for this driver, less its own last words."""
    wait = float(os.environ.get(STOP_WAIT, STOP_WAIT_SECONDS))
    return max(wait - END_SECONDS, wait / 2)


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


def _failure(channel: Any) -> dict[str, str] | None:
    try:
        return channel.failure()
    except Exception:  # the Ray instance is gone, and what was said in it
        return None


def kind_of(error: InpaintError) -> str:
    """The name of the error's class, or of the nearest one above it, in `inpaint.errors`."""
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == errors.__name__)


def _as_error(failure: dict[str, str]) -> InpaintError:
    return getattr(errors, failure["kind"], TrainingError)(failure["message"])


def _last_cause(error: Any) -> str:
    """What the first failing worker raised."""
    causes = getattr(error, "worker_failures", None) or {0: error}
    return _first_line(next(iter(causes.values())))


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else 'no message'}"


def _how(code: int) -> str:
    return f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"


def _end_session(leader: int) -> None:
    """SIGKILL what else is in a session: the processes of a Ray of our own, some of which linger when it dies."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # gone meanwhile
            pid, session = int(path.parent.name), int(path.read_text().rpartition(")")[2].split()[3])
            if session == leader and pid != os.getpid():
                os.kill(pid, signal.SIGKILL)


def _end_with_driver() -> None:
    """Wait for the pipe from the driver to close, then end this process and all that it has started."""
    os.read(sys.stdin.fileno(), 1)  # not through Python's buffer, whose lock would be held while the process ends
    _end_session(os.getpid())
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """`python -m ray_jobs.attempt FD`: an attempt is read from stdin, words are written to the file descriptor."""
    attempt = Attempt(**json.loads(sys.stdin.buffer.readline()))
    threading.Thread(target=_end_with_driver, name="driver", daemon=True).start()
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, filename=attempt.log)
    with open(int(sys.argv[1]), "w", buffering=1) as words, stop_signal() as wish:

        def say(kind: str, value: Any) -> None:
            words.write(json.dumps([kind, value]) + "\n")

        try:
            say("result", attempt.make(say, wish))
        except Broken as error:
            log.info("broken", exc_info=True)
            say("broken", {"text": str(error), "exhausted": error.exhausted})
        except InpaintError as error:
            say("error", {"kind": kind_of(error), "message": str(error)})
        except Exception as error:
            log.info("ended", exc_info=True)
            say("broken", {"text": _first_line(error), "exhausted": False})


if __name__ == "__main__":
    main()
