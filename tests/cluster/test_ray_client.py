"""A standing Ray cluster by its REST API: against a small server here, and slowly against a real Ray with a token."""

import contextlib
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml
from typer.testing import CliRunner

from inpaint import storage
from inpaint.cli import app
from inpaint.cluster.ray_client import RayCluster, find_token
from inpaint.cluster.task import Task, sweep_task, train_task
from inpaint.config.sweep import SweepConfig
from inpaint.errors import ClusterError


class RayServer:
    """As much of a Ray dashboard as the client asks."""

    def __init__(self, token):
        self.token, self.jobs, self.packages, self.logs, self.faults = token, {}, {}, {}, []
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"ray": self}))
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def close(self):
        self.http.shutdown()
        self.http.server_close()


class _Handler(BaseHTTPRequestHandler):
    ray: RayServer

    def log_message(self, *args):
        pass

    def handle_one_request(self):
        with contextlib.suppress(ConnectionError):
            super().handle_one_request()

    def answer(self):
        ray, path = self.ray, self.path.rstrip("/")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if ray.faults:
            fault = ray.faults.pop(0)
            if fault is None:  # the connection is cut
                self.connection.shutdown(socket.SHUT_RDWR)
                raise ConnectionAbortedError
            return fault
        if ray.token and self.headers.get("Authorization") != f"Bearer {ray.token}":
            return 401, b"Unauthorized: Missing authentication token"
        name = (re.match(r"/api/jobs/([^/]+)", path) or [None, ""])[1]
        if path.startswith("/api/packages/"):
            ray.packages[path.rsplit("/", 1)[-1]] = body
            return 200, b""
        if self.command == "POST" and path == "/api/jobs":
            asked = json.loads(body)
            if asked["submission_id"] in ray.jobs:
                return 500, b"Traceback\nValueError: Job with submission_id x already exists"
            ray.jobs[asked["submission_id"]] = asked | {"status": "PENDING", "start_time": len(ray.jobs)}
            return 200, json.dumps({"submission_id": asked["submission_id"]}).encode()
        if path == "/api/jobs":
            return 200, json.dumps(list(ray.jobs.values())).encode()
        if name not in ray.jobs:
            return 404, b"no such job"
        if path.endswith("/logs"):
            return 200, json.dumps({"logs": ray.logs.get(name, "")}).encode()
        if path.endswith("/stop"):
            ray.jobs[name]["status"] = "STOPPED"
            return 200, json.dumps({"stopped": True}).encode()
        return 200, json.dumps(ray.jobs[name]).encode()

    def do_GET(self):
        status, data = self.answer()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_POST = do_PUT = do_GET


@pytest.fixture
def ray():
    server = RayServer("s3same")
    yield server
    server.close()


@pytest.fixture
def client(ray):
    return RayCluster(ray.url, token="s3same")


def test_a_run_travels_as_a_package_of_one_file(ray, client, make_run):
    run = make_run()
    assert client.submit(train_task(run)).result == "created"

    job = ray.jobs["paris"]
    assert job["entrypoint"] == "python -m ray_jobs.train run.yaml"
    package = job["runtime_env"]["working_dir"].removeprefix("gcs://")
    with zipfile.ZipFile(io.BytesIO(ray.packages[package])) as archive:
        assert archive.namelist() == ["run.yaml"]
        assert yaml.safe_load(archive.read("run.yaml")) == run.to_dict()
    assert set(job["runtime_env"]) == {"working_dir"}  # no env_vars: Ray shows those to everybody


def test_the_same_run_twice_is_one_job_and_other_settings_are_refused(ray, client, make_run):
    client.submit(train_task(make_run()))
    assert client.submit(train_task(make_run())).result == "running"
    assert list(ray.jobs) == ["paris"]
    with pytest.raises(ClusterError, match="with other settings; choose another --name"):
        client.submit(train_task(make_run("paris", "seed=1")))


@pytest.mark.parametrize(
    ("status", "log", "result", "jobs"),
    [
        ("FAILED", "", "resumed", ["paris", "paris.2"]),
        ("STOPPED", "", "resumed", ["paris", "paris.2"]),
        ("SUCCEEDED", "stopped at step 40\n", "resumed", ["paris", "paris.2"]),
        ("SUCCEEDED", "stopped with 3 trials recorded; start it again to go on\n", "resumed", ["paris", "paris.2"]),
        ("SUCCEEDED", "finished at step 400\n", "finished", ["paris"]),
    ],
)
def test_an_ended_job_decides_what_happens(ray, client, make_run, status, log, result, jobs):
    client.submit(train_task(make_run()))
    ray.jobs["paris"]["status"], ray.logs["paris"] = status, log
    assert client.submit(train_task(make_run())).result == result
    assert list(ray.jobs) == jobs


@pytest.mark.parametrize(
    ("status", "trials", "result", "note"),
    [("SUCCEEDED", 6, "resumed", ""), ("SUCCEEDED", 5, "finished", ""),
     ("RUNNING", 6, "running", "it keeps to its 5 trials; submit it again when it has ended to make 6")],
)  # fmt: skip
def test_a_sweep_grows_under_its_name(ray, client, status, trials, result, note):
    def task(trials):
        vary = {"training.ema": {"choice": [0.9, 0.99]}}
        sweep = SweepConfig(name="search", preset="tiny", metrics={"psnr": "max"}, vary=vary, trials=trials)
        return sweep_task(sweep, root="s3://lab/x", concurrent=1)

    client.submit(task(5))
    ray.jobs["search-sweep"]["status"] = status
    outcome = client.submit(task(trials))
    assert (outcome.result, outcome.note) == (result, note)


def test_a_job_that_somebody_else_started_in_between_is_found(ray, client, make_run):
    client.submit(train_task(make_run()))
    ray.faults = [(200, b"[]"), (200, b""), (500, b"Job with submission_id paris already exists")]
    assert client.submit(train_task(make_run())).result == "running"


def test_following_gives_each_line_once(ray, client, make_run):
    client.submit(train_task(make_run()))
    ray.jobs["paris"]["status"], ray.logs["paris"] = "RUNNING", "one\ntw"
    lines = client.follow("paris", every_seconds=0.01)
    assert next(lines) == "one"
    ray.logs["paris"] += "o\nthree"
    assert next(lines) == "two"
    ray.jobs["paris"]["status"] = "SUCCEEDED"
    assert list(lines) == ["three"]


@pytest.mark.parametrize(("token", "words"), [(None, "wants a token"), ("wrong", "does not accept the token")])
def test_a_missing_or_wrong_token_is_said_without_repeating_it(ray, token, words):
    with pytest.raises(ClusterError, match=words) as error:
        RayCluster(ray.url, token=token).jobs()
    assert "wrong" not in str(error.value)


def test_a_server_error_is_one_line_and_a_passing_one_is_tried_again(ray, client):
    ray.faults = [(503, b"later")]
    assert client.jobs() == []
    ray.faults = [(500, b"Traceback (most recent call last):\n  File x\nRuntimeError: no room\n")]
    with pytest.raises(ClusterError, match=r"answered 500: RuntimeError: no room$"):
        client.jobs()


def test_a_run_is_followed_and_stopped_although_the_network_goes_away_meanwhile(
    ray, client, make_run, monkeypatch, tmp_path
):
    monkeypatch.setattr("inpaint.cluster.ray_client.PAUSES_SECONDS", (0.0, 0.0, 0.0))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "s3same")
    client.submit(train_task(make_run(root=str(tmp_path))))
    ray.jobs["paris"]["status"], ray.logs["paris"] = "RUNNING", "one\ntwo\n"
    lines = client.follow("paris", every_seconds=0.01)
    ray.faults = [None] * 6  # one call alone gives up after four
    assert next(lines) == "one"

    write = storage.write_bytes

    def write_the_mark(url, data):
        write(url, data)
        ray.faults = [None] * 6

    monkeypatch.setattr(storage, "write_bytes", write_the_mark)
    result = CliRunner().invoke(app, ["stop", "paris", "--address", ray.url, "--wait", "0.1"])
    assert "paris: ended by Ray" in result.output, result.exception
    assert ray.jobs["paris"]["status"] == "STOPPED"
    assert ray.faults == []


@pytest.mark.parametrize(
    ("status", "said", "told"),
    [
        ("SUCCEEDED", "stopped at step 12", "stopped, after a checkpoint"),
        ("SUCCEEDED", "finished at step 40", "came to its own end before it had to stop"),
        ("FAILED", "", "failed instead of stopping: l1 is nan"),
        ("STOPPED", "", "was ended by Ray"),
    ],
)
def test_stopping_says_how_a_run_really_ended(ray, client, make_run, monkeypatch, tmp_path, status, said, told):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "s3same")
    client.submit(train_task(make_run(root=str(tmp_path))))
    ray.jobs["paris"]["status"] = "RUNNING"
    write = storage.write_bytes

    def write_the_mark(url, data):
        write(url, data)
        ray.jobs["paris"] |= {"status": status, "message": "log\nl1 is nan\n"}
        ray.logs["paris"] = f"step 3/40\n{said}\n"

    monkeypatch.setattr(storage, "write_bytes", write_the_mark)
    result = CliRunner().invoke(app, ["stop", "paris", "--address", ray.url])
    assert result.stdout == f"paris: {told}\n", result.exception


def test_nobody_at_home(closed_port):
    with pytest.raises(ClusterError, match="no Ray cluster answers"):
        RayCluster(f"http://127.0.0.1:{closed_port}", token=None).jobs()
    with pytest.raises(ClusterError, match="write http://host:8265"):
        RayCluster("ray://host:10001", token=None)


def test_an_unknown_run_names_the_known(client, make_run):
    client.submit(train_task(make_run()))
    with pytest.raises(ClusterError, match=r"no run rome at .*; there: paris"):
        client.newest("rome")


def test_the_token_is_found_where_ray_looks(tmp_path):
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("from-home\n")
    (tmp_path / "named").write_text("from-path\n")
    home = {"HOME": str(tmp_path)}
    assert find_token(home) == "from-home"
    assert find_token(home | {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "named")}) == "from-path"
    assert find_token(home | {"RAY_AUTH_TOKEN": "from-env"}) == "from-env"
    assert find_token({"HOME": str(tmp_path / "nowhere")}) is None
    with pytest.raises(ClusterError, match="is not a file"):
        find_token(home | {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "missing")})


@pytest.mark.slow
def test_a_real_ray_with_a_token_takes_runs_gives_logs_and_stops(tmp_path, make_run):
    """`ray start` with a dashboard and a token; the entry point is a stand-in that waits for its stop."""
    module = tmp_path / "code" / "ray_jobs"
    module.mkdir(parents=True)
    (module / "__init__.py").touch()
    (module / "train.py").write_text(
        "import sys, time\nprint(open(sys.argv[1]).read()[:12], flush=True)\ntime.sleep(600)\n"
    )
    ports = [_free_port() for _ in range(5)]
    env = os.environ | {
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "x" * 32, "PYTHONPATH": str(module.parent), "HOME": str(tmp_path),
    }  # fmt: skip
    ray = str(__import__("pathlib").Path(sys.executable).parent / "ray")
    head = subprocess.Popen(
        [ray, "start", "--head", "--block", "--num-cpus=1", f"--temp-dir=/tmp/r{ports[0]}", f"--port={ports[0]}",
         f"--dashboard-port={ports[1]}", f"--dashboard-agent-listen-port={ports[2]}",
         f"--ray-client-server-port={ports[3]}",
         f"--metrics-export-port={ports[4]}", "--object-store-memory=100000000", "--disable-usage-stats"],
        env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        client = RayCluster(f"http://127.0.0.1:{ports[1]}", token="x" * 32)
        _eventually(lambda: client.jobs() == [], 120)
        with pytest.raises(ClusterError, match="wants a token"):
            RayCluster(client.address, token=None).jobs()

        assert client.submit(train_task(make_run())).result == "created"
        assert client.submit(train_task(make_run())).result == "running"
        _eventually(lambda: "name: paris" in client.log("paris"), 120)
        client.stop("paris")
        _eventually(lambda: client.status("paris") == "STOPPED", 60)
        assert client.submit(train_task(make_run())).result == "resumed"
        assert client.newest("paris")["submission_id"] == "paris.2"
    finally:
        head.terminate()
        head.wait(60)


def _eventually(holds, seconds):
    until = time.monotonic() + seconds
    while True:
        try:
            if holds():
                return
        except ClusterError:
            pass
        assert time.monotonic() < until
        time.sleep(0.5)


def _free_port():
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_a_task_knows_its_command():
    task = Task(kind="sweep", name="s", root="s3://x", url="s3://x/sweeps/s", file={}, workers=1, gpus=0, cpus=1)
    assert task.command(folder="") == "python -m ray_jobs.tune run.yaml"
