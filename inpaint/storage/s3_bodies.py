"""Bytes of an S3 object, read into the caller's memory over a network that cuts, stalls and drips.

They go from the socket into the caller's buffer without a copy in between, which costs about as much as a bare socket
(`inpaint bench stream`).
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from inpaint.errors import StorageError
from inpaint.storage import s3_client
from inpaint.storage.objects import ChangedMeanwhile
from inpaint.storage.retries import WrongAnswer, status_of
from inpaint.storage.s3_client import current_client, place_of, retries_of, tally, wait_or_raise

FIRST_BYTES = 64 << 10  # read before the speed is known; a body that is silent meanwhile is asked for again
PIECE_BYTES = 8 << 20  # read at once when it takes less than a second
PROGRESS_BYTES = 1 << 20  # after so many, earlier failures of a read are forgotten


@dataclass
class _Sink:
    """Where bytes go, and how many have arrived."""

    view: memoryview | None
    done: int = 0


def receive(url: str, start: int, view: memoryview | None, etag: str | None) -> memoryview:
    """Read an object into memory, in as many requests as it takes, all of one version.

    Args:
        start: its first byte that is wanted.
        view: filled from there; None for memory of the object's size.
        etag: the version that is wanted; the one that the first request sees when None.

    Raises:
        ChangedMeanwhile: it has another version.
        StorageError: it ends too early, or cannot be read.
    """
    sink, retries = _Sink(view), retries_of(url, "read")
    while sink.view is None or sink.done < len(sink.view):
        client, before = current_client(), sink.done
        try:
            response = _open(client, url, start + sink.done, sink, etag)
            etag = etag or response.get("ETag")
            _drain(response["Body"], sink)
        except Exception as error:
            if status_of(error) == 416:
                raise StorageError(f"{url}: ends before byte {start + sink.done}; the object was truncated") from error
            if status_of(error) == 412:
                raise ChangedMeanwhile(f"{url}: was replaced while it was being read; start again") from error
            if sink.done - before >= PROGRESS_BYTES:
                retries.progressed()
            wait_or_raise(error, retries, client)
    return sink.view


def _open(client: Any, url: str, start: int, sink: _Sink, etag: str | None) -> dict[str, Any]:
    tally("requests", 1)
    options = {"IfMatch": etag} if etag else {}
    if sink.view is not None:
        options["Range"] = f"bytes={start}-{start + len(sink.view) - sink.done - 1}"
    response = client.get_object(**place_of(url), **options)
    body, length = response["Body"], response["ContentLength"]
    if sink.view is None:
        if "ContentRange" in response:
            body.close()
            raise WrongAnswer(f"the server answered with {response['ContentRange']} when asked for the whole")
        sink.view = memoryview(bytearray(length))
    elif not _is_the_range(response, start, len(sink.view) - sink.done):
        body.close()
        said = response.get("ContentRange") or f"a whole object of {length} bytes"
        raise WrongAnswer(f"the server answered {options['Range']} with {said}; it must support ranges")
    elif length < len(sink.view) - sink.done:
        body.close()
        end, wanted = start + length, start + len(sink.view) - sink.done
        if response.get("ContentRange", "").endswith(f"/{end}"):
            raise StorageError(f"{url}: ends at byte {end}, expected {wanted}; the object was truncated")
        raise WrongAnswer(f"got bytes up to {end} of the asked {wanted}")
    return response


def _is_the_range(response: dict[str, Any], start: int, length: int) -> bool:
    """Whether an answer begins at `start` and holds no more than was asked for; a whole object may say no range."""
    said = response.get("ContentRange", "" if start else "bytes 0-")
    return said.startswith(f"bytes {start}-") and response["ContentLength"] <= length


def _drain(body: Any, sink: _Sink) -> None:
    """Move a body into the sink; a silent, slow or cut one raises, with what came counted in `sink.done`.

    Bytes go from the socket straight into the caller's buffer, about a second's worth at a time.
    """
    assert sink.view is not None
    stream, length = body._raw_stream, FIRST_BYTES
    try:
        while sink.done < len(sink.view):
            since = time.monotonic()
            with WATCH.limit(stream, s3_client.SILENCE_SECONDS):
                count = _fill(stream, sink.view[sink.done : sink.done + length])
            if not count:
                raise WrongAnswer(f"the body ended {len(sink.view) - sink.done} bytes early")
            sink.done += count
            tally("bytes_read", count)
            rate = count / max(time.monotonic() - since, 1e-6)
            length = int(min(max(rate, FIRST_BYTES), PIECE_BYTES))
        stream.release_conn()
    except BaseException:
        body.close()
        raise


def _fill(stream: Any, view: memoryview) -> int:
    """Read from a body into `view`, and how many bytes came: nearly always all of it, and none only at the body's end.

    A socket without TLS is asked once for the whole piece; a call for each of its packets costs 40 % more CPU time. The
    body's last byte is left to the HTTP client, which then knows that the connection is free.
    """
    response, connection = stream._fp, stream.connection
    sock = getattr(connection, "sock", None)
    if type(sock) is not socket.socket or response.length is None:
        return response.readinto(view)
    done = response.readinto(view[: len(response.peek())])  # what came along with the headers
    rest = view[done : done + (response.length or 1) - 1]
    if not done or not len(rest):
        return done
    timeout = sock.gettimeout()
    sock.settimeout(None)  # only then does the kernel wait for all of it; the watch ends what takes too long
    try:
        count = sock.recv_into(rest, 0, socket.MSG_WAITALL)
    finally:
        sock.settimeout(timeout)
    response.length -= count
    return done + count


class _Watch:
    """Ends reads that take too long; the socket's own timeout starts anew with every byte."""

    def __init__(self) -> None:
        self._ends: dict[Any, float] = {}
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    @contextmanager
    def limit(self, stream: Any, seconds: float) -> Iterator[None]:
        with self._lock:
            self._ends[stream] = time.monotonic() + seconds
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="s3-watch", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._lock:
                self._ends.pop(stream, None)

    def _run(self) -> None:
        idle = 0
        while idle < 10:  # a few seconds without a read, then the thread ends
            time.sleep(min(0.5, s3_client.SILENCE_SECONDS / 4))
            with self._lock:
                idle = 0 if self._ends else idle + 1
                late = [stream for stream, end in self._ends.items() if time.monotonic() > end]
                if idle == 10:
                    self._thread = None
            for stream in late:
                with suppress(Exception):
                    stream.shutdown()


WATCH = _Watch()


def _renew_watch() -> None:
    global WATCH
    WATCH = _Watch()


os.register_at_fork(after_in_child=_renew_watch)
