"""A Kubernetes API server's refusals as one sentence with the fields and the next step, and patience with one away."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, TypeVar

from inpaint.errors import ClusterError

Answer = TypeVar("Answer")
PATIENCE_SECONDS = 60.0  # with a server that is away, where something is under way already


class AlreadyExists(ClusterError):
    """An object of this name is there."""


class NotFound(ClusterError):
    """No object of this name is there."""


class BadRequest(ClusterError):
    """The request makes no sense to the server at present (an unknown field, a container without a log)."""


class Unavailable(ClusterError):
    """No answer now, from a network or server that is down, or too busy; the same request may succeed later."""


def insist(action: Callable[[], Answer]) -> Answer:
    """What an action gives, for which a server that is away is waited for a minute.

    Raises:
        Unavailable: it is still away.
    """
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return action()
        except Unavailable:
            if time.monotonic() > until:
                raise
            time.sleep(1.0)


def explain(error: Any, what: str, host: str) -> ClusterError:
    """The server's refusal as one sentence with its fields and the next step."""
    try:
        body = json.loads(error.body or "{}")
    except (TypeError, ValueError):
        body = {}
    message = body.get("message") or str(error.reason or "")
    causes = (body.get("details") or {}).get("causes") or []
    fields = "; ".join(f"{cause.get('field')}: {cause.get('message')}" for cause in causes if cause.get("field"))
    if error.status == 409 and body.get("reason") == "AlreadyExists":
        return AlreadyExists(message)
    if error.status == 404:
        if "page not found" in str(error.body) or not body.get("details", {}).get("name"):
            return ClusterError(f"cannot {what}: {host} knows no RayJob; is the KubeRay operator (1.7) installed?")
        return NotFound(message)
    if error.status == 401:
        return ClusterError(f"cannot {what}: {host} does not know you (401); log in again")
    if error.status == 403:
        return ClusterError(f"cannot {what}: {message}; ask for the chart's submitter role (rbac.subjects)")
    if error.status == 422:
        return ClusterError(f"cannot {what}: the server refuses {fields or message}")
    if error.status == 400:
        return BadRequest(f"cannot {what}: {message}")
    kind = Unavailable if error.status == 429 or (error.status or 0) >= 500 else ClusterError
    return kind(f"cannot {what}: {host} answered {error.status}: {message}")
