"""Runs on a standing Ray cluster, through the Ray Jobs REST API with the standard library; no Ray on this machine.

The run file travels as a working directory of one file, named by its content, as Ray's own client does it.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import os
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from inpaint.cluster.refusals import Unavailable, insist
from inpaint.cluster.submission import Outcome, growth
from inpaint.cluster.task import FILE_NAME, Task
from inpaint.errors import ClusterError

Object = dict[str, Any]
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
STOPPED = ("stopped at step", "stopped with")  # what a run and a sweep print that `inpaint stop` ended
LAST_LINES = 10  # of a log, in which they are looked for; a submitter adds some of its own
PAUSES_SECONDS = (0.3, 0.6, 1.2)  # before a request is made again that got no answer


class RayCluster:
    """A standing Ray cluster.

    Args:
        address: of its dashboard, `http://host:8265`.
        token: of its authentication; none for a cluster without.
        timeout_seconds: for one request.
    """

    def __init__(self, address: str, *, token: str | None, timeout_seconds: float = 30.0) -> None:
        if not address.startswith(("http://", "https://")):
            raise ClusterError(f"--address {address} is not the address of a Ray dashboard; write http://host:8265")
        self.address = address.rstrip("/")
        self._token, self._timeout = token, timeout_seconds

    def submit(self, task: Task) -> Outcome:
        """Start a task; the same one twice goes on, resumes or is refused, and never runs twice.

        Raises:
            ClusterError: the name is taken by another task, or the cluster refuses.
        """
        digest, earlier = task.digest, self.jobs_of(task.job_name)
        for job in earlier:
            if (job.get("metadata") or {}).get("digest") != digest:
                raise ClusterError(f"{task.job_name} was submitted there with other settings; choose another --name")
        alive = [job for job in earlier if job["status"] not in ENDED]
        trials = int(earlier[-1]["metadata"].get("trials", task.trials)) if earlier else 0
        more = growth(trials, task.trials)
        if alive:
            return Outcome("running", alive[-1]["submission_id"], more)
        if earlier and earlier[-1]["status"] == "SUCCEEDED" and not more and not self._was_stopped(earlier[-1]):
            return Outcome("finished", earlier[-1]["submission_id"], "")
        # Ray keeps ended jobs and their names, so a further attempt has a number; two submitters choose the same one
        name = task.job_name if not earlier else f"{task.job_name}.{len(earlier) + 1}"
        body = {
            "entrypoint": task.command(folder=""),
            "submission_id": name,
            "runtime_env": {"working_dir": self._upload(task)},
            "metadata": {"run": task.job_name, "digest": digest, "url": task.url, "kind": task.kind}
            | ({"trials": str(task.trials)} if task.trials else {}),
        }
        try:
            self._json("POST", "/api/jobs/", body)
        except ClusterError as error:
            if "already exists" not in str(error):
                raise
            return Outcome("running", name, "")
        return Outcome("resumed" if earlier else "created", name, "")

    def jobs(self) -> list[Object]:
        """All jobs that inpaint submitted there, oldest first."""
        answer = self._json("GET", "/api/jobs/")
        jobs = [job for job in answer if (job.get("metadata") or {}).get("run")]
        return sorted(jobs, key=lambda job: job.get("start_time") or 0)

    def jobs_of(self, name: str) -> list[Object]:
        """All attempts of one task, oldest first."""
        return [job for job in self.jobs() if job["metadata"]["run"] == name]

    def newest(self, name: str) -> Object:
        """The newest attempt of a task.

        Raises:
            ClusterError: it was never submitted there.
        """
        found = self.jobs_of(name)
        if not found:
            known = ", ".join(sorted({job["metadata"]["run"] for job in self.jobs()})) or "none at all"
            raise ClusterError(f"no run {name} at {self.address}; there: {known}")
        return found[-1]

    def log(self, submission_id: str) -> str:
        """A job's log so far."""
        return str(self._json("GET", f"/api/jobs/{submission_id}/logs").get("logs") or "")

    def follow(self, submission_id: str, *, every_seconds: float = 2.0) -> Iterator[str]:
        """Lines of a job's log as they come, until it has ended."""
        given = 0
        while True:
            ended = insist(lambda: self.status(submission_id)) in ENDED
            text = insist(lambda: self.log(submission_id))
            whole = len(text) if ended else text.rfind("\n") + 1
            yield from text[given:whole].splitlines()
            given = max(given, whole)
            if ended:
                return
            time.sleep(every_seconds)

    def status(self, submission_id: str) -> str:
        """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
        return str(self._json("GET", f"/api/jobs/{submission_id}")["status"])

    def stop(self, submission_id: str) -> None:
        """Tell Ray to end a job: it gets SIGINT or SIGTERM, and is killed after Ray's own waiting time."""
        self._json("POST", f"/api/jobs/{submission_id}/stop", {})

    def _was_stopped(self, job: Object) -> bool:
        """Whether a job that Ray calls succeeded ended early, as `inpaint stop` asked; its last lines say so."""
        return tells_of_stop(self.log(job["submission_id"]))

    def _upload(self, task: Task) -> str:
        """The run file as a package on the cluster; its URI."""
        text = yaml.safe_dump(json.loads(json.dumps(dict(task.file), default=str)), sort_keys=False)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr(zipfile.ZipInfo(FILE_NAME, (1980, 1, 1, 0, 0, 0)), text)
        name = f"_ray_pkg_{hashlib.sha256(buffer.getvalue()).hexdigest()[:16]}.zip"
        self._request("PUT", f"/api/packages/gcs/{name}", buffer.getvalue(), "application/octet-stream")
        return f"gcs://{name}"

    def _json(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        answer = self._request(method, path, data, "application/json")
        return json.loads(answer) if answer else {}

    def _request(self, method: str, path: str, data: bytes | None, content: str) -> bytes:
        headers = {"Content-Type": content} | ({"Authorization": f"Bearer {self._token}"} if self._token else {})
        request = urllib.request.Request(self.address + path, data=data, headers=headers, method=method)
        until, pauses = time.monotonic() + self._timeout, iter(PAUSES_SECONDS)
        while True:  # whatever comes here bears being made twice: a job that is there already is said to be so
            try:
                with urllib.request.urlopen(request, timeout=self._timeout) as answer:
                    return bytes(answer.read())
            except urllib.error.HTTPError as error:
                with error:
                    text = error.read().decode(errors="replace").strip()
                failure = _refusal(error.code, text, self.address, token=bool(self._token))
            except (OSError, http.client.HTTPException) as error:
                reason = getattr(error, "reason", error)
                failure = Unavailable(f"no Ray cluster answers at {self.address} ({reason}); is it forwarded?")
            pause = next(pauses, None)
            if not isinstance(failure, Unavailable) or pause is None or time.monotonic() > until:
                raise failure
            time.sleep(pause)


def tells_of_stop(log: str) -> bool:
    """Whether the last lines of a driver's log say that it stopped as it was asked to."""
    return any(said in line for said in STOPPED for line in log.splitlines()[-LAST_LINES:])


def find_token(environment: Mapping[str, str] | None = None) -> str | None:
    """A Ray cluster's token from where Ray looks: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token."""
    environment = os.environ if environment is None else environment
    if environment.get("RAY_AUTH_TOKEN"):
        return environment["RAY_AUTH_TOKEN"].strip()
    named = environment.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path(environment.get("HOME", "~")).expanduser() / ".ray" / "auth_token"
    if path.is_file():
        return path.read_text().strip() or None
    if named:
        raise ClusterError(f"RAY_AUTH_TOKEN_PATH: {named} is not a file")
    return None


def _refusal(code: int, text: str, address: str, *, token: bool) -> ClusterError:
    if code in (401, 403):
        what = "does not accept the token" if token else "wants a token"
        return ClusterError(f"{address} {what} ({code}); put the right one into RAY_AUTH_TOKEN or ~/.ray/auth_token")
    if code == 404:
        return ClusterError(f"{address} has no such job, or is no Ray dashboard (404)")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    kind = Unavailable if code in (502, 503, 504) else ClusterError  # 500 is how Ray refuses
    return kind(f"{address} answered {code}: {lines[-1][:300] if lines else 'nothing'}")
