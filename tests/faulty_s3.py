"""A small S3 in this process that can misbehave: wrong answers, slow or cut bodies, altered bytes, on demand.

It answers GET with ranges and If-Match, HEAD, PUT with If-Match and If-None-Match, uploads in parts, DELETE, and
listings.
"""

from __future__ import annotations

import functools
import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


class FaultyS3:
    """Objects in a dict, `faults[key]` the misbehaviour of the next requests for it, `requests` what was asked.

    `connections` counts over how many connections.

    A fault is a status code, `no answer` (the connection ends), `no range` (the whole object instead), `shifted range`
    (another Content-Range than asked for), `part` (half of what was asked for as a whole), `no length` (the answer does
    not say it), `no token` (a listing does not say how it goes on), `empty` (a listing says nothing), or a function
    `(handler, body) -> None` that answers a GET in its own way. For an upload in parts they are under `part <key>` and
    `join <key>`, and `no upload` is one that is not known.
    """

    def __init__(self) -> None:
        self.forget()
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"store": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def forget(self) -> FaultyS3:
        """Drop all objects, faults and requests."""
        self.objects: dict[str, bytes] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}  # parts of unfinished uploads, by key
        self.tags: dict[str, str] = {}  # of objects that were joined from parts
        self.faults: dict[str, deque[int | str | Callable]] = {}
        self.always: dict[str, int | Callable] = {}
        self.requests: list[tuple[str, str, str]] = []
        self.connections = 0
        self.refused_keys: set[str] = set()  # access keys that have expired
        self.on_put: Callable[[], int | None] = lambda: None  # called when an object has arrived; may give a fault
        return self

    def start(self) -> FaultyS3:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def fail(self, key: str, *faults: int | str | Callable) -> None:
        """The next GETs, HEADs or PUTs of `key` fail in these ways, one after the other."""
        self.faults[key] = deque(faults)

    def count(self, method: str, key: str) -> int:
        return sum(1 for asked, what, _ in self.requests if (asked, what) == (method, key))


@functools.cache
def shared_server() -> FaultyS3:
    """One server for all tests of a process: a client of its own for each test would cost more than the tests."""
    return FaultyS3().start()


def cut_after(count: int) -> Callable:
    """Close the connection after `count` bytes of the body."""

    def answer(handler: _Handler, body: bytes) -> None:
        handler.wfile.write(body[:count])
        handler.close_connection = True
        handler.connection.close()

    return answer


def drip(handler: _Handler, body: bytes) -> None:
    """A few bytes at a time, hardly any per second."""
    for i in range(len(body)):
        try:
            handler.wfile.write(body[i : i + 1])
        except OSError:
            return
        time.sleep(0.05)


def silent(handler: _Handler, body: bytes) -> None:
    """Say nothing after the headers until the other side gives up."""
    handler.connection.settimeout(10)
    try:
        handler.connection.recv(1)
    except OSError:
        return


def altered(handler: _Handler, body: bytes) -> None:
    """The right number of bytes, one of them wrong."""
    handler.wfile.write(body[:-1] + bytes([body[-1] ^ 1]))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: FaultyS3

    def log_message(self, *args) -> None:
        pass

    def setup(self) -> None:
        super().setup()
        with self.store.lock:
            self.store.connections += 1

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionError, ValueError, OSError):
            self.close_connection = True

    def do_GET(self) -> None:
        key, query = self._key()
        if "list-type" in query:
            return self._list(query)
        return self._send(key, with_body=True)

    def do_HEAD(self) -> None:
        self._send(self._key()[0], with_body=False)

    def do_POST(self) -> None:
        """Begin an upload in parts, or join them."""
        key, query = self._key()
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "uploads" in query:
            self.store.uploads[key] = {}
            return self._answer(200, b"<X><UploadId>one</UploadId></X>", {})
        fault = self._fault(f"join {key}")
        if fault and fault != "lost answer":
            return self._error(fault)
        if (parts := self.store.uploads.pop(key, None)) is None:
            return self._error("no upload")
        pieces = [parts[number] for number in sorted(parts)]
        self._store(key, b"".join(pieces))
        digests = b"".join(hashlib.md5(piece, usedforsecurity=False).digest() for piece in pieces)
        self.store.tags[key] = f'{_tag(digests)[:-1]}-{len(pieces)}"'
        return self._error(500) if fault else self._answer(200, b"<X><ETag>joined</ETag></X>", {})

    def do_PUT(self) -> None:
        key, query = self._key()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "uploadId" in query:
            if (fault := self._fault(f"part {key}")) is not None:
                return self._error(fault)
            self.store.uploads[key][int(query["partNumber"][0])] = body
            return self._answer(200, b"", {"ETag": _tag(body)})
        fault = self.store.on_put() or self._fault(key)
        if fault == "lost answer":  # the write happened, but nobody says so
            self._store(key, body)
            return self._error(500)
        if fault:
            return self._error(fault)
        with self.store.lock:
            there = self.store.objects.get(key)
        if self.headers.get("If-None-Match") == "*" and there is not None:
            return self._error(412)
        if (tag := self.headers.get("If-Match")) and (there is None or tag != _tag(there)):
            return self._error(412 if there is not None else 404)
        self._store(key, body)
        return self._answer(200, b"", {"ETag": _tag(body)})

    def do_DELETE(self) -> None:
        key, query = self._key()
        if "uploadId" not in query:
            self.store.objects.pop(key, None)
        elif self.store.uploads.pop(key, None) is None:
            return self._error("no upload")
        return self._answer(204, b"", {})

    def _key(self) -> tuple[str, dict[str, list[str]]]:
        parts = urlsplit(self.path)
        key = unquote(parts.path).lstrip("/").partition("/")[2]
        self.store.requests.append((self.command, key, self.headers.get("Range", "")))
        return key, parse_qs(parts.query, keep_blank_values=True)

    def _fault(self, key: str) -> int | str | Callable | None:
        authorization = self.headers.get("Authorization", "")
        if any(f"Credential={name}/" in authorization for name in self.store.refused_keys):
            return "expired"
        queue = self.store.faults.get(key)
        if queue and callable(queue[0]) and self.command != "GET":
            return None  # a body is needed to spoil it
        return queue.popleft() if queue else self.store.always.get(key)

    def _store(self, key: str, body: bytes) -> None:
        with self.store.lock:
            self.store.objects[key] = body
            self.store.tags.pop(key, None)

    def _send(self, key: str, *, with_body: bool) -> None:
        fault = self._fault(key)
        wrong_range = fault if fault in ("no range", "shifted range") else None
        if isinstance(fault, int | str) and fault not in ("no range", "shifted range", "part", "no length"):
            return self._error(fault)
        body = self.store.objects.get(key)
        if body is None:
            return self._error(404)
        if fault == "no length":
            self.send_response(200)
            self.end_headers()
            self.close_connection = True
            self.wfile.write(body if with_body else b"")
            return None
        etag = self.store.tags.get(key, _tag(body))
        if (tag := self.headers.get("If-Match")) and tag != etag:
            return self._error(412)
        headers, status, whole = {"ETag": etag, "Accept-Ranges": "bytes"}, 200, body
        if (wanted := self.headers.get("Range")) and wrong_range != "no range":
            low, _, high = wanted.removeprefix("bytes=").partition("-")
            if int(low) >= len(whole):
                return self._error(416)
            body = whole[int(low) : int(high) + 1]
            headers["Content-Range"] = f"bytes {low}-{int(low) + len(body) - 1}/{len(whole)}"
            status = 206
            if wrong_range:
                headers["Content-Range"] = f"bytes {int(low) + 1}-{int(low) + len(body)}/{len(whole)}"
        if fault == "part":
            headers["Content-Range"] = f"bytes 0-{len(body) // 2 - 1}/{len(body)}"
            return self._answer(206, body[: len(body) // 2], headers)
        if not with_body or fault is None or wrong_range:
            return self._answer(status, body, headers, with_body=with_body)
        self._headers(status, len(body), headers)
        fault(self, body)
        return None

    def _list(self, query: dict[str, list[str]]) -> None:
        prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
        fault = self._fault(f"list {prefix}")
        if fault == "empty":
            return self._answer(200, b"<ListBucketResult/>", {})
        if fault and fault != "no token":
            return self._error(fault)
        after = query.get("continuation-token", [""])[0]
        keys, folders = [], set()
        for key in sorted(self.store.objects):
            rest = key[len(prefix) :]
            if key.startswith(prefix) and delimiter and delimiter in rest:
                folders.add(prefix + rest.split(delimiter)[0] + delimiter)
            elif key.startswith(prefix) and key > after:
                keys.append(key)
        page, more = keys[:3], len(keys) > 3  # small pages, so that listing goes on more than once
        entries = "".join(
            f"<Contents><Key>{escape(k)}</Key><Size>{len(self.store.objects[k])}</Size><ETag>{_tag(self.store.objects[k])}"
            "</ETag><LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for k in page
        ) + "".join(f"<CommonPrefixes><Prefix>{escape(f)}</Prefix></CommonPrefixes>" for f in sorted(folders))
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        if fault == "no token":
            token = ""
        text = f"<ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>{token}{entries}</ListBucketResult>"
        return self._answer(200, text.encode(), {"Content-Type": "application/xml"})

    def _error(self, fault: int | str) -> None:
        if fault == "no answer":
            self.close_connection = True
            return
        codes = {403: "AccessDenied", 404: "NoSuchKey", 412: "PreconditionFailed", 416: "InvalidRange",
                 500: "InternalError", 503: "SlowDown"}  # fmt: skip
        named = {"expired": (400, "ExpiredToken"), "no upload": (404, "NoSuchUpload")}
        status, code = named.get(fault) or (fault, codes.get(fault, "Error"))
        body = f"<Error><Code>{code}</Code><Message>on purpose</Message></Error>".encode()
        self._answer(status, body, {"Content-Type": "application/xml"}, with_body=self.command != "HEAD")

    def _answer(self, status: int, body: bytes, headers: dict[str, str], *, with_body: bool = True) -> None:
        self._headers(status, len(body), headers)
        if with_body:
            self.wfile.write(body)

    def _headers(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def _tag(body: bytes) -> str:
    return f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'
