"""The S3 side of the storage door: objects that are whole or absent, and conditions on what was there."""

from __future__ import annotations

import base64
import datetime
import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from inpaint.errors import StorageError
from inpaint.storage.objects import AlreadyExists, ChangedMeanwhile, MissingObject, ObjectInfo, Progress
from inpaint.storage.retries import WHO_ANSWERS, status_of
from inpaint.storage.s3_bodies import receive
from inpaint.storage.s3_client import call, current_client, place_of, retries_of, tally, wait_or_raise

RANGE_BYTES = 8 << 20  # of the parallel reads of one object
PART_BYTES = 16 << 20  # of a multipart upload; larger when there would be more than 10,000


def stat(url: str) -> ObjectInfo:
    return call(url, "read", lambda client, place: _info(url, client.head_object(**place)))


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
    return bytes(receive(url, 0, None, None))


def read_into(url: str, start: int, view: memoryview) -> None:
    if len(view):
        receive(url, start, view, None)


def read_window(info: ObjectInfo, start: int, view: memoryview, threads: int) -> None:
    """`read_into` in parallel ranges of one version of an object."""
    ranges = [(at, view[at : at + RANGE_BYTES]) for at in range(0, len(view), RANGE_BYTES)]
    if threads == 1 or len(ranges) == 1:
        receive(info.url, start, view, info.etag)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="s3-range") as pool:
        list(pool.map(lambda part: receive(info.url, start + part[0], part[1], info.etag), ranges))


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
    upload_id = call(url, "write", lambda client, place: client.create_multipart_upload(**place)["UploadId"])
    try:
        _complete(url, upload_id, _upload_parts(source, size, url, upload_id, progress))
    except BaseException:
        with suppress(StorageError):  # what went wrong before says more
            call(url, "write", lambda client, place: client.abort_multipart_upload(**place, UploadId=upload_id))
        raise


def delete(url: str) -> None:
    call(url, "delete", lambda client, place: client.delete_object(**place))


def delete_tree(url: str) -> None:
    with ThreadPoolExecutor(8, thread_name_prefix="s3-delete") as pool:
        list(pool.map(lambda info: delete(info.url), list_objects(url)))


def _info(url: str, head: dict[str, Any]) -> ObjectInfo:
    return ObjectInfo(url, head["ContentLength"], _seconds(head["LastModified"]), head.get("ETag", ""))


def _put(url: str, data: bytes, conditions: dict[str, str]) -> str:
    """Write an object; a condition that fails after a lost answer is checked against what is there."""
    retries, digest = retries_of(url, "write"), base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest())
    while True:
        client = current_client()
        try:
            tally("requests", 1)
            return client.put_object(**place_of(url), Body=data, ContentMD5=digest.decode(), **conditions)["ETag"]
        except Exception as error:
            if status_of(error) == 412:
                if retries.failures and _exists_as(url, data):
                    return stat(url).etag
                raise ChangedMeanwhile(f"{url}: was changed by somebody else; read it again before writing") from error
            wait_or_raise(error, retries, client)


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
        etag = call(url, "write", lambda client, place: client.upload_part(
            **place, UploadId=upload_id, PartNumber=number, Body=data, ContentMD5=digest)["ETag"])  # fmt: skip
        progress(len(data))
        return {"PartNumber": number, "ETag": etag}

    with ThreadPoolExecutor(4, thread_name_prefix="s3-upload") as pool:
        return list(pool.map(send, range(1, -(-size // part_bytes) + 1)))


def _complete(url: str, upload_id: str, parts: list[dict[str, Any]]) -> None:
    """Join the parts; an upload that is unknown by then may have been joined by an attempt whose answer was lost."""
    try:
        call(url, "write", lambda client, place: client.complete_multipart_upload(
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
        page, goes_on = call(url, "list", lambda client, _: _page(client.list_objects_v2(**options)))
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


def _folder(url: str) -> tuple[str, str]:
    place = place_of(url)
    prefix = place["Key"].strip("/")
    return place["Bucket"], f"{prefix}/" if prefix else ""


def _seconds(moment: datetime.datetime) -> float:
    return moment.timestamp()
