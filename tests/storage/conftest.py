import pytest

from inpaint.storage import retries
from tests.faulty_s3 import shared_server


@pytest.fixture
def store(monkeypatch):
    monkeypatch.setattr(retries, "BACKOFF_SECONDS", 0.001)
    server = shared_server().forget()
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    return server


@pytest.fixture(params=["disk", "s3"])
def root(request, tmp_path):
    if request.param == "disk":
        return str(tmp_path / "root")
    request.getfixturevalue("store")
    return "s3://lab/root"
