"""One S3 client per process and place, and calls through it that are tried again and counted."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from inpaint.errors import StorageError
from inpaint.storage.retries import Retries

CONNECT_SECONDS = 5
SILENCE_SECONDS = 20  # without a byte before a connection is given up
CONNECTIONS = 64

_clients: dict[tuple[Any, ...], Any] = {}  # by process, endpoint and profile
_lock = threading.Lock()
_counts = {"requests": 0, "retries": 0, "bytes_read": 0}


def traffic() -> dict[str, int]:
    """Requests, retries and bytes read so far by this process."""
    with _lock:
        return dict(_counts)


def call(url: str, action: str, operation: Callable[[Any, dict[str, str]], Any]) -> Any:
    """What an operation on an object returns, tried again while its failures may pass.

    Args:
        action: what it does, for messages: read, write, list, delete.
        operation: gets the client, and the object's bucket and key.

    Raises:
        StorageError: it failed for good, or in all attempts.
    """
    retries = retries_of(url, action)
    while True:
        client = current_client()
        try:
            tally("requests", 1)
            return operation(client, place_of(url))
        except Exception as error:
            wait_or_raise(error, retries, client)


def retries_of(url: str, action: str) -> Retries:
    """The attempts of one call, each further one counted."""
    return Retries(url, action, on_retry=lambda: tally("retries", 1))


def wait_or_raise(error: Exception, retries: Retries, client: Any) -> None:
    """Wait for the next attempt, with a client of fresh credentials if the old ones expired; or raise."""
    if retries.failed(error):
        with _lock:
            for key in [key for key, known in _clients.items() if known is client]:
                del _clients[key]


def current_client() -> Any:
    """This process's client; the default chain finds its credentials and renews those that come with an expiry."""
    place = (os.getpid(), *(os.environ.get(f"AWS_{name}") for name in ("ENDPOINT_URL_S3", "ENDPOINT_URL", "PROFILE")))
    with _lock:
        client = _clients.get(place)
        if client is None:
            import boto3
            from botocore.config import Config
            from botocore.exceptions import BotoCoreError

            config = Config(
                connect_timeout=CONNECT_SECONDS,
                read_timeout=SILENCE_SECONDS,
                max_pool_connections=CONNECTIONS,
                retries={"total_max_attempts": 1},  # ours know where a body was cut
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                tcp_keepalive=True,
            )
            try:
                client = _clients[place] = boto3.session.Session().client("s3", config=config)
            except (BotoCoreError, ValueError) as error:
                said = f"no S3 client can be made: {error}; correct AWS_ENDPOINT_URL (http://host:port) or AWS_PROFILE"
                raise StorageError(said) from error
        return client


def place_of(url: str) -> dict[str, str]:
    """Bucket and key of an s3:// URL.

    Raises:
        StorageError: it names no bucket.
    """
    bucket, _, key = url.removeprefix("s3://").partition("/")
    if not bucket:
        raise StorageError(f"{url}: names no bucket; expected s3://bucket/key")
    return {"Bucket": bucket, "Key": key}


def tally(name: str, amount: int) -> None:
    """Add to one of the numbers of `traffic`."""
    with _lock:
        _counts[name] += amount


def _renew_lock() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)
