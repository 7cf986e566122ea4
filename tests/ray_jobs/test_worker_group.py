"""The torch group between workers waits for a collective operation as long as the platform says."""

from types import SimpleNamespace

import pytest
import torch

from inpaint.errors import ConfigError
from ray_jobs import worker_group
from ray_jobs.toy import toy_run
from ray_jobs.worker_group import COLLECTIVE_TIMEOUT, collective_seconds


@pytest.mark.parametrize(("said", "seconds"), [(None, 1800), ("", 1800), ("90", 90), ("2.5", 2.5), ("1e3", 1000)])
def test_the_timeout_is_that_of_the_environment(said, seconds):
    assert collective_seconds({} if said is None else {COLLECTIVE_TIMEOUT: said}) == seconds


@pytest.mark.parametrize("said", ["0", "-1", "soon", "nan", "inf", "1e300", "30 min"])
def test_what_is_no_time_is_refused(said):
    with pytest.raises(ConfigError, match=f"RAY_TRAIN_COLLECTIVE_TIMEOUT_S is '{said}'; expected seconds above 0"):
        collective_seconds({COLLECTIVE_TIMEOUT: said})


def test_a_fit_gives_its_group_the_timeout_of_the_environment(root, monkeypatch):
    made = {}

    class Trainer:
        def __init__(self, work, **given):
            made.update(given)

        def fit(self):
            return SimpleNamespace(return_value={})

    monkeypatch.setattr(worker_group, "OwnRayTrainer", Trainer)
    monkeypatch.setenv(COLLECTIVE_TIMEOUT, "77")
    worker_group.fit(toy_run(root, "waits"), {}, str(root), own_ray=True)
    assert made["backend_config"].timeout_seconds == 77
    monkeypatch.setenv(COLLECTIVE_TIMEOUT, "x")
    with pytest.raises(ConfigError):
        worker_group.fit(toy_run(root, "waits"), {}, str(root), own_ray=True)


@pytest.fixture
def _alone(monkeypatch):
    """A worker of one, whose environment and group are as before afterwards."""
    places = {name: lambda: 0 for name in ("get_local_rank", "get_node_rank")} | {"get_local_world_size": lambda: 1}
    monkeypatch.setattr(worker_group.ray.train, "get_context", lambda: SimpleNamespace(**places))
    monkeypatch.setattr(worker_group.os, "environ", dict(worker_group.os.environ))
    yield
    worker_group._leave()


@pytest.mark.usefixtures("_alone")
def test_a_worker_joins_a_group_that_gives_up_then():
    _, port = worker_group._free_address()
    worker_group._join(0, 1, "127.0.0.1", port, False, 42.5)
    gloo = torch.distributed.group.WORLD._get_backend(torch.device("cpu"))
    assert gloo.options._timeout.total_seconds() == 42.5
