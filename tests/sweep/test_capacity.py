"""How many trials a cluster holds: worked by hand from what its nodes have."""

import pytest

from inpaint.config.run import ResourcesConfig
from inpaint.config.sweep import load_sweep
from inpaint.errors import ClusterError, ConfigError
from inpaint.sweep.capacity import check_capacity, trials_on
from inpaint.sweep.trials import planned

TINY = ["settings.data.dataset=photos", "trials=10"]


@pytest.mark.parametrize(
    ("resources", "nodes", "fit"),
    [
        ({"gpus_per_worker": 0.25}, [{"CPU": 64, "GPU": 2}], 8),
        ({"gpus_per_worker": 0.4}, [{"CPU": 64, "GPU": 2}], 4),  # two on each; a trial cannot lie on both
        ({"gpus_per_worker": 0.25, "cpus_per_worker": 4}, [{"CPU": 8, "GPU": 2}], 2),  # the cores are fewer
        ({"gpus_per_worker": 1, "num_workers": 4}, [{"CPU": 64, "GPU": 10}], 2),
        ({"gpus_per_worker": 2}, [{"CPU": 64, "GPU": 1}] * 4, 0),  # of the four GPUs no two are on one node
        ({"gpus_per_worker": 1, "num_workers": 2}, [{"CPU": 64, "GPU": 1}] * 4, 2),
        ({"num_workers": 2}, [{"CPU": 4}], 1),  # 2.05 CPUs each: drivers need cores too
        ({}, [{}, {"CPU": 3}], 3),  # a head without cores
    ],
)
def test_a_worker_lies_on_one_node_and_a_share_on_one_gpu(resources, nodes, fit):
    assert trials_on(nodes, ResourcesConfig(**resources)) == fit


def test_without_a_wish_as_many_run_at_a_time_as_fit():
    sweep = load_sweep("isnet-loss-weights", budget="tiny", assignments=TINY)
    assert check_capacity(sweep, planned(sweep), root="r", nodes=[{"CPU": 3}]) == 3


def test_more_at_a_time_than_fit_are_refused():
    sweep = load_sweep("isnet-loss-weights", budget="tiny", assignments=[*TINY, "concurrent=4"])
    with pytest.raises(ClusterError, match="concurrent 4, but the cluster has 3 CPUs and 0 GPUs on 1 node, enough for"):
        check_capacity(sweep, planned(sweep), root="r", nodes=[{"CPU": 3}])


def test_a_trial_that_fits_nowhere_is_refused():
    sweep = load_sweep("isnet-loss-weights", budget="tiny", assignments=[*TINY, "settings.resources.gpus_per_worker=2"])
    with pytest.raises(ClusterError, match="does not hold one trial"):
        check_capacity(sweep, planned(sweep), root="r", nodes=[{"CPU": 8, "GPU": 1}])


def test_one_and_a_half_gpus_are_refused_on_the_laptop():
    with pytest.raises(ConfigError, match="1.5 GPUs cannot be given; use a share of one"):
        load_sweep("isnet-loss-weights", assignments=["settings.resources.gpus_per_worker=1.5"])
