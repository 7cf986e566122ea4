"""A few words between a driver and its workers, through Ray's own key-value store: progress, stop, failure.

It lives as long as the Ray instance and needs no actor, no port and no object store of ours.
"""

from __future__ import annotations

import json
from typing import Any

from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put


class Channel:
    """What is said about one start of one run.

    Args:
        token: names the start; driver and workers use the same one.
    """

    def __init__(self, token: str) -> None:
        self.token = token

    def report(self, progress: dict[str, Any]) -> None:
        """From rank 0: how far it is."""
        self._put("progress", progress)

    def progress(self) -> dict[str, Any]:
        """The newest report, or nothing yet."""
        return self._get("progress") or {}

    def ask_to_stop(self, reason: str) -> None:
        """From the driver: write a checkpoint and return."""
        self._put("stop", reason)

    def stop_reason(self) -> str | None:
        """What the driver asked for."""
        return self._get("stop")

    def fail(self, kind: str, message: str) -> None:
        """From a worker: an error that trying again will not mend."""
        self._put("failure", {"kind": kind, "message": message})

    def failure(self) -> dict[str, str] | None:
        """Kind and message of such an error."""
        return self._get("failure")

    def repeats(self, rank: int, error: str) -> bool:
        """From a worker that ends: whether the one of this rank before it ended alike, and no further on."""
        end, before = [error, self.progress().get("step")], self._get(f"error-{rank}")
        self._put(f"error-{rank}", end)
        return bool(before == end)

    def note(self, number: int, text: str) -> None:
        """From rank 0: line `number`, from 0, of what a person should know."""
        self._put(f"note-{number}", text)

    def noted(self, number: int) -> str | None:
        """Line `number`, once it is there."""
        return self._get(f"note-{number}")

    def _put(self, name: str, value: Any) -> None:
        _internal_kv_put(f"inpaint/{self.token}/{name}".encode(), json.dumps(value).encode(), overwrite=True)

    def _get(self, name: str) -> Any:
        value = _internal_kv_get(f"inpaint/{self.token}/{name}".encode())
        return json.loads(value) if value else None
