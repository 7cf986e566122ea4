"""Write checkpoints in the background: training waits for one copy in memory, not for a disk or a network."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from inpaint import storage
from inpaint.checkpoints.checking import describe
from inpaint.checkpoints.history import FILE as HISTORY_FILE
from inpaint.checkpoints.layout import (
    FORMAT,
    MANIFEST,
    RESTING,
    CheckpointInfo,
    checkpoint_url,
    list_checkpoints,
    to_keep,
)
from inpaint.checkpoints.staging import Staging, raw_bytes, safetensors_header
from inpaint.config import RunConfig
from inpaint.errors import CheckpointError, InpaintError, StorageError

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 600.0  # how long the store may be away before the run gives up
LOOK_SECONDS = 0.05  # between looks whether a write that is waited for has begun to fail
PAUSE_SECONDS = (1.0, 30.0)  # between attempts: first, longest


class UnseenCheckpointError(CheckpointError, StorageError):
    """The store shows what it did not show before: another start will see it."""


class CheckpointWriter:
    """Writes a run's checkpoints and keeps the ones its settings ask for.

    A failed write is tried again until the store has been away for `patience_seconds`; meanwhile training goes on and
    checkpoints that fall due are left out. After that the next call of `save`, `check` or `close` raises.

    Args:
        run: settings; `run.url` is where to write.
        inference_networks: names of the networks that filling an image needs, for the manifest.
        may_write: called before anything is written and before it becomes valid; raises when this process has lost
            the right to the run.
        passed_over: URLs of later checkpoints that the run knowingly did not begin from, and may delete.
        patience_seconds: how long failing writes are repeated.
    """

    def __init__(
        self,
        run: RunConfig,
        *,
        inference_networks: tuple[str, ...] = (),
        may_write: Callable[[], None] = lambda: None,
        passed_over: Iterable[str] = (),
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self.run = run
        self.inference_networks = inference_networks
        self.written_at: float | None = None
        self.written_step: int | None = None
        self.stall_seconds = 0.0  # time that the last `save` held up its caller
        self.passed_over = set(passed_over)
        self._may_write = may_write
        self._patience = patience_seconds
        self._staging = Staging()
        self._folders = f"inpaint-checkpoint-{hashlib.sha256(run.url.encode()).hexdigest()[:12]}-"
        _remove_remains(self._folders)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._failing = threading.Event()
        self._hurried = threading.Event()
        self._give_up_at = math.inf

    def save(
        self,
        step: int,
        state: Mapping[str, Any],
        metrics: Mapping[str, float],
        *,
        history: bytes | None = None,
        may_leave_out: bool = True,
    ) -> bool:
        """Copy `state` now and write it in the background as the checkpoint after `step` steps.

        Args:
            step: optimiser steps done.
            state: {"networks": {name: {tensor name: tensor}}, "trainer": nested plain values and tensors}; more
                entries beside "networks" go to `trainer.pt` with it. Networks named in "resting" are written once
                under the run, and named by the checkpoints that have them unchanged.
            metrics: scores at this step.
            history: content of the run's history file up to this step.
            may_leave_out: another checkpoint will come, so training need not wait for the store.

        Returns:
            Whether it will be written: False while the store is away and an older checkpoint waits for it.

        Raises:
            CheckpointError: the store has been away too long, or the disk is full.
        """
        began = time.perf_counter()
        if may_leave_out and not self._join_unless_failing():
            log.warning("checkpoint at step %d left out: the one before still waits for %s", step, self.run.url)
            return False
        self._join()
        self.check()
        held = self._staging.hold(state)
        self._thread = threading.Thread(
            target=self._work, args=(step, held, dict(metrics), history), name="checkpoint", daemon=True
        )
        self._thread.start()
        self.stall_seconds = time.perf_counter() - began
        return True

    def check(self) -> None:
        """Raise what a write in the background ended with."""
        if self._error:
            error, self._error = self._error, None
            raise error

    def hurry(self, seconds: float) -> None:
        """Repeat failing writes every second, and for so long at most: this machine goes away."""
        self._give_up_at = time.monotonic() + seconds
        self._hurried.set()

    def close(self) -> None:
        """Wait for the last write.

        Raises:
            CheckpointError: it failed for good.
        """
        self._join()
        self.check()

    def _busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _join_unless_failing(self) -> bool:
        """Wait for the write under way as long as the store takes it; whether none is left."""
        while self._busy() and not self._failing.is_set():
            assert self._thread is not None
            self._thread.join(LOOK_SECONDS)
        return not self._busy()

    def _join(self) -> None:
        if self._thread:
            self._thread.join()
            self._thread = None

    def _work(self, step: int, state: Mapping[str, Any], metrics: dict[str, float], history: bytes | None) -> None:
        began, pause = time.monotonic(), PAUSE_SECONDS[0]
        try:
            self._staging.wait()
            while True:
                try:
                    whole = self._write(step, state, metrics, history)
                    break
                except (InpaintError, OSError) as error:
                    pause = PAUSE_SECONDS[0] if self._hurried.is_set() else pause
                    give_up_at = min(began + self._patience, self._give_up_at)
                    if isinstance(error, CheckpointError) or time.monotonic() + pause > give_up_at:
                        raise
                    log.warning("checkpoint at step %d: %s; trying again in %.0f s", step, error, pause)
                    self._failing.set()
                    self._rest(pause)
                    pause = min(2 * pause, PAUSE_SECONDS[1])
            self.written_at, self.written_step = time.monotonic(), step
            self._tidy(whole)
        except InpaintError as error:
            self._error = error if isinstance(error, CheckpointError) else CheckpointError(
                f"checkpoint at step {step} could not be written for {time.monotonic() - began:.0f} s: {error}; "
                f"mend the store and start the run again, it goes on from its last checkpoint"
            )
        except OSError as error:
            self._error = CheckpointError(
                f"checkpoint at step {step} could not be written: {error}; "
                f"free space under {tempfile.gettempdir()} or set TMPDIR, then start the run again"
            )
        except BaseException as error:
            self._error = error
        finally:
            self._failing.clear()

    def _rest(self, seconds: float) -> None:
        """Pause, cut short when a hurry begins."""
        if self._hurried.is_set():
            time.sleep(seconds)
        else:
            self._hurried.wait(seconds)

    def _write(
        self, step: int, state: Mapping[str, Any], metrics: dict[str, float], history: bytes | None
    ) -> list[CheckpointInfo]:
        """Upload everything, the manifest last.

        Returns:
            The whole checkpoints up to this step, as the store lists them.

        Raises:
            StorageError: the checkpoint just written is not among them, so neither the store nor its listing is to be
                relied on.
        """
        url = checkpoint_url(self.run.url, step)
        self._may_write()
        if self.written_step is None:
            self._refuse_unseen(step)
        storage.delete(storage.join(url, MANIFEST))  # of an earlier attempt at the same step, which is replaced
        with tempfile.TemporaryDirectory(prefix=self._folders) as folder:
            files = _write_files(Path(folder), self.run, state, metrics)
            for name, entry in files.items():
                if "at" not in entry:
                    storage.upload(str(Path(folder) / name), storage.join(url, name))
                elif not _is_there(target := storage.join(self.run.url, entry["at"]), entry["bytes"]):
                    storage.upload(str(Path(folder) / name), target)
        self._may_write()
        if history is not None:
            storage.write_bytes(storage.join(self.run.url, HISTORY_FILE), history)
        manifest = {
            "format": FORMAT,
            "run": self.run.name,
            "step": step,
            "metrics": metrics,
            "inference_networks": list(self.inference_networks),
            "files": files,
        }
        storage.write_bytes(storage.join(url, MANIFEST), json.dumps(manifest, indent=1).encode())
        whole = [info for info in list_checkpoints(self.run.url) if info.step <= step]
        if step not in {info.step for info in whole}:
            raise StorageError(
                f"{url}: was written, but the store does not have it whole; see whether it keeps what it is given and "
                "lists what it has"
            )
        return whole

    def _refuse_unseen(self, step: int) -> None:
        """Before a run's first write, which would put others in the place of what a store had not shown it.

        Raises:
            UnseenCheckpointError: there are checkpoints of later steps that were not there when the run began.
        """
        later = [info.url for info in list_checkpoints(self.run.url) if info.step > step]
        unseen = sorted(set(later) - self.passed_over)
        if unseen:
            raise UnseenCheckpointError(
                f"{unseen[-1]}: was not to be seen when this run began, which has come to step {step}; "
                "nothing was deleted, start it again to go on from there"
            )

    def _tidy(self, whole: list[CheckpointInfo]) -> None:
        """Delete the checkpoints not worth keeping, and the remains of half-written ones; what fails waits."""
        wanted = self.run.checkpoints
        keep = to_keep(
            whole, keep_last=wanted.keep_last, keep_best=wanted.keep_best, metric=wanted.metric, mode=wanted.mode
        )
        folder = storage.join(self.run.url, "checkpoints")
        try:
            for url in (storage.join(folder, name) for name in storage.list_folders(folder)):
                if url not in keep:
                    storage.delete(storage.join(url, MANIFEST))
                    storage.delete_tree(url)
            shared = {info.place(name) for info in whole if info.url in keep for name in info.files}
            for item in list(storage.list_objects(storage.join(self.run.url, RESTING))):
                if item.url not in shared:
                    storage.delete(item.url)
        except (StorageError, OSError) as error:
            log.warning("%s: old checkpoints wait for the next one to be deleted: %s", self.run.url, error)


def _remove_remains(prefix: str) -> None:
    """Delete what a killed writer of the same run has left in the temporary folder."""
    for path in Path(tempfile.gettempdir()).glob(prefix + "*"):
        shutil.rmtree(path, ignore_errors=True)


def _write_files(
    folder: Path, run: RunConfig, state: Mapping[str, Any], metrics: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    """The files of a checkpoint in a local folder; path → size and checksum."""
    (folder / "networks").mkdir()
    for name, tensors in state["networks"].items():
        with (folder / "networks" / f"{name}.safetensors").open("wb") as file:
            file.write(safetensors_header(tensors))
            for tensor in tensors.values():
                file.write(raw_bytes(tensor))
    rest = {key: value for key, value in state.items() if key not in ("networks", "resting")}
    torch.save(rest, folder / "trainer.pt")
    (folder / "run.yaml").write_text(yaml.safe_dump(run.to_dict(), sort_keys=False))
    (folder / "metrics.json").write_text(json.dumps(dict(metrics), indent=1))
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {str(path.relative_to(folder)): describe(path) for path in paths}
    for network in state.get("resting", ()):
        entry = files[f"networks/{network}.safetensors"]
        entry["at"] = f"{RESTING}/{network}-{entry['sha256'][:16]}.safetensors"
    return files


def _is_there(url: str, size: int) -> bool:
    try:
        return storage.stat(url).size == size
    except storage.MissingObject:
        return False
