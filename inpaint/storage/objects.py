"""What both sides of the storage door share: URLs, what a listing says of an object, and its errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from inpaint.errors import StorageError

Progress = Callable[[int], None]  # gets the bytes done since the last call


class MissingObject(StorageError):
    """There is no such object."""


class AlreadyExists(StorageError):
    """There is an object where none was expected."""


class ChangedMeanwhile(StorageError):
    """Somebody else wrote the object since it was read."""


class OutOfSpace(StorageError):
    """The local disk is full."""


class Unavailable(StorageError):
    """The store could not be reached, or was too busy, in all attempts."""


@dataclass(frozen=True)
class ObjectInfo:
    """One stored object: its URL, size in bytes, modification time (seconds since 1970) and a tag of its version."""

    url: str
    size: int
    modified: float
    etag: str


def is_remote(url: str) -> bool:
    """Whether `url` is in S3."""
    return str(url).startswith("s3://")


def join(url: str, *parts: str) -> str:
    """`url` with path parts appended."""
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts)])


def name_of(url: str) -> str:
    """The last path part."""
    return url.rstrip("/").rsplit("/", 1)[-1]
