"""A small API server and kubeconfig, a runtime like the chart's, and runs to submit."""

import socket

import pytest

from inpaint import storage
from inpaint.cluster.client import connect
from inpaint.cluster.manifest import build
from inpaint.cluster.runtime import Runtime
from inpaint.cluster.task import train_task
from inpaint.config import load_run
from tests.cluster.api_server import ApiServer


@pytest.fixture
def api():
    server = ApiServer()
    yield server
    server.close()


@pytest.fixture
def kubeconfig(api, tmp_path, monkeypatch):
    path = api.write_kubeconfig(tmp_path / "kubeconfig")
    monkeypatch.setenv("KUBECONFIG", str(path))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    return path


@pytest.fixture
def cluster(kubeconfig):
    return connect()


@pytest.fixture
def runtime():
    return Runtime()


@pytest.fixture
def make_run():
    def make(name="paris", *settings, root="s3://lab/inpaint"):
        return load_run("tiny", name=name, root=root, assignments=settings)

    return make


@pytest.fixture
def make_manifests(make_run, runtime):
    def make(name="paris", *settings, **options):
        return build(
            train_task(make_run(name, *settings)), options.pop("runtime", runtime), namespace="training", **options
        )

    return make


@pytest.fixture
def closed_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def store(monkeypatch, tmp_path):
    """The run's store, as a folder: `s3://lab/inpaint` lies under tmp_path."""
    for name in ("exists", "stat", "list_folders", "list_objects", "read_bytes", "write_bytes"):
        real = getattr(storage, name)

        def inside(url, *args, _real=real, **kwargs):
            return _real(url.replace("s3://", f"{tmp_path}/"), *args, **kwargs)

        monkeypatch.setattr(storage, name, inside)
    return tmp_path / "lab" / "inpaint" / "runs" / "paris"
