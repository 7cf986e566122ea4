"""A small Kubernetes API server in this process: objects, selectors, dry runs, strict fields, watches, logs, faults.

It answers as a real one does for what `inpaint.cluster.client` asks; what it answers on a fault is set by the test.
"""

from __future__ import annotations

import contextlib
import copy
import json
import re
import socket
import threading
import time
import uuid
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import yaml

PATH = re.compile(
    r"/(?:api/v1|apis/(?P<group>[^/]+)/[^/]+)/namespaces/(?P<namespace>[^/]+)/(?P<kind>[a-z]+)(?:/(?P<name>[^/]+))?(?P<log>/log)?$"
)
KINDS = {"rayjobs": "RayJob", "rayclusters": "RayCluster", "configmaps": "ConfigMap", "pods": "Pod", "events": "Event"}
SPEC_FIELDS = {
    "entrypoint", "submissionMode", "backoffLimit", "activeDeadlineSeconds", "preRunningDeadlineSeconds", "suspend",
    "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "deletionStrategy", "rayClusterSpec", "submitterConfig",
    "submitterPodTemplate",
}  # fmt: skip


class ApiServer:
    """The server and what it holds. `faults` are (pattern of "METHOD path?query", answer) pairs, each used once."""

    def __init__(self):
        self.objects = {}  # (kind, name) → object
        self.logs = {}  # (pod, container) → list of lines
        self.requests = []  # "METHOD path?query", in order
        self.bodies = []  # everything ever written, as text
        self.faults = []
        self.lost = []  # patterns of requests whose answers are lost
        self.history = []  # (version, event)
        self.kinds = {"v1": ["Pod", "ConfigMap", "Secret", "ServiceAccount"], "ray.io/v1": ["RayJob", "RayCluster"]}
        self.version = 100
        self.keep_deleted = False  # objects stay with a deletionTimestamp, as with a finalizer
        self.changed = threading.Condition()
        self.creating = threading.Lock()  # looking for a name and taking it are one step
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"api": self}))
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.http.server_port}"

    def close(self):
        self.http.shutdown()
        self.http.server_close()

    def write_kubeconfig(self, path, namespace="training"):
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "here",
            "clusters": [{"name": "c", "cluster": {"server": self.url}}],
            "users": [{"name": "u", "user": {"token": "kubeconfig-token"}}],
            "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u", "namespace": namespace}}],
        }  # fmt: skip
        path.write_text(yaml.safe_dump(config))
        return path

    def fail(self, pattern, status, message="", *, reason="", causes=(), times=1, **details):
        """Answer the next requests that match with a Status."""
        status_object = {
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status, "reason": reason,
            "message": message,
            "details": {**details, "causes": list(causes)},
        }  # fmt: skip
        self.faults += [(pattern, (status, status_object))] * times

    def drop(self, pattern, times=1):
        """Cut the connection of the next requests that match, without an answer."""
        self.faults += [(pattern, None)] * times

    def lose(self, pattern, times=1):
        """Do what the next requests that match ask, and cut the connection instead of an answer."""
        self.lost += [pattern] * times

    def put(self, kind, item):
        """Create or replace an object, as an operator would."""
        with self.changed:
            self.version += 1
            old = self.objects.get((kind, item["metadata"]["name"]))
            item = copy.deepcopy(item)
            metadata = item["metadata"]
            metadata.setdefault("namespace", "training")
            metadata.setdefault("uid", old["metadata"]["uid"] if old else str(uuid.uuid4()))
            metadata.setdefault("creationTimestamp", datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
            metadata["resourceVersion"] = str(self.version)
            self.objects[kind, metadata["name"]] = item
            self._note("MODIFIED" if old else "ADDED", kind, item)
            return item

    def set_status(self, name, **status):
        """Change a RayJob's status."""
        job = copy.deepcopy(self.objects["rayjobs", name])
        job["status"] = {**job.get("status", {}), **status}
        return self.put("rayjobs", job)

    def remove(self, kind, name):
        with self.changed:
            self.version += 1
            item = self.objects.pop((kind, name))
            item["metadata"]["resourceVersion"] = str(self.version)
            self._note("DELETED", kind, item)
            if kind == "rayjobs":  # garbage collection of what it owns
                uid = item["metadata"]["uid"]
                owned = [
                    key for key, each in self.objects.items()
                    if any(owner["uid"] == uid for owner in each["metadata"].get("ownerReferences", []))
                ]  # fmt: skip
                for key in owned:
                    del self.objects[key]

    def _note(self, event, kind, item):
        self.history.append((self.version, kind, {"type": event, "object": copy.deepcopy(item)}))
        self.changed.notify_all()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: ApiServer

    def log_message(self, *args):
        pass

    def handle_one_request(self):
        with contextlib.suppress(ConnectionError):
            super().handle_one_request()

    def do_GET(self):
        if self._faulty() or self._discovery():
            return
        target = self._target()
        if target is None:
            return
        kind, name, query = target["kind"], target["name"], self.query
        if target["log"]:
            self._log(name, query)
        elif name:
            item = self.api.objects.get((kind, name))
            self._answer(200, item) if item else self._status(404, "NotFound", f'{kind} "{name}" not found', name=name)
        elif query.get("watch"):
            self._watch(kind, query)
        else:
            items = [item for (other, _), item in self.api.objects.items() if other == kind and _selected(item, query)]
            version = str(self.api.version)
            listed = {"kind": f"{KINDS[kind]}List", "apiVersion": "v1", "metadata": {"resourceVersion": version}}
            self._answer(200, listed | {"items": items})

    def do_POST(self):
        body = self._body()
        if self._faulty():
            return
        kind, name = self._target()["kind"], body["metadata"]["name"]
        self.api.bodies.append(json.dumps(body))
        with self.api.creating:
            self._create(kind, name, body)

    def _create(self, kind, name, body):
        if (kind, name) in self.api.objects:
            self._status(409, "AlreadyExists", f'{kind} "{name}" already exists', name=name)
            return
        if kind == "rayjobs" and (trouble := self._judge(body)):
            self._status(*trouble)
            return
        if self.query.get("dryRun"):
            made = copy.deepcopy(body)
            made["metadata"]["uid"] = str(uuid.uuid4())
            self._answer(201, made)
            return
        self._answer(201, self.api.put(kind, body))

    def do_PATCH(self):
        body = self._body()
        if self._faulty():
            return
        target = self._target()
        item = copy.deepcopy(self.api.objects[target["kind"], target["name"]])
        self.api.bodies.append(json.dumps(body))
        _merge(item, body)
        self._answer(200, self.api.put(target["kind"], item))

    def do_DELETE(self):
        body = self._body()
        if self._faulty():
            return
        target = self._target()
        key = (target["kind"], target["name"])
        item = self.api.objects.get(key)
        if item is None:
            self._status(404, "NotFound", "not found", name=target["name"])
            return
        wanted = (body.get("preconditions") or {}).get("uid")
        if wanted and wanted != item["metadata"]["uid"]:
            self._status(409, "Conflict", "the UID in the precondition does not match", name=target["name"])
            return
        if self.api.keep_deleted:
            item["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
            self._answer(200, self.api.put(key[0], item))
            return
        self.api.remove(*key)
        self._answer(200, {"kind": "Status", "apiVersion": "v1", "status": "Success"})

    def _judge(self, body):
        """What a real server finds with strict field validation and the CRD's schema."""
        unknown = sorted(set(body["spec"]) - SPEC_FIELDS)
        if unknown and self.query.get("fieldValidation") == ["Strict"]:
            return 400, "BadRequest", f'strict decoding error: unknown field "spec.{unknown[0]}"'
        if not isinstance(body["spec"].get("entrypoint"), str):
            return 422, "Invalid", "RayJob is invalid: spec.entrypoint: Invalid value"
        return None

    def _watch(self, kind, query):
        since, until = int(query["resourceVersion"][0]), time.monotonic() + float(query["timeoutSeconds"][0])
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while True:
            with self.api.changed:
                new = [(v, event) for v, other, event in self.api.history if v > since and other == kind]
                if not new and not self.api.changed.wait(timeout=max(0.0, min(0.05, until - time.monotonic()))):
                    new = []
            for version, event in new:
                since = version
                self._chunk(json.dumps(event).encode() + b"\n")
                if event["type"] == "DROP":
                    return
            if self.api.faults and self.api.faults[0][0] == "WATCH":
                _, answer = self.api.faults.pop(0)
                if answer is None:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self._chunk(json.dumps({"type": "ERROR", "object": answer[1]}).encode() + b"\n")
                break
            if time.monotonic() > until:
                break
        self._chunk(b"")

    def _log(self, name, query):
        lines = self.api.logs.get((name, query.get("container", [""])[0]))
        if lines is None:
            self._status(400, "BadRequest", "container is waiting to start", name=name)
            return
        if query.get("tailLines"):
            lines = lines[-int(query["tailLines"][0]) :]
        stamped = query.get("timestamps") == ["true"]
        text = "".join(f"{at} {line}\n" if stamped else f"{line}\n" for at, line in lines)
        data = text.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _discovery(self):
        """Which kinds the server knows, as a client such as Helm asks before anything else."""
        path, kinds = urlsplit(self.path).path, self.api.kinds
        if path == "/version":
            self._answer(200, {"major": "1", "minor": "36", "gitVersion": "v1.36.0"})
        elif path == "/api":
            self._answer(200, {"kind": "APIVersions", "versions": ["v1"]})
        elif path == "/apis":
            groups = [
                {"name": name.split("/")[0], "versions": [{"groupVersion": name, "version": name.split("/")[1]}],
                 "preferredVersion": {"groupVersion": name, "version": name.split("/")[1]}}
                for name in kinds if "/" in name
            ]  # fmt: skip
            self._answer(200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
        elif path.removeprefix("/apis/").removeprefix("/api/") in kinds:
            version = path.removeprefix("/apis/").removeprefix("/api/")
            resources = [
                {"name": kind.lower() + "s", "kind": kind, "namespaced": True, "verbs": ["get"], "singularName": ""}
                for kind in kinds[version]
            ]
            self._answer(200, {"kind": "APIResourceList", "groupVersion": version, "resources": resources})
        else:
            return False
        return True

    def _faulty(self):
        line = f"{self.command} {self.path}"
        self.api.requests.append(line)
        for position, (pattern, answer) in enumerate(self.api.faults):
            if pattern != "WATCH" and re.search(pattern, line):
                del self.api.faults[position]
                if answer is None:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                else:
                    self._answer(*answer)
                return True
        return False

    def _target(self):
        parts = urlsplit(self.path)
        match = PATH.fullmatch(parts.path)
        if match is None:
            data = b"404 page not found"
            self.send_response(404)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
            return None
        return match.groupdict()

    @property
    def query(self):
        return parse_qs(urlsplit(self.path).query)

    def _body(self):
        length = int(self.headers.get("Content-Length") or 0)
        return json.loads(self.rfile.read(length) or b"{}")

    def _status(self, code, reason, message, name=""):
        details = {"name": name} if name else {}
        status = {"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message}
        self._answer(code, status | {"details": details})

    def _answer(self, code, body):
        lost = next((pattern for pattern in self.api.lost if re.search(pattern, f"{self.command} {self.path}")), None)
        if lost:
            self.api.lost.remove(lost)
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _chunk(self, data):
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()


def _selected(item, query):
    labels = item["metadata"].get("labels") or {}
    for selector in query.get("labelSelector", []):
        for part in selector.split(","):
            key, equals, value = part.partition("=")
            if key not in labels or (equals and labels[key] != value):
                return False
    return True


def _merge(item, patch):
    for key, value in patch.items():
        if isinstance(value, dict):
            _merge(item.setdefault(key, {}), value)
        else:
            item[key] = value
