"""The wish to stop, as the store or the pod holds it."""

import time

import pytest

from inpaint import storage
from ray_jobs import stopping


@pytest.fixture
def in_pod(tmp_path, monkeypatch):
    """Where a pod would see the mark."""
    path = tmp_path / "pod" / "stop"
    path.parent.mkdir()
    monkeypatch.setattr(stopping, "STOP_FILE", str(path))
    return path


def seen_within(mark, seconds):
    until = time.monotonic() + seconds
    while not mark.seen and time.monotonic() < until:
        time.sleep(0.01)
    return mark.seen


@pytest.mark.parametrize("where", ["the run's folder", "the pod"])
def test_a_mark_is_seen_wherever_it_lies(tmp_path, in_pod, where):
    run = str(tmp_path / "run")
    mark = stopping.StopMark(run, every_seconds=0.01)
    assert not seen_within(mark, 0.1)
    if where == "the pod":
        in_pod.write_text("")
    else:
        storage.write_bytes(f"{run}/stop", b"")
    assert seen_within(mark, 5)
    mark.close()


def test_an_earlier_mark_is_forgotten(tmp_path, in_pod):
    run = str(tmp_path / "run")
    storage.write_bytes(f"{run}/stop", b"")
    stopping.clear_stop_mark(run)
    assert not stopping.stop_is_asked(run)
