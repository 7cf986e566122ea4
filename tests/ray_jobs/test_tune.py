"""Sweeps of toy trials through the real driver and Ray Tune: same conditions, divergence, kills, refusals."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml

from inpaint import checkpoints, storage
from inpaint.config.sweep import load_sweep
from inpaint.errors import ClusterError, ConfigError
from inpaint.sweep.trials import Record, begin, known_trials, planned, read_records, remaining, run_of, write_record
from ray_jobs.toy import toy_run
from ray_jobs.trial import kept_evaluator, kept_features
from ray_jobs.tune import check_capacity, propose, run_sweep

START_SECONDS = 240
L1, RATE = "method.weights.l1", "method.generator_optimizer.learning_rate"
DEFINITION = {
    "trials": 4,
    "metrics": {"psnr": "max", "l1": "min"},
    "vary": {L1: {"loguniform": [0.1, 10]}},
    "points": [
        {"label": "plain", "values": {L1: 1.0}},
        {"label": "far too fast", "values": {L1: 1.0}, "settings": {RATE: 1e30}},
        {"label": "plain again", "values": {L1: 1.0}},
    ],
}


@pytest.fixture
def definition(root):
    """Writes a definition over the toy run, with changes; gives its path."""

    def write(name="small", settings=(), **changes):
        run = toy_run(root, "toy", *settings).to_dict()
        (root / "toy.yaml").write_text(yaml.safe_dump(run))
        path = root / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"preset": str(root / "toy.yaml"), **DEFINITION, **changes}))
        return str(path)

    return write


@pytest.fixture
def start():
    """Starts the command; whatever still runs at the end of the test is ended."""
    started = []

    def begin_driver(path, root):
        command = [sys.executable, "-m", "inpaint", "sweep", "run", path, "--root", str(root), "--json"]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield begin_driver
    for driver in started:
        driver.kill()
        driver.communicate()


def begun(sweep, root):
    """Trials that have written a checkpoint."""
    return [t.id for t in planned(sweep) if checkpoints.latest(run_of(sweep, t, root=str(root)).url)]


def failed(trial):
    return Record(trial.id, trial.label, trial.values, trial.seed, "failed", 0, {}, 0.0, reason="the node burnt")


def test_a_sweep_makes_every_trial_alike_and_one_that_diverges_stops_no_other(definition, root):
    """Two trials with the same values are byte for byte the same: weights, data order, holes and scored pairs are."""
    sweep = load_sweep(definition(concurrent=1))
    told = []
    begin(sweep, root=str(root))
    write_record(sweep, failed(planned(sweep)[0]), root=str(root))
    records = run_sweep(sweep, root=str(root), on_record=lambda record, done, total: told.append((record.id, total)))

    assert [record.status for record in records.values()] == ["finished", "diverged", "finished", "finished"]
    assert sorted(told) == [(name, 4) for name in records]
    assert "is not finite" in records["001"].reason
    histories = [checkpoints.read_history(run_of(sweep, t, root=str(root)).url) for t in planned(sweep)]
    assert histories[0] == histories[2]
    assert histories[3] != histories[0]
    assert records["000"].metrics["psnr"] == histories[0][-1]["psnr"]
    assert {"generator/l1", "ssim", "l1"} <= set(records["003"].metrics)
    assert remaining(sweep, root=str(root)) == []
    leases = (root / "sweeps" / "small" / "runs").glob("*/lease.json")
    assert len({json.loads(path.read_text())["pid"] for path in leases}) == 1  # one process made them all


def test_trials_of_a_process_share_frozen_features_and_held_out_photographs(definition, root):
    path = definition(settings=["method.weights.perceptual=0.1", "feature_weights={vgg16: random, vgg19: random}"])
    sweep, cpu = load_sweep(path), torch.device("cpu")
    first, second = (run_of(sweep, planned(sweep)[number], root=str(root)) for number in (0, 3))
    other = run_of(load_sweep(path, assignments=["settings.evaluation.seed=1"]), planned(sweep)[0], root=str(root))

    assert kept_features(first)
    assert kept_features(second) is kept_features(first)
    evaluator = kept_evaluator(first, cpu)
    assert kept_evaluator(second, cpu) is evaluator
    assert kept_evaluator(other, cpu) is not evaluator


@pytest.mark.slow
def test_a_killed_sweep_goes_on_keeps_what_is_finished_and_makes_no_trial_twice(definition, root, start):
    path = definition(settings=["stages.gan.steps=120", "checkpoints.every=10", "evaluation.every=120"], concurrent=1)
    sweep, root = load_sweep(path), str(root)
    driver = start(path, root)
    until = time.monotonic() + START_SECONDS
    while not (read_records("small", root=root) and set(begun(sweep, root)) - set(read_records("small", root=root))):
        assert time.monotonic() < until
        assert driver.poll() is None, driver.communicate()[1]
        time.sleep(0.1)
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    kept = read_records("small", root=root)
    under_way = next(name for name in begun(sweep, root) if name not in kept)
    places = {name: os.stat(f"{root}/sweeps/small/trials/{name}.json") for name in kept}
    again = start(path, root)
    out, err = again.communicate(timeout=START_SECONDS)

    assert again.returncode == 0, err
    assert 0 < len(kept) < 4
    made = json.loads(out)["records"]
    assert [made[name]["status"] for name in sorted(made)] == ["finished", "diverged", "finished", "finished"]
    for name, before in places.items():
        assert os.stat(f"{root}/sweeps/small/trials/{name}.json").st_mtime_ns == before.st_mtime_ns
    run = run_of(sweep, planned(sweep)[int(under_way)], root=root)
    starts = json.loads(storage.read_bytes(f"{run.url}/provenance.json"))["starts"]
    assert [entry["from_step"] > 0 for entry in starts] == [False, True]
    histories = [checkpoints.read_history(run_of(sweep, t, root=root).url) for t in planned(sweep)]
    assert histories[0] == histories[2]


@pytest.mark.slow
def test_a_sweep_that_is_asked_to_stop_keeps_checkpoints_and_goes_on_later(definition, root, start):
    path = definition(settings=["stages.gan.steps=120", "checkpoints.every=1000", "evaluation.every=120"], concurrent=1)
    root = str(root)
    driver = start(path, root)
    wait_for(lambda: read_records("small", root=root), driver)
    storage.write_bytes(f"{root}/sweeps/small/stop", b"")
    driver.communicate(timeout=START_SECONDS)
    kept = read_records("small", root=root)
    assert 0 < len(kept) < 4
    assert "stopped" not in {record.status for record in kept.values()}

    out, err = start(path, root).communicate(timeout=START_SECONDS)
    made = json.loads(out)["records"]
    assert [made[name]["status"] for name in sorted(made)] == ["finished", "diverged", "finished", "finished"], err


def test_more_trials_at_a_time_than_the_cluster_holds_are_refused_before_anything_starts(definition, root):
    sweep = load_sweep(definition(), assignments=["concurrent=1000"])
    with pytest.raises(ClusterError, match="small: concurrent 1000, but the cluster has .* CPUs and .* GPUs, enough"):
        run_sweep(sweep, root=str(root))
    assert not (root / "sweeps").exists()


@pytest.mark.parametrize(
    ("resources", "have", "fit"),
    [
        ({"gpus_per_worker": 0.25}, {"CPU": 64, "GPU": 2}, 8),
        ({"gpus_per_worker": 1, "num_workers": 4}, {"CPU": 64, "GPU": 10}, 2),
        ({"cpus_per_worker": 1, "num_workers": 2, "gpus_per_worker": 0}, {"CPU": 4}, 1),  # 2.05 CPUs each
    ],
)
def test_trials_share_gpus_and_drivers_of_trials_need_cpus_too(definition, root, resources, have, fit):
    settings = [f"settings.resources.{key}={value}" for key, value in resources.items()]
    sweep = load_sweep(definition(), assignments=settings)
    assert check_capacity(sweep, planned(sweep), root=str(root), have=have) == fit


def test_a_trial_that_fits_nowhere_is_refused(definition, root):
    sweep = load_sweep(definition(), assignments=["settings.resources.gpus_per_worker=2"])
    with pytest.raises(ClusterError, match="does not hold one trial"):
        check_capacity(sweep, planned(sweep), root=str(root), have={"CPU": 8, "GPU": 1})


@pytest.mark.parametrize(
    ("metric", "message"),
    [("pnsr", "no trial logs pnsr; did you mean psnr"), ("lpips_alex", "no trial logs lpips_alex"),
     ("health/seam_error", "no trial logs health/seam_error")],
)  # fmt: skip
def test_a_metric_that_nobody_logs_is_refused_before_anything_starts(definition, root, metric, message):
    sweep = load_sweep(definition(metrics={"psnr": "max", metric: "min"}))
    with pytest.raises(ConfigError, match=message):
        run_sweep(sweep, root=str(root))
    assert not (root / "sweeps").exists()


def test_a_failed_trial_is_to_be_done_again(definition, root):
    sweep = load_sweep(definition())
    begin(sweep, root=str(root))
    write_record(sweep, failed(planned(sweep)[2]), root=str(root))
    assert [trial.id for trial in remaining(sweep, root=str(root))] == ["000", "001", "002", "003"]


def test_a_learning_search_proposes_within_bounds_the_same_for_the_same_records(definition, root):
    sweep = load_sweep(definition(search={"kind": "tpe", "multi_objective": True}))
    records = [
        Record(f"{n:03d}", "x", {L1: value}, 0, "finished", 12, {"psnr": 20 - value, "l1": value}, 1.0)
        for n, value in enumerate([0.2, 1.0, 5.0])
    ]
    proposed = propose(sweep, records, 3)
    assert proposed == propose(sweep, records, 3)
    assert all(0.1 <= values[L1] <= 10 for values in proposed)


@pytest.mark.slow
def test_a_learning_search_makes_its_points_and_then_its_own_proposals(definition, root):
    sweep = load_sweep(definition(search={"kind": "tpe"}, trials=5))
    records = run_sweep(sweep, root=str(root))

    assert sorted(records) == ["000", "001", "002", "003", "004"]
    assert [records[name].label for name in ("003", "004")] == ["tpe 4", "tpe 5"]
    assert [trial.id for trial in known_trials(sweep, root=str(root))] == sorted(records)


@pytest.mark.slow
def test_under_successive_halving_a_trial_is_finished_at_its_last_step_and_else_stopped(definition, root):
    points = [{"label": f"rate {rate}", "values": {RATE: rate}} for rate in (3e-3, 1e-9, 2e-9)]
    path = definition(
        vary={RATE: {"loguniform": [1e-10, 1e-2]}},
        points=points,
        trials=3,
        scheduler={"kind": "asha", "grace_steps": 4, "reduction": 2},
        concurrent=1,
        settings=["stages.gan.steps=40"],
    )
    records = run_sweep(load_sweep(path), root=str(root))

    assert records["000"].status == "finished"
    assert all(record.status == ("finished" if record.step == 40 else "stopped") for record in records.values())
    assert all("psnr" in record.metrics for record in records.values())


@pytest.mark.slow
def test_trials_of_several_workers_are_runs_of_their_own_with_the_same_outcome(definition, root):
    sweep = load_sweep(
        definition(trials=2, settings=["resources.num_workers=2", "resources.cpus_per_worker=0.9"]),
    )
    records = run_sweep(sweep, root=str(root))

    assert [record.status for record in records.values()] == ["finished", "diverged"]
    assert records["000"].step == 12
    assert records["000"].metrics["psnr"] > 0
