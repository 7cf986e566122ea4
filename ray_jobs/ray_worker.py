"""A Ray Train worker: gives `train` a session made of Ray, and says what went wrong in a way the driver understands."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.util.metrics import Counter, Gauge

from inpaint import storage
from inpaint.config import RunConfig
from inpaint.errors import ConfigError, InpaintError, StorageError
from ray_jobs.attempt import kind_of
from ray_jobs.channel import Channel
from ray_jobs.lease import check_holder
from ray_jobs.worker import train

log = logging.getLogger(__name__)

PACKAGES = ("inpaint", "ray_jobs")
# What a bug or a setting raises, and neither a lost peer nor a machine that goes away.
SELF_MADE = (
    ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, NameError, NotImplementedError,
    TypeError, ValueError,
)  # fmt: skip

GAUGES = {
    "step": "Optimiser steps done.",
    "images_per_second": "Training speed, over all workers.",
    "data_wait_share": "Share of the time that training waits for data.",
    "checkpoint_age_seconds": "Since the newest checkpoint became valid.",
}


def work(config: dict[str, Any]) -> dict[str, Any]:
    """The train function that Ray calls on every worker.

    Args:
        config: "run" (plain settings), "token" (of the driver's channel), "holder" (of its lease), "provenance".
    """
    run, channel = RunConfig.model_validate(config["run"]), Channel(config["token"])
    if failure := channel.failure():  # of an earlier worker group: trying again would not mend it
        return {"step": 0, "reason": "failed", **failure}
    session = RaySession(channel, run.name)
    with _logging(run, channel, session, f"worker-{session.rank}-{config['provenance']['attempt']}"):
        try:
            _check_shared(run, session)
            return train(
                run,
                session,
                provenance=config["provenance"],
                may_write=lambda: check_holder(run.url, config["holder"]),
            )
        except StorageError:
            raise  # may mend itself
        except InpaintError as error:
            channel.fail(kind_of(error), str(error))
            raise
        except SELF_MADE as error:
            said = f"{type(error).__name__}: {error}"
            if channel.repeats(session.rank, said):
                channel.fail(
                    "TrainingError",
                    f"{run.name}: worker {session.rank} ended twice with {said}; a further start would end so too. "
                    f"It is a bug, or a setting that does not suit this machine; see {run.url}/logs",
                )
            raise


class RaySession:
    """A worker of Ray Train."""

    def __init__(self, channel: Channel, name: str) -> None:
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self._channel = channel
        self._tags = {"run": name}
        self._gauges = {key: Gauge(f"inpaint_{key}", text, ("run",)) for key, text in GAUGES.items()}
        self._preemptions = Counter("inpaint_preemptions_total", "Notices that a node goes away.", ("run",))
        self._preempted = False

    def report(self, metrics: Mapping[str, float]) -> None:
        """To the driver's screen and the gauges."""
        self._channel.report(dict(metrics))
        for key, gauge in self._gauges.items():
            if key in metrics:
                gauge.set(metrics[key], self._tags)

    def should_stop(self) -> str | None:
        """What the driver asks for, or the notice that a node of this run goes away."""
        if self._preempted or ray.train.get_preemption_info() is not None:
            if not self._preempted and self.rank == 0:
                self._preemptions.inc(1, self._tags)
            self._preempted = True
            return "preempted"
        return self._channel.stop_reason()


def _check_shared(run: RunConfig, session: RaySession) -> None:
    """Refuse a local root that this worker's node does not share with the driver's.

    Raises:
        ConfigError: the driver's lease is not to be seen from here.
    """
    if not storage.is_remote(run.url) and not Path(run.url).is_dir():
        raise ConfigError(
            f"{run.url} is not on node {os.uname().nodename} of worker {session.rank}; "
            "a run over several nodes needs an s3:// root or a shared file system"
        )


class _Notes(logging.Handler):
    """Warnings, as lines for the driver."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(logging.WARNING)
        self._channel, self._number = channel, 0

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(Exception):  # a lost line must not end a run
            self._channel.note(self._number, record.getMessage())
            self._number += 1


@contextlib.contextmanager
def _logging(run: RunConfig, channel: Channel, session: RaySession, name: str) -> Iterator[None]:
    """Keep this worker's log in a file, and copy it to `<run>/logs` at the end, however it ends.

    What rank 0 warns of goes to the driver's screen too.
    """
    with tempfile.TemporaryDirectory(prefix="inpaint-log-") as folder:
        path = Path(folder) / f"{name}.log"
        handler = logging.FileHandler(path)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root = logging.getLogger()
        root.addHandler(handler)
        notes = _Notes(channel)
        if session.rank == 0:
            for package in PACKAGES:
                logging.getLogger(package).addHandler(notes)
        logging.captureWarnings(True)
        for package in PACKAGES:
            logging.getLogger(package).setLevel(logging.INFO)
        try:
            yield
        except BaseException:
            log.exception("worker ended")
            raise
        finally:
            root.removeHandler(handler)
            for package in PACKAGES:
                logging.getLogger(package).removeHandler(notes)
            handler.close()
            with contextlib.suppress(StorageError):
                storage.upload(path, storage.join(run.url, "logs", path.name))
