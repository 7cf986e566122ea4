"""What a worker says of its end: what is sure to come again is said once, and what may mend itself is not."""

from types import SimpleNamespace

import pytest

from inpaint.errors import TrainingError
from ray_jobs import ray_worker
from ray_jobs.attempt import _as_error
from ray_jobs.channel import Channel
from ray_jobs.toy import toy_run


@pytest.fixture
def end(root, monkeypatch):
    """Ends the worker of a rank with an error, and returns what the channel then says of a failure."""
    words, run = {}, toy_run(root, "ends")
    (root / "runs" / "ends").mkdir(parents=True)
    monkeypatch.setattr(Channel, "_put", lambda channel, name, value: words.__setitem__(name, value))
    monkeypatch.setattr(Channel, "_get", lambda channel, name: words.get(name))
    config = {"run": run.to_dict(), "token": "t", "holder": "h", "provenance": {"attempt": 0}}

    def worker(error, rank=0, step=0):
        Channel("t").report({"step": step})
        monkeypatch.setattr(ray_worker, "RaySession", lambda channel, name: SimpleNamespace(rank=rank))

        def train(*arguments, **named):
            raise error

        monkeypatch.setattr(ray_worker, "train", train)
        with pytest.raises(type(error)):
            ray_worker.work(config)
        return words.get("failure")

    return worker


def test_a_bug_ends_the_run_when_it_comes_a_second_time(end):
    assert end(ValueError("ratio is empty")) is None
    failure = end(ValueError("ratio is empty"))
    with pytest.raises(TrainingError, match="worker 0 ended twice with ValueError: ratio is empty; .* end so too"):
        raise _as_error(failure)


def test_two_workers_that_end_alike_at_once_are_one_end(end):
    assert end(KeyError("x"), rank=0) is None
    assert end(KeyError("x"), rank=1) is None


def test_a_bug_that_comes_again_further_on_is_tried_again(end):
    assert end(ValueError("rare"), step=100) is None
    assert end(ValueError("rare"), step=5000) is None
    assert end(ValueError("rare"), step=5000)["kind"] == "TrainingError"


def test_what_a_lost_peer_or_another_bug_raises_is_tried_again(end):
    for error in (RuntimeError("gloo: connection closed"), RuntimeError("gloo: connection closed"), OSError("gone")):
        assert end(error) is None
    assert end(ValueError("one")) is None
    assert end(ValueError("another")) is None
