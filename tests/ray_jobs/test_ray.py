"""The real driver with real Ray workers: killed, refused, stopped, and still the same run."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

from inpaint import checkpoints, storage
from ray_jobs.kills import KILLS, below, workers_of
from ray_jobs.session import PlainSession
from ray_jobs.soak import slow_s3, soak
from ray_jobs.toy import toy_run
from ray_jobs.worker import train

START_SECONDS = 240


def start(run, folder):
    path = folder / f"{run.name}.yaml"
    path.write_text(yaml.safe_dump(run.to_dict()))
    command = [sys.executable, "-m", "inpaint", "train", str(path), "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition, driver):
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and driver.poll() is None:
        if condition():
            return
        time.sleep(0.05)
    pytest.fail(f"waited in vain; the driver says: {driver.communicate()[1][-2000:] if driver.poll() else 'nothing'}")


def test_a_run_whose_worker_is_killed_ends_as_one_process_alone_would(root):
    """Two workers against one process: the elastic promise, equal to rounding; the kill must leave no mark at all."""
    run = toy_run(root, "killed", "stages.gan.steps=60", "checkpoints.every=5", "evaluation.every=10", workers=2)
    driver = start(run, root)
    wait_for(lambda: checkpoints.latest(run.url), driver)
    os.kill(workers_of(driver)[0], signal.SIGKILL)
    out, err = driver.communicate(timeout=START_SECONDS)

    assert driver.returncode == 0, err
    assert json.loads(out)["reason"] == "finished"
    alone = toy_run(root, "alone", "stages.gan.steps=60", "checkpoints.every=5", "evaluation.every=10")
    train(alone, PlainSession())
    rows, expected = checkpoints.read_history(run.url), checkpoints.read_history(alone.url)
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for row, other in zip(rows[:4], expected[:4], strict=True):  # afterwards the two GANs drift apart, as GANs do
        assert row["generator/l1"] == pytest.approx(other["generator/l1"], rel=1e-3)
        assert row["discriminator/loss"] == pytest.approx(other["discriminator/loss"], rel=1e-3)
    starts = json.loads(storage.read_bytes(storage.join(run.url, "provenance.json")))["starts"]
    assert [start["attempt"] for start in starts] == [0, 0]  # the group was started again inside the job
    assert {"worker-0-0.log", "worker-1-0.log", "driver-0.log"} <= {
        storage.name_of(info.url) for info in storage.list_objects(storage.join(run.url, "logs"))
    }


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 4])
def test_a_run_continued_with_another_number_of_workers_learns_the_same_from_the_same_samples(root, workers):
    steps = ("stages.gan.steps=40", "checkpoints.every=5", "checkpoints.keep_last=100", "evaluation.every=40")
    two = toy_run(root, "two", *steps, workers=2)
    driver = start(two, root)
    _, err = driver.communicate(timeout=START_SECONDS)
    assert driver.returncode == 0, err
    other = toy_run(root, "other", *steps, "resources.cpus_per_worker=0.5", workers=workers)
    shutil.copytree(two.url, other.url)
    for info in checkpoints.list_checkpoints(other.url):
        if info.step > 20:
            storage.delete_tree(info.url)
    driver = start(other, root)
    _, err = driver.communicate(timeout=START_SECONDS)
    assert driver.returncode == 0, err

    expected, found = checkpoints.read_history(two.url), checkpoints.read_history(other.url)
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    assert found[:10] == expected[:10]  # up to step 20 it is the same run
    for row, one in zip(found[10:], expected[10:], strict=True):
        assert row["generator/learning_rate"] == one["generator/learning_rate"]
    for row, one in zip(found[10:13], expected[10:13], strict=True):  # afterwards rounding grows, as in any GAN
        for name in ("generator/l1", "discriminator/loss"):
            assert row[name] == pytest.approx(one[name], rel=1e-4)


@pytest.mark.slow
def test_sigterm_writes_a_checkpoint_and_a_second_driver_is_refused_meanwhile(root):
    run = toy_run(root, "termed", "stages.gan.steps=100000", "checkpoints.every=100000")
    driver = start(run, root)
    wait_for(lambda: storage.exists(storage.join(run.url, "provenance.json")), driver)
    second = start(run, root)
    _, err = second.communicate(timeout=START_SECONDS)
    driver.terminate()
    out, _ = driver.communicate(timeout=START_SECONDS)

    assert second.returncode == 1
    assert "is being trained by process" in err
    assert driver.returncode == 128 + signal.SIGTERM
    assert checkpoints.latest(run.url).step == json.loads(out)["step"] > 0


@pytest.mark.slow
def test_each_kind_of_kill_is_survived_byte_for_byte(tmp_path):
    found = soak(str(tmp_path), kills=len(KILLS), seed=1, steps=200)

    assert found["kills"] == {kill.what: 1 for kill in KILLS.values()}
    assert found["equal"] == {"history": True, "weights": True}


@pytest.mark.slow
def test_each_kind_of_kill_is_survived_byte_for_byte_in_an_object_store(monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "set back afterwards")
    with slow_s3() as root:
        found = soak(root, kills=len(KILLS), seed=1, steps=200)

    assert found["kills"] == {kill.what: 1 for kill in KILLS.values()}
    assert found["in_uploads"] >= 1
    assert found["equal"] == {"history": True, "weights": True}


@pytest.mark.slow
def test_nothing_is_left_of_a_run_whose_driver_is_killed_and_the_next_start_need_not_wait(root):
    run = toy_run(root, "alone", "stages.gan.steps=100000", "checkpoints.every=5", "evaluation.every=10")
    driver = start(run, root)
    wait_for(lambda: checkpoints.latest(run.url), driver)
    processes = below(driver.pid)
    driver.kill()
    driver.communicate()
    killed = time.monotonic()
    while any(os.path.exists(f"/proc/{pid}") for pid in processes) and time.monotonic() < killed + 30:
        time.sleep(0.05)

    assert len(processes) > 8  # the attempt, Ray's control store, raylet, controller, workers, ...
    assert [pid for pid in processes if os.path.exists(f"/proc/{pid}")] == []
    step = checkpoints.latest(run.url).step
    again = start(run, root)
    wait_for(lambda: checkpoints.latest(run.url).step > step, again)
    again.terminate()
    _, err = again.communicate(timeout=START_SECONDS)
    assert "watching whether it is alive" not in err  # the lease of a process that is gone is free


@pytest.mark.slow
def test_an_error_that_starting_again_cannot_mend_is_one_line_and_ends_the_run(root):
    run = toy_run(root, "odd", "method.generator_optimizer.learning_rate=1e30", "stages.gan.steps=40")
    driver = start(run, root)
    _, err = driver.communicate(timeout=START_SECONDS)

    assert driver.returncode == 1
    assert err.strip().splitlines()[-1].startswith("inpaint: step ")
    assert "is not finite" in err
