"""The one door to objects: `s3://bucket/key` and local paths behind the same functions.

Every write is atomic: an object is there whole or not at all. Reads from S3 are retried with backoff and go on at the
byte where a connection was cut.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inpaint.errors import StorageError

ATTEMPTS = 6
CHUNK_BYTES = 1 << 20
Progress = Callable[[int], None]


@dataclass(frozen=True)
class ObjectInfo:
    """One stored object: its URL, size in bytes, modification time (seconds since 1970) and a content tag."""

    url: str
    size: int
    modified: float
    etag: str


def is_remote(url: str) -> bool:
    """Whether `url` is in S3."""
    return url.startswith("s3://")


def join(url: str, *parts: str) -> str:
    """`url` with path parts appended."""
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts)])


def name_of(url: str) -> str:
    """The last path part."""
    return url.rstrip("/").rsplit("/", 1)[-1]
