"""A node that says it will go away, in a Ray of several nodes on this machine."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from ray.cluster_utils import Cluster

from inpaint import checkpoints, storage
from ray_jobs.kills import named
from ray_jobs.soak import Outcome
from ray_jobs.toy import toy_run

GRACE_SECONDS = 60  # from the notice until the node goes
PATIENCE_SECONDS = 900


@pytest.fixture
def cluster(monkeypatch):
    """A head without CPUs and two nodes, each of which holds both workers."""
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [started.add_node(num_cpus=2), started.add_node(num_cpus=2)]
    yield started, nodes
    started.shutdown()


def start(run, folder, address):
    path = folder / f"{run.name}.yaml"
    path.write_text(yaml.safe_dump(run.to_dict()))
    command = [sys.executable, "-m", "inpaint", "train", str(path), "--address", address, "--json"]
    with (folder / f"{run.name}.err").open("w") as said:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True)


def workers_on(node):
    return named(node.all_processes["raylet"][0].process.pid, "ray::RayTrainWorker")


def drain(address, node, *, seconds):
    command = [
        Path(sys.executable).with_name("ray"), "drain-node", "--address", address, "--node-id", node.node_id,
        "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot",
        "--deadline-remaining-seconds", str(seconds),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)


def wait_for(condition, what):
    until = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < until:
        if found := condition():
            return found
        time.sleep(0.1)
    return pytest.fail(f"waited in vain for {what}")


@pytest.mark.slow
def test_a_node_that_goes_away_leads_to_a_checkpoint_in_time_and_the_run_goes_on_elsewhere(root, cluster):
    started, nodes = cluster
    settings = ("stages.gan.steps=400", "checkpoints.every=100000", "evaluation.every=100000")
    run = toy_run(root, "moved", *settings, workers=2)
    driver = start(run, root, started.address)
    going, staying = wait_for(
        lambda: (nodes if workers_on(nodes[0]) else nodes[::-1]) if any(map(workers_on, nodes)) else None, "workers"
    )
    wait_for(lambda: "\nstep 4/" in (root / "moved.err").read_text(), "the first steps")
    told = time.monotonic()
    drain(started.address, going, seconds=GRACE_SECONDS)
    written = wait_for(lambda: checkpoints.latest(run.url), "a checkpoint")
    seconds = time.monotonic() - told
    wait_for(lambda: workers_on(staying), "workers on the other node")
    out, _ = driver.communicate(timeout=PATIENCE_SECONDS)

    said = (root / "moved.err").read_text()
    assert driver.returncode == 0, said
    assert seconds < GRACE_SECONDS / 2
    assert 0 < written.step < 400
    assert f"a node goes away; checkpoint at step {written.step}, starting again" in said
    assert json.loads(out)["reason"] == "finished"
    starts = json.loads(storage.read_bytes(storage.join(run.url, "provenance.json")))["starts"]
    assert [start["from_step"] for start in starts] == [0, written.step]
    calm = toy_run(root, "calm", *settings, workers=2)
    undisturbed = start(calm, root, started.address)
    undisturbed.communicate(timeout=PATIENCE_SECONDS)
    assert Outcome.of(run.url) == Outcome.of(calm.url)
