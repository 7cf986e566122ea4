"""The one door to Weights & Biases. Training never waits for it and never ends because of it.

Everything happens in a thread of its own behind a queue: import, sign-in, rows, pictures. A missing package or key, an
unreachable server or a full disk costs a warning; the log is then kept on disk for `wandb sync`, or left out.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import logging
import netrc
import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from inpaint import storage
from inpaint.config import RunConfig

log = logging.getLogger(__name__)

STEP = "global_step"
SIGN_IN_SECONDS = 20
CLOSE_SECONDS = 30.0
KEEP_SECONDS = 600.0  # between copies of an offline log to a remote store: a machine that is killed loses no more
COPY_SECONDS = 60.0  # for the last copy
LONGEST_QUEUE = 2_000  # rows and pictures that wait for a W&B that hangs


class Tracker:
    """Sends rows and pictures of a run, in order, from a background thread.

    Args:
        run: settings; `run.tracking` says where to. The whole of it becomes the W&B config; it holds no secrets.
        attempt: how often this run has been started before, logged with each row.
        load: gives the `wandb` module; a test passes its own.
    """

    def __init__(
        self,
        run: RunConfig,
        *,
        attempt: int = 0,
        load: Callable[[], Any] = lambda: importlib.import_module("wandb"),
    ) -> None:
        self._run, self._attempt, self._load = run, attempt, load
        self._queue: queue.Queue[tuple[str, Any] | None] = queue.Queue(LONGEST_QUEUE)
        self._thread: threading.Thread | None = None
        self._copying = False
        self._folder = _folder(run)
        if run.tracking.mode != "disabled":
            self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
            self._thread.start()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """A row of numbers at a step; the stage it was made in stands beside them."""
        self._put("row", {STEP: step, "stage": self._run.stage_at(step), "attempt": self._attempt, **values})

    def images(self, step: int, pictures: Mapping[str, Any]) -> None:
        """Pictures by name at a step, each uint8 [H, W, 3]."""
        self._put("images", {STEP: step, **pictures})

    def close(self) -> None:
        """Send what is left, in `CLOSE_SECONDS`, and copy an offline log to `<run>/wandb`, in `COPY_SECONDS` more."""
        if self._thread:
            with contextlib.suppress(queue.Full):  # then it hangs, and is left behind
                self._queue.put(None, timeout=CLOSE_SECONDS)
            self._thread.join(CLOSE_SECONDS)
            if self._copying:
                self._thread.join(COPY_SECONDS)
            if self._thread.is_alive():
                log.warning("W&B did not finish in %.0f s; its log is in %s", CLOSE_SECONDS, self._folder)

    def _put(self, kind: str, value: dict[str, Any]) -> None:
        if self._thread and self._thread.is_alive():
            try:
                self._queue.put_nowait((kind, value))
            except queue.Full:
                log.warning("W&B does not keep up; a row at step %s is left out of it", value.get(STEP))

    def _work(self) -> None:
        try:
            wandb = self._load()
        except ImportError as error:
            log.warning("W&B is not installed (%s); training goes on without it", error)
            return
        try:
            sink = self._sign_in(wandb)
        except Exception as error:
            log.warning("W&B cannot keep a log (%s: %s); training goes on without it", type(error).__name__, error)
            return
        copied = time.monotonic()
        while (item := self._queue.get()) is not None:
            self._send(wandb, sink, *item)
            if time.monotonic() - copied > KEEP_SECONDS:
                self._keep()
                copied = time.monotonic()
        try:
            sink.finish()
        except Exception as error:
            log.warning("W&B did not finish cleanly: %s", error)
        self._keep()

    def _sign_in(self, wandb: Any) -> Any:
        mode = resolve_mode(self._run)
        try:
            return self._init(wandb, mode)
        except Exception as error:
            if mode == "offline":
                raise
            log.warning("W&B cannot be reached (%s); the log is kept in %s for `wandb sync`", error, self._folder)
            return self._init(wandb, "offline")

    def _init(self, wandb: Any, mode: str) -> Any:
        tracking = self._run.tracking
        sink = wandb.init(
            project=tracking.project,
            entity=tracking.entity,
            group=tracking.group,
            name=self._run.name,
            id=run_id(self._run),
            resume="allow",
            mode=mode,
            dir=str(self._folder),
            config=self._run.to_dict(),
            settings=wandb.Settings(init_timeout=SIGN_IN_SECONDS, console="off", silent=True),
        )
        sink.define_metric(STEP)
        sink.define_metric("*", step_metric=STEP)
        return sink

    def _send(self, wandb: Any, sink: Any, kind: str, value: dict[str, Any]) -> None:
        try:
            if kind == "images":
                value = {name: v if name == STEP else wandb.Image(v) for name, v in value.items()}
            sink.log(value)
        except Exception as error:
            log.warning("W&B refused a row at step %s: %s", value.get(STEP), error)

    def _keep(self) -> None:
        """Copy the offline log to the run's folder, where `wandb sync` finds it after this machine is gone."""
        if not storage.is_remote(self._run.url):
            return  # it was written there
        source, target = self._folder / "wandb", storage.join(self._run.url, "wandb")
        self._copying = True
        try:
            for path in sorted(source.glob("offline-run-*/**/*")):
                if path.is_file():
                    storage.upload(path, storage.join(target, *path.relative_to(source).parts))
        except Exception as error:
            log.warning("the W&B log could not be copied to %s (%s); it is in %s", target, error, source)
        finally:
            self._copying = False


def resolve_mode(run: RunConfig) -> str:
    """`online`, `offline` or `disabled`; `auto` is online where a key is at hand."""
    mode = run.tracking.mode
    return mode if mode != "auto" else "online" if has_key() else "offline"


def has_key() -> bool:
    """Whether the environment or the netrc file holds a key for the W&B server."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname
    try:
        return bool(host and netrc.netrc().authenticators(host))
    except (OSError, netrc.NetrcParseError):
        return False


def run_id(run: RunConfig) -> str:
    """The W&B id: the same for every start of a run, another for a run of that name under another root."""
    return f"{run.name}-{hashlib.sha256(run.url.encode()).hexdigest()[:8]}"


def _folder(run: RunConfig) -> Path:
    """Where W&B keeps its files: `WANDB_DIR`, the run's own folder if that is local, or a temporary one."""
    if not storage.is_remote(run.url):
        return Path(run.url).absolute()
    return Path(os.environ.get("WANDB_DIR") or Path(tempfile.gettempdir()) / f"inpaint-wandb-{run_id(run)}")
