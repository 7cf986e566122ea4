"""A run that really trains leaves no secret of its environment in any file: checkpoints, provenance, logs, W&B."""

import logging

import pytest

from ray_jobs.session import PlainSession
from ray_jobs.toy import toy_run, write_toy_shards
from ray_jobs.worker import train

PLANTED = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "AWS_SECRET_ACCESS_KEY": "planted/secret/access/key/of/forty/chars",
    "AWS_SESSION_TOKEN": "planted-session-token",
    "RAY_AUTH_TOKEN": "planted-ray-token",
}


@pytest.fixture
def _planted(monkeypatch, tmp_path):
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")


@pytest.mark.usefixtures("_planted")
def test_no_file_of_a_run_holds_a_planted_secret(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    write_toy_shards(tmp_path / "root")
    run = toy_run(tmp_path / "root", "secretive", "stages.gan.steps=4", "tracking.mode=offline")
    assert train(run, PlainSession())["reason"] == "finished"

    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert any(path.suffix == ".safetensors" for path in files)
    everything = b"".join(path.read_bytes() for path in files) + caplog.text.encode()
    assert [name for name, value in PLANTED.items() if value.encode() in everything] == []
