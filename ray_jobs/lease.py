"""One driver per run: a lease in the run's folder, taken and renewed by compare-and-swap.

`<run>/lease.json` names its driver, and the holder: the attempt that may write at present. It is renewed every few
seconds. Another driver may take it over when it was given back, when its driver was a process of this machine that is
gone, or when it has not been renewed for its lifetime. Clocks are not compared between machines: whether it is renewed
is seen by watching its version.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from inpaint import storage
from inpaint.errors import MendableError, StorageError

log = logging.getLogger(__name__)

FILE = "lease.json"
LIFETIME_SECONDS = 60.0
LONG_DEAD_SECONDS = 3600.0  # no clock is that wrong


class LeaseLostError(MendableError):
    """Another driver has taken this run over."""


class Lease:
    """The right to write a run's checkpoints.

    Args:
        run: the run's URL.
        lifetime_seconds: how long it holds without being renewed.
    """

    def __init__(self, run: str, *, lifetime_seconds: float = LIFETIME_SECONDS) -> None:
        self.url = storage.join(run, FILE)
        self.driver = self.holder = uuid.uuid4().hex
        self.attempt = 0  # how often the run has been started before
        self.lost = False
        self._lifetime = lifetime_seconds
        self._etag = ""
        self._lock = threading.Lock()
        self._released = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self, *, on_wait: Callable[[str], None] = lambda text: None) -> Lease:
        """Take the lease, waiting for a silent holder's lifetime to pass.

        Raises:
            MendableError: another driver is alive and holds it.
        """
        while True:
            found = self._look()
            try:
                if found is None:
                    self._etag = storage.write_bytes(self.url, self._text(), if_absent=True)
                else:
                    etag, record = found
                    if record.get("driver") != self.driver and not _is_dead(record):
                        on_wait(f"{self.url} is held by {_who(record)}; watching whether it is alive")
                        self._watch(etag, record)
                    if record.get("driver") != self.driver:  # else a write of ours whose answer was lost
                        self.attempt = record["attempt"] + 1
                    self._etag = storage.write_if_match(self.url, self._text(), etag)
                break
            except (storage.AlreadyExists, storage.ChangedMeanwhile, storage.MissingObject):
                continue  # somebody was faster; look again
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()
        return self

    def release(self) -> None:
        """Give it back; the next driver need not wait."""
        self._released.set()
        if self._thread:
            self._thread.join()
        if not self.lost:
            with contextlib.suppress(StorageError):
                storage.write_if_match(self.url, self._text(released=True), self._etag)

    def fence(self) -> None:
        """Begin an attempt: what writes for an earlier one of this driver is refused from now on.

        Raises:
            StorageError: the store does not answer.
            LeaseLostError: another driver holds it.
        """
        with self._lock:
            self.holder = uuid.uuid4().hex
            self._renew()
        if self.lost:
            raise LeaseLostError(f"{self.url} was taken over by another driver; this one ends")

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def _look(self) -> tuple[str, dict[str, Any]] | None:
        """Version and content, of the same moment."""
        try:
            while True:
                before = storage.stat(self.url).etag
                record = json.loads(storage.read_bytes(self.url))
                if storage.stat(self.url).etag == before:
                    return before, record
        except storage.MissingObject:
            return None

    def _watch(self, etag: str, record: dict[str, Any]) -> None:
        """Return when nobody has renewed this version for the holder's lifetime."""
        until = time.monotonic() + record["lifetime_seconds"]
        while time.monotonic() < until:
            time.sleep(min(1.0, record["lifetime_seconds"] / 10))
            if storage.stat(self.url).etag != etag:
                found = self._look()
                if found is None or _is_dead(found[1]):
                    raise storage.ChangedMeanwhile(self.url)
                raise MendableError(
                    f"{self.url.removesuffix('/' + FILE)} is being trained by {_who(found[1])}; "
                    "stop that one with `inpaint stop RUN`, or choose another --name"
                )

    def _keep(self) -> None:
        while not self.lost and not self._released.wait(self._lifetime / 4):
            try:
                with self._lock:
                    self._renew()
            except StorageError as error:
                log.warning("lease not renewed: %s", error)

    def _renew(self) -> None:
        """Write the lease anew, unless another driver has."""
        try:
            self._etag = storage.write_if_match(self.url, self._text(), self._etag)
        except (storage.ChangedMeanwhile, storage.MissingObject):
            found = self._look()
            if found and found[1].get("driver") == self.driver:  # a write of ours whose answer was lost
                self._etag = storage.write_if_match(self.url, self._text(), found[0])
            else:
                self.lost = True
                log.error("%s was taken over by another driver", self.url)

    def _text(self, *, released: bool = False) -> bytes:
        record = {
            "driver": self.driver,
            "holder": self.holder,
            "released": released,
            "attempt": self.attempt,
            "renewed": time.time(),
            "lifetime_seconds": self._lifetime,
            **_this_process(),
        }
        return json.dumps(record, indent=1).encode()


def check_holder(run: str, holder: str) -> None:
    """Refuse to write for a driver that no longer has the lease.

    Raises:
        LeaseLostError: another driver holds it.
    """
    url = storage.join(run, FILE)
    record = json.loads(storage.read_bytes(url))
    if record["holder"] != holder:
        raise LeaseLostError(f"{run} was taken over by {_who(record)}; this driver ends without writing")


def _is_dead(record: dict[str, Any]) -> bool:
    if record["released"] or time.time() - record["renewed"] > max(LONG_DEAD_SECONDS, 10 * record["lifetime_seconds"]):
        return True
    here = _this_process()
    if (record["host"], record["boot"]) != (here["host"], here["boot"]):
        return False
    return _started(record["pid"]) != record["started"]


def _this_process() -> dict[str, Any]:
    boot = Path("/proc/sys/kernel/random/boot_id")
    return {
        "host": socket.gethostname(),
        "boot": boot.read_text().strip() if boot.exists() else None,
        "pid": os.getpid(),
        "started": _started(os.getpid()),
    }


def _started(pid: int) -> str | None:
    """When a process of this machine began, in its own ticks; None when it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def _who(record: dict[str, Any]) -> str:
    return f"process {record['pid']} on {record['host']}"
