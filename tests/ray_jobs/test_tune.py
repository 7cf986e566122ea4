"""Sweeps of toy trials through the real driver and Ray Tune: same conditions, divergence, kills, refusals."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
import yaml
from ray.cluster_utils import Cluster

from inpaint import checkpoints, storage
from inpaint.cluster.manifest import build
from inpaint.cluster.runtime import Runtime
from inpaint.cluster.task import MAX_NODES, sweep_task
from inpaint.config.sweep import load_sweep
from inpaint.errors import ClusterError, ConfigError
from inpaint.sweep.capacity import check_capacity
from inpaint.sweep.trials import Record, begin, known_trials, planned, read_records, remaining, run_of, write_record
from ray_jobs import tune
from ray_jobs.kills import below, named
from ray_jobs.toy import toy_run
from ray_jobs.trial import kept_evaluator, kept_features
from ray_jobs.tune import run_sweep

START_SECONDS = 600  # generous: a neighbour may hold the cores
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
        plain = {"preset": str(root / "toy.yaml"), **DEFINITION, **changes}
        path.write_text(yaml.safe_dump(plain, sort_keys=False))  # the first metric decides
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


def under_way(sweep, root):
    """The first trial with a checkpoint and without a record, if any."""
    records = read_records("small", root=str(root))
    return next((name for name in begun(sweep, root) if name not in records), None)


def wait_for(condition, driver):
    until = time.monotonic() + START_SECONDS
    while not condition():
        assert time.monotonic() < until
        assert driver.poll() is None, driver.communicate()[1]
        time.sleep(0.2)


def kill_all(driver):
    """The driver, at once; and its trials, so that nothing goes on meanwhile."""
    found = below(driver.pid)
    for pid in (driver.pid, *found):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    driver.communicate()


def victims(what, driver, run):
    """Processes of a trial under way, or of the Ray it runs in."""
    if what == "a trial's process":
        return [json.loads(storage.read_bytes(f"{run.url}/lease.json"))["pid"]]
    raylets = named(driver.pid, "raylet/raylet")
    return raylets if what == "the raylet" else [*raylets, *named(driver.pid, "gcs_server")]


def starts_of(run):
    """How a run was started, each time."""
    return json.loads(storage.read_bytes(f"{run.url}/provenance.json"))["starts"]


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
    wait_for(lambda: read_records("small", root=root) and under_way(sweep, root), driver)
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    kept = read_records("small", root=root)
    hit = under_way(sweep, root)
    places = {name: os.stat(f"{root}/sweeps/small/trials/{name}.json") for name in kept}
    again = start(path, root)
    out, err = again.communicate(timeout=START_SECONDS)

    assert again.returncode == 0, err
    assert 0 < len(kept) < 4
    made = json.loads(out)["records"] if out else err
    assert [made[name]["status"] for name in sorted(made)] == ["finished", "diverged", "finished", "finished"]
    for name, before in places.items():
        assert os.stat(f"{root}/sweeps/small/trials/{name}.json").st_mtime_ns == before.st_mtime_ns
    run = run_of(sweep, planned(sweep)[int(hit)], root=root)
    assert [entry["from_step"] > 0 for entry in starts_of(run)] == [False, True]
    histories = [checkpoints.read_history(run_of(sweep, t, root=root).url) for t in planned(sweep)]
    assert histories[0] == histories[2]


@pytest.mark.slow
def test_a_sweep_that_is_asked_to_stop_keeps_checkpoints_and_goes_on_later(definition, root, start):
    path = definition(settings=["stages.gan.steps=120", "checkpoints.every=1000", "evaluation.every=120"], concurrent=1)
    root = str(root)
    driver = start(path, root)
    wait_for(lambda: read_records("small", root=root), driver)
    storage.write_bytes(f"{root}/sweeps/small/stop", b"")
    _, said = driver.communicate(timeout=START_SECONDS)
    assert driver.returncode == 0, said
    assert "small: stopped as asked; run it again to go on" in said
    kept = read_records("small", root=root)
    assert 0 < len(kept) < 4
    assert "stopped" not in {record.status for record in kept.values()}

    out, err = start(path, root).communicate(timeout=START_SECONDS)
    made = json.loads(out)["records"] if out else err
    assert [made[name]["status"] for name in sorted(made)] == ["finished", "diverged", "finished", "finished"], err


def test_more_trials_at_a_time_than_the_cluster_holds_are_refused_before_anything_starts(definition, root):
    sweep = load_sweep(definition(), assignments=["concurrent=1000"])
    with pytest.raises(ClusterError, match="small: concurrent 1000, but the cluster has .* CPUs and .* GPUs"):
        run_sweep(sweep, root=str(root))
    assert not (root / "sweeps").exists()


@pytest.fixture
def autoscaled(monkeypatch):
    """The environment of a head whose two workers of 4 cores come when they are asked for."""

    def enter(sweep, concurrent):
        runtime = Runtime.model_validate({"autoscaler": {"enabled": True}})
        task = sweep_task(sweep, root="s3://lab/x", concurrent=concurrent)
        spec = build(task, runtime, namespace="training").job["spec"]["rayClusterSpec"]
        assert {group["replicas"] for group in spec["workerGroupSpecs"]} == {0}
        for entry in spec["headGroupSpec"]["template"]["spec"]["containers"][0]["env"]:
            if entry["name"] == MAX_NODES:
                monkeypatch.setenv(MAX_NODES, entry["value"])

    return enter


def test_under_an_autoscaler_the_workers_that_may_come_count_and_no_others(definition, autoscaled, monkeypatch):
    sweep = load_sweep(definition())
    autoscaled(sweep, 8)
    monkeypatch.setattr(tune, "_nodes", lambda: [{}])  # the head, and no worker yet

    def concurrent(*assignments):
        asked = load_sweep(definition(), assignments=assignments)
        return check_capacity(asked, planned(asked), root="r", nodes=tune._most_nodes())

    assert concurrent() == 8
    with pytest.raises(ClusterError, match="concurrent 9, but the cluster has 8 CPUs and 0 GPUs on 2 nodes"):
        concurrent("concurrent=9")
    with pytest.raises(ClusterError, match="does not hold one trial"):
        concurrent("settings.resources.cpus_per_worker=5")


@pytest.mark.slow
def test_a_sweep_begins_on_a_cluster_whose_workers_come_when_they_are_asked_for(definition, autoscaled, root):
    path = definition(trials=1)
    autoscaled(load_sweep(path), 1)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        command = [sys.executable, "-m", "ray_jobs.tune", path, "--root", str(root), "--address", cluster.address]
        driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        wait_for(lambda: (root / "sweeps" / "small" / "sweep.yaml").exists(), driver)
        cluster.add_node(num_cpus=4)
        said, _ = driver.communicate(timeout=START_SECONDS)
    finally:
        cluster.shutdown()
    assert driver.returncode == 0, said
    assert read_records("small", root=str(root))["000"].status == "finished"


@pytest.mark.parametrize(
    ("metric", "message"),
    [("pnsr", "no trial logs pnsr; did you mean psnr"), ("lpips_alex", "no trial logs lpips_alex"),
     ("health/seam", "no trial logs health/seam; did you mean health/seam_error")],
)  # fmt: skip
def test_a_metric_that_nobody_logs_is_refused_before_anything_starts(definition, root, metric, message):
    sweep = load_sweep(definition(metrics={"psnr": "max", metric: "min"}))
    with pytest.raises(ConfigError, match=message):
        run_sweep(sweep, root=str(root))
    assert not (root / "sweeps").exists()


def test_the_driver_reads_each_record_once_however_often_it_looks(definition, root, monkeypatch):
    sweep, told, reads, real = load_sweep(definition()), [], [], storage.read_bytes
    one, other = planned(sweep)[:2]
    write_record(sweep, failed(one), root=str(root))
    monkeypatch.setattr(storage, "read_bytes", lambda url: reads.append(url) or real(url))
    monkeypatch.setattr(tune, "WATCH_SECONDS", 0.01)
    with tune._Watch(sweep, str(root), 4, lambda record, done, total: told.append((record.id, done, total))):
        for trial in (one, other):
            time.sleep(0.1)
            write_record(sweep, replace(failed(trial), status="finished"), root=str(root))
    assert told == [(one.id, 1, 4), (other.id, 2, 4)]
    assert len(reads) == 3


def test_a_failed_trial_is_to_be_done_again(definition, root):
    sweep = load_sweep(definition())
    begin(sweep, root=str(root))
    write_record(sweep, failed(planned(sweep)[2]), root=str(root))
    assert [trial.id for trial in remaining(sweep, root=str(root))] == ["000", "001", "002", "003"]


@pytest.mark.slow
def test_a_learning_search_makes_its_points_and_then_its_own_proposals(definition, root):
    sweep = load_sweep(definition(search={"kind": "tpe"}, trials=5))
    records = run_sweep(sweep, root=str(root))

    assert sorted(records) == ["000", "001", "002", "003", "004"]
    assert [records[name].label for name in ("003", "004")] == ["tpe 4", "tpe 5"]
    assert [trial.id for trial in known_trials(sweep, root=str(root))] == sorted(records)


HALVED = {
    "vary": {RATE: {"loguniform": [1e-10, 1e-2]}},
    "points": [{"label": f"rate {rate}", "values": {RATE: rate}} for rate in (1e-9, 1e-3, 2e-9, 3e-9)],
    "scheduler": {"kind": "asha", "grace_steps": 4, "reduction": 2},
    "concurrent": 1,
    "settings": ["stages.gan.steps=40", "method.initialisation=orthogonal", "method.generator_optimizer.eps=1e-8"],
}


def rungs_of(root):
    """Every entry of every rung, by its place."""
    folder = root / "sweeps" / "small" / "rungs"
    return {str(path.relative_to(folder)): path.read_text() for path in folder.glob("*/*.json")}


@pytest.mark.slow
def test_successive_halving_stops_bad_trials_and_finds_its_rungs_after_a_kill(definition, root, start):
    """Trials that hardly learn (rates of 1e-9) against one that does; scores are asked for every 4 steps."""
    path = definition(**HALVED)
    driver = start(path, root)
    wait_for(lambda: "8/001.json" in rungs_of(root), driver)
    kill_all(driver)
    before = rungs_of(root)
    out, err = start(path, root).communicate(timeout=START_SECONDS)
    made = json.loads(out)["records"] if out else err

    assert [made[name]["status"] for name in sorted(made)] == ["finished", "finished", "stopped", "stopped"], err
    assert [made[name]["step"] for name in ("000", "001")] == [40, 40]
    assert made["002"]["step"] == made["003"]["step"] == 4  # at the first rung, not later
    assert "successive halving at step 4: psnr" in made["002"]["reason"]
    after = rungs_of(root)
    decided = {place: text for place, text in before.items() if "stopped" in text}
    assert decided
    assert decided.items() <= after.items()
    run = run_of(load_sweep(path), planned(load_sweep(path))[1], root=str(root))
    assert [entry["from_step"] > 0 for entry in starts_of(run)] == [False, True]  # it went on, it did not begin anew


@pytest.mark.slow
@pytest.mark.parametrize("what", ["a trial's process", "the raylet", "the whole Ray instance"])
def test_whatever_of_ray_is_killed_no_trial_is_lost_or_made_twice(definition, root, start, what):
    path = definition(settings=["stages.gan.steps=120", "checkpoints.every=10", "evaluation.every=120"], concurrent=1)
    sweep = load_sweep(path)
    driver = start(path, root)
    wait_for(lambda: read_records("small", root=str(root)) and under_way(sweep, root), driver)
    kept, hit = read_records("small", root=str(root)), under_way(sweep, root)
    for pid in victims(what, driver, run_of(sweep, planned(sweep)[int(hit)], root=str(root))):
        os.kill(pid, signal.SIGKILL)
    out, err = driver.communicate(timeout=START_SECONDS)
    if what == "a trial's process":  # the sweep mends that by itself
        assert driver.returncode == 0, err
    if driver.returncode:
        again = start(path, root)
        out, err = again.communicate(timeout=START_SECONDS)
        assert again.returncode == 0, err

    made = json.loads(out)["records"] if out else err
    assert [made[name]["status"] for name in sorted(made)] == ["finished", "diverged", "finished", "finished"]
    assert {name: made[name]["seconds"] for name in kept} == {name: record.seconds for name, record in kept.items()}
    run = run_of(sweep, planned(sweep)[int(hit)], root=str(root))
    assert [entry["from_step"] > 0 for entry in starts_of(run)] == [False, True]


@pytest.mark.slow
def test_trials_of_several_workers_are_runs_of_their_own_with_the_same_outcome(definition, root):
    sweep = load_sweep(
        definition(trials=2, settings=["resources.num_workers=2", "resources.cpus_per_worker=0.9"]),
    )
    records = run_sweep(sweep, root=str(root))

    assert [record.status for record in records.values()] == ["finished", "diverged"]
    assert records["000"].step == 12
    assert records["000"].metrics["psnr"] > 0
