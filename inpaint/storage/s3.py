"""The S3 side of the storage door: one client per process, ranged reads that survive a bad network, atomic writes.

Bytes go from the socket into the caller's buffer without a copy in between, which costs about as much as a bare socket
(`inpaint bench stream`).
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inpaint.errors import StorageError
from inpaint.storage.objects import AlreadyExists, ChangedMeanwhile, MissingObject, ObjectInfo, Progress
from inpaint.storage.retries import WHO_ANSWERS, Retries, status_of

CONNECT_SECONDS = 5
SILENCE_SECONDS = 20  # without a byte before a connection is given up
FIRST_BYTES = 64 << 10  # read before the speed is known; a body that takes SILENCE_SECONDS for it is asked for again
PIECE_BYTES = 8 << 20  # read at once when it takes less than a second
RANGE_BYTES = 8 << 20
PROGRESS_BYTES = 1 << 20  # after so many, earlier failures of a read are forgotten
PART_BYTES = 16 << 20  # of a multipart upload; larger when there would be more than 10,000
CONNECTIONS = 64

_clients: dict[tuple[Any, ...], Any] = {}  # by process, endpoint and profile
_lock = threading.Lock()
_counts = {"requests": 0, "retries": 0, "bytes_read": 0}


def traffic() -> dict[str, int]:
    with _lock:
        return dict(_counts)


def stat(url: str) -> ObjectInfo:
    return _call(url, "read", lambda client, place: _info(url, client.head_object(**place)))


def list_objects(url: str) -> Iterator[ObjectInfo]:
    bucket, prefix = _folder(url)
    for page in _pages(url, bucket, prefix, delimiter=""):
        for entry in page.get("Contents", []):
            if not entry["Key"].endswith("/"):  # a console's folder marker
                place = f"s3://{bucket}/{entry['Key']}"
                yield ObjectInfo(place, entry["Size"], _seconds(entry["LastModified"]), entry.get("ETag", ""))


def list_folders(url: str) -> list[str]:
    bucket, prefix = _folder(url)
    pages = _pages(url, bucket, prefix, delimiter="/")
    return sorted(entry["Prefix"][len(prefix) : -1] for page in pages for entry in page.get("CommonPrefixes", []))


def read_bytes(url: str) -> bytes:
    return bytes(_receive(url, 0, None, None).view or b"")


def read_into(url: str, start: int, view: memoryview) -> None:
    if len(view):
        _receive(url, start, view, None)


def read_window(info: ObjectInfo, start: int, view: memoryview, threads: int) -> None:
    """`read_into` in parallel ranges of one version of an object."""
    ranges = [(at, view[at : at + RANGE_BYTES]) for at in range(0, len(view), RANGE_BYTES)]
    if threads == 1 or len(ranges) == 1:
        _receive(info.url, start, view, info.etag)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="s3-range") as pool:
        list(pool.map(lambda part: _receive(info.url, start + part[0], part[1], info.etag), ranges))


def write_bytes(url: str, data: bytes, *, if_absent: bool = False) -> str:
    conditions = {"IfNoneMatch": "*"} if if_absent else {}
    try:
        return _put(url, data, conditions)
    except ChangedMeanwhile:
        raise AlreadyExists(f"{url}: there is an object already; remove it or choose another name") from None


def write_if_match(url: str, data: bytes, etag: str) -> str:
    try:
        return _put(url, data, {"IfMatch": etag})
    except MissingObject:
        raise ChangedMeanwhile(f"{url}: is gone, expected version {etag}; read it again before writing") from None


def upload(source: Path, url: str, progress: Progress) -> None:
    size = source.stat().st_size
    if size <= PART_BYTES:
        _put(url, source.read_bytes(), {})
        progress(size)
        return
    upload_id = _call(url, "write", lambda client, place: client.create_multipart_upload(**place)["UploadId"])
    try:
        _complete(url, upload_id, _upload_parts(source, size, url, upload_id, progress))
    except BaseException:
        with suppress(StorageError):  # what went wrong before says more
            _call(url, "write", lambda client, place: client.abort_multipart_upload(**place, UploadId=upload_id))
        raise


def delete(url: str) -> None:
    _call(url, "delete", lambda client, place: client.delete_object(**place))


def delete_tree(url: str) -> None:
    with ThreadPoolExecutor(8, thread_name_prefix="s3-delete") as pool:
        list(pool.map(lambda info: delete(info.url), list_objects(url)))


@dataclass
class _Sink:
    """Where bytes go, and how many have arrived."""

    view: memoryview | None
    done: int = 0


def _info(url: str, head: dict[str, Any]) -> ObjectInfo:
    return ObjectInfo(url, head["ContentLength"], _seconds(head["LastModified"]), head.get("ETag", ""))


def _receive(url: str, start: int, view: memoryview | None, etag: str | None) -> _Sink:
    """Fill `view` from byte `start`, or a buffer of the object's size when there is none, in as many requests as it
    takes; every request after the first insists on the version that the first one saw."""
    sink, retries = _Sink(view), _retries(url, "read")
    while sink.view is None or sink.done < len(sink.view):
        client, before = _client(), sink.done
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
            _after(error, retries, client)
    return sink


def _open(client: Any, url: str, start: int, sink: _Sink, etag: str | None) -> dict[str, Any]:
    _count("requests", 1)
    options = {"IfMatch": etag} if etag else {}
    if sink.view is not None:
        options["Range"] = f"bytes={start}-{start + len(sink.view) - sink.done - 1}"
    response = client.get_object(**_place(url), **options)
    body, length = response["Body"], response["ContentLength"]
    if sink.view is None:
        if "ContentRange" in response:
            body.close()
            raise ConnectionError(f"the server answered with {response['ContentRange']} when asked for the whole")
        sink.view = memoryview(bytearray(length))
    elif not _is_the_range(response, start, len(sink.view) - sink.done):
        body.close()
        said = response.get("ContentRange") or f"a whole object of {length} bytes"
        raise ConnectionError(f"the server answered {options['Range']} with {said}; it must support ranges")
    elif length < len(sink.view) - sink.done:
        body.close()
        end, wanted = start + length, start + len(sink.view) - sink.done
        if response.get("ContentRange", "").endswith(f"/{end}"):
            raise StorageError(f"{url}: ends at byte {end}, expected {wanted}; the object was truncated")
        raise ConnectionError(f"got bytes up to {end} of the asked {wanted}")
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
            with WATCH.limit(stream, SILENCE_SECONDS):
                count = _fill(stream, sink.view[sink.done : sink.done + length])
            if not count:
                raise ConnectionError(f"the body ended {len(sink.view) - sink.done} bytes early")
            sink.done += count
            _count("bytes_read", count)
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
            time.sleep(min(0.5, SILENCE_SECONDS / 4))
            with self._lock:
                idle = 0 if self._ends else idle + 1
                late = [stream for stream, end in self._ends.items() if time.monotonic() > end]
                if idle == 10:
                    self._thread = None
            for stream in late:
                with suppress(Exception):
                    stream.shutdown()


WATCH = _Watch()


def _put(url: str, data: bytes, conditions: dict[str, str]) -> str:
    """Write an object; a condition that fails after a lost answer is checked against what is there."""
    retries, digest = _retries(url, "write"), base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest())
    while True:
        client = _client()
        try:
            _count("requests", 1)
            return client.put_object(**_place(url), Body=data, ContentMD5=digest.decode(), **conditions)["ETag"]
        except Exception as error:
            if status_of(error) == 412:
                if retries.failures and _exists_as(url, data):
                    return stat(url).etag
                raise ChangedMeanwhile(f"{url}: was changed by somebody else; read it again before writing") from error
            _after(error, retries, client)


def _exists_as(url: str, data: bytes) -> bool:
    """Whether the object is there with exactly these bytes."""
    try:
        return read_bytes(url) == data
    except MissingObject:
        return False


def _upload_parts(source: Path, size: int, url: str, upload_id: str, progress: Progress) -> list[dict[str, Any]]:
    part_bytes = max(PART_BYTES, -(-size // 10_000))

    def send(number: int) -> dict[str, Any]:
        with open(source, "rb") as file:
            file.seek((number - 1) * part_bytes)
            data = file.read(part_bytes)
        digest = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
        etag = _call(url, "write", lambda client, place: client.upload_part(
            **place, UploadId=upload_id, PartNumber=number, Body=data, ContentMD5=digest)["ETag"])  # fmt: skip
        progress(len(data))
        return {"PartNumber": number, "ETag": etag}

    with ThreadPoolExecutor(4, thread_name_prefix="s3-upload") as pool:
        return list(pool.map(send, range(1, -(-size // part_bytes) + 1)))


def _complete(url: str, upload_id: str, parts: list[dict[str, Any]]) -> None:
    """Join the parts; an upload that is unknown by then may have been joined by an attempt whose answer was lost."""
    try:
        _call(url, "write", lambda client, place: client.complete_multipart_upload(
            **place, UploadId=upload_id, MultipartUpload={"Parts": parts}))  # fmt: skip
    except MissingObject:
        if not _is_joined(url, parts):
            raise


def _is_joined(url: str, parts: list[dict[str, Any]]) -> bool:
    """Whether the object is made of these parts, by the tag that S3 gives to such an object."""
    try:
        digests = b"".join(bytes.fromhex(part["ETag"].strip('"')) for part in parts)
        return stat(url).etag == f'"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(parts)}"'
    except (MissingObject, ValueError):
        return False


def _pages(url: str, bucket: str, prefix: str, *, delimiter: str) -> Iterator[dict[str, Any]]:
    options, token = {"Bucket": bucket, "Prefix": prefix, "Delimiter": delimiter}, ""
    while True:
        page, goes_on = _call(url, "list", lambda client, _: _page(client.list_objects_v2(**options)))
        yield page
        if not goes_on:
            return
        before, token = token, page.get("NextContinuationToken", "")
        if token in ("", before):
            raise StorageError(f"{url}: the listing breaks off without saying how it goes on; {WHO_ANSWERS}")
        options["ContinuationToken"] = token


def _page(answer: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """A page of a listing and whether another follows; an answer that does not say so is none."""
    return answer, answer["IsTruncated"]


def _call(url: str, action: str, operation: Callable[[Any, dict[str, str]], Any]) -> Any:
    retries = _retries(url, action)
    while True:
        client = _client()
        try:
            _count("requests", 1)
            return operation(client, _place(url))
        except Exception as error:
            _after(error, retries, client)


def _retries(url: str, action: str) -> Retries:
    return Retries(url, action, on_retry=lambda: _count("retries", 1))


def _after(error: Exception, retries: Retries, client: Any) -> None:
    """Wait for the next attempt, with a client of fresh credentials if the old ones expired; or raise."""
    if retries.failed(error):
        with _lock:
            for key in [key for key, known in _clients.items() if known is client]:
                del _clients[key]


def _client() -> Any:
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


def _place(url: str) -> dict[str, str]:
    bucket, _, key = url.removeprefix("s3://").partition("/")
    if not bucket:
        raise StorageError(f"{url}: names no bucket; expected s3://bucket/key")
    return {"Bucket": bucket, "Key": key}


def _folder(url: str) -> tuple[str, str]:
    place = _place(url)
    prefix = place["Key"].strip("/")
    return place["Bucket"], f"{prefix}/" if prefix else ""


def _count(name: str, amount: int) -> None:
    with _lock:
        _counts[name] += amount


def _seconds(moment: datetime.datetime) -> float:
    return moment.timestamp()


def _after_fork() -> None:
    global _lock, WATCH
    _lock, WATCH = threading.Lock(), _Watch()


os.register_at_fork(after_in_child=_after_fork)
