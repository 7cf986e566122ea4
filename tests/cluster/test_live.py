"""On a real cluster with KubeRay: install, test, submit, lose a worker and the head, stop, resume, upgrade, uninstall.

    KUBECONFIG=... INPAINT_LIVE_ROOT=s3://bucket/prefix INPAINT_LIVE_IMAGE=name:tag pytest -m cluster tests/cluster

The store must be reachable from this machine and from pods. INPAINT_LIVE_VALUES names a values file for the site (a
gateway, node selectors, pull secrets); INPAINT_LIVE_NAMESPACE a namespace instead of a fresh one. Keys in
the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) go into a Secret there. Everything takes minutes.
"""

import json
import os
import time
import uuid
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

ROOT, IMAGE = os.environ.get("INPAINT_LIVE_ROOT"), os.environ.get("INPAINT_LIVE_IMAGE")
KEYS = {name: os.environ[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY") if name in os.environ}
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(not (ROOT and IMAGE), reason="INPAINT_LIVE_ROOT and INPAINT_LIVE_IMAGE are not set"),
]
CHART = Path(__file__).parents[2] / "helm"
MINUTES = 60.0
KINDS = ("config_map", "service_account", "pod", "persistent_volume_claim")


@pytest.fixture(scope="module")
def core():
    from kubernetes import client, config

    config.load_kube_config(os.environ["KUBECONFIG"])
    return client.CoreV1Api()


@pytest.fixture(scope="module")
def namespace(core):
    """A namespace with PodSecurity `restricted` and the store's keys; ours goes again at the end."""
    given = os.environ.get("INPAINT_LIVE_NAMESPACE")
    name = given or f"inpaint-live-{uuid.uuid4().hex[:6]}"
    if not given:
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        core.create_namespace({"metadata": {"name": name, "labels": labels}})
    if KEYS:
        core.create_namespaced_secret(name, {"metadata": {"name": "live-store-keys"}, "stringData": KEYS})
    yield name
    if KEYS:
        core.delete_namespaced_secret("live-store-keys", name)
    if not given:
        core.delete_namespace(name)


@pytest.fixture(scope="module")
def values():
    image, _, tag = IMAGE.rpartition(":")
    site = os.environ.get("INPAINT_LIVE_VALUES")
    shape = {"cpus": 2, "memory": "4Gi", "shm": "512Mi", "maxReplicas": 2, "cache": {"size": "5Gi"}}
    small = {
        "image": {"repository": image, "tag": tag},
        "store": {"root": ROOT},
        "s3": {"existingSecret": "live-store-keys" if KEYS else ""},
        "head": {"cpus": 1, "memory": "4Gi", "shm": "256Mi"},
        "submitter": {"cpus": 0.2, "memory": "512Mi"},
        "workerGroups": {"gpu": None, "gpu-spot": None, "cpu": shape},
        "retention": {"succeededSeconds": 30, "failedSeconds": 120},
    }
    return merge(small, yaml.safe_load(Path(site).read_text()) if site else {})


@pytest.fixture(scope="module")
def helm(namespace):
    import helm_python

    return helm_python.Config(kubeconfig_path=os.environ["KUBECONFIG"], namespace=namespace)


@pytest.fixture(scope="module")
def installed(helm, namespace, values):
    helm.install(str(CHART), "live", values, namespace=namespace, timeout=120)
    yield
    helm.uninstall("live")


@pytest.fixture(scope="module")
def shards(installed):
    """The bundled photographs as shard sets in the store, written from here."""
    from inpaint import storage
    from inpaint.config import load_run
    from inpaint.demo import write_photos

    run = load_run("tiny", root=ROOT)
    if not storage.exists(storage.join(run.train_url, "index.json")):
        write_photos(run, print)


def test_helm_test_passes_under_restricted_pod_security(helm, installed):
    assert "written, read and deleted" in helm.test("live", timeout=300, logs=True)["logs"]


def test_a_run_survives_the_loss_of_a_worker_and_of_the_head(core, namespace, shards):
    name = f"live-{uuid.uuid4().hex[:6]}"
    submit(name, namespace, "stages.gan.steps=2000", "checkpoints.every=20")
    assert cli("submit", "train", "tiny", "--name", name, "-n", namespace, *settings(2000, 20)).startswith(
        f"{name}: already on its way"
    )
    first = until(lambda: shown(name, namespace)["progress"]["checkpoint_step"], 15 * MINUTES)

    kill(core, namespace, name, "worker")
    again = until(lambda: newer(shown(name, namespace), first), 15 * MINUTES)
    kill(core, namespace, name, "head")
    states = set()
    until(lambda: states.add(shown(name, namespace)["state"]) or newer(shown(name, namespace), again), 20 * MINUTES)
    assert states & {"head lost", "running", "starting"}
    assert not states & {"failed", "succeeded"}
    assert "step " in cli("logs", name, "-n", namespace, "--tail", "200")

    assert "stopped, after a checkpoint" in cli("stop", name, "-n", namespace, "--wait", "300")
    stopped = shown(name, namespace)
    assert stopped["state"] == "stopped"
    until(lambda: not pods(core, namespace, name, "worker"), 5 * MINUTES)  # what would be GPUs is free
    assert cli("submit", "train", "tiny", "--name", name, "-n", namespace, *settings(2000, 20)).startswith(
        f"{name}: submitted again"
    )
    until(lambda: newer(shown(name, namespace), stopped["progress"]["checkpoint_step"]), 15 * MINUTES)
    cli("stop", name, "-n", namespace, "--now")
    until(lambda: not pods(core, namespace, name), 5 * MINUTES)


def test_a_short_run_finishes_and_can_be_pulled(namespace, shards, tmp_path):
    name = f"live-{uuid.uuid4().hex[:6]}"
    submit(name, namespace, "stages.gan.steps=20", "checkpoints.every=10", "evaluation.every=20")
    until(lambda: shown(name, namespace)["finished"], 15 * MINUTES)
    assert shown(name, namespace)["state"] == "succeeded"
    assert cli("submit", "train", "tiny", "--name", name, "-n", namespace,
               *sets("stages.gan.steps=20", "checkpoints.every=10", "evaluation.every=20")).startswith(
        f"{name}: has already finished"
    )  # fmt: skip
    cli("pull", name, "--root", ROOT, "-o", tmp_path / "model")
    assert list((tmp_path / "model").rglob("*.safetensors"))


def test_an_impossible_run_says_why_it_is_stuck(namespace, shards, helm, values):
    """A pod larger than any node: the reason is told, and stopping removes it."""
    name = f"live-{uuid.uuid4().hex[:6]}"
    giant = merge(values, {"workerGroups": {"giant": {"cpus": 4000, "memory": "4Ti", "shm": "1Gi"}}})
    helm.upgrade(str(CHART), "live", giant, namespace=namespace, timeout=120)
    cli("submit", "train", "tiny", "--name", name, "-n", namespace, "--group", "giant", *sets("data.cache_gib=1"))
    held = until(lambda: " ".join(shown(name, namespace)["holds"]), 5 * MINUTES)
    assert "unschedulable" in held
    cli("stop", name, "-n", namespace)
    helm.rollback("live", timeout=120)
    assert "giant" not in cli("submit", "train", "tiny", "--group", "nowhere", "-n", namespace, fails=True)


def test_an_uninstall_leaves_nothing(core, helm, namespace, values):
    helm.install(str(CHART), "brief", merge(values, {"standingCluster": {"enabled": False}}), namespace=namespace)
    helm.uninstall("brief")
    for kind in KINDS:
        listed = getattr(core, f"list_namespaced_{kind}")(namespace, label_selector="app.kubernetes.io/instance=brief")
        assert listed.items == [], kind


def cli(*words, fails=False):
    from inpaint.cli import app

    result = CliRunner().invoke(app, [str(word) for word in words])
    if fails:
        assert result.exception is not None
        return str(result.exception)
    assert result.exit_code == 0, (words, result.output, result.exception)
    return result.stdout


def sets(*assignments):
    return [word for assignment in assignments for word in ("--set", assignment)] + ["--set", "data.cache_gib=1"]


def settings(steps, every):
    return sets(f"stages.gan.steps={steps}", f"checkpoints.every={every}")


def submit(name, namespace, *assignments):
    assert "submitted" in cli("submit", "train", "tiny", "--name", name, "-n", namespace, *sets(*assignments))


def shown(name, namespace):
    return json.loads(cli("jobs", "show", name, "-n", namespace, "--json"))


def newer(about, step):
    found = about["progress"]["checkpoint_step"]
    return found if found and found > step else None


def pods(core, namespace, name, node_type=None):
    selector = f"inpaint/run={name}" + (f",ray.io/node-type={node_type}" if node_type else "")
    return [pod.metadata.name for pod in core.list_namespaced_pod(namespace, label_selector=selector).items]


def kill(core, namespace, name, node_type):
    for pod in pods(core, namespace, name, node_type):
        core.delete_namespaced_pod(pod, namespace, grace_period_seconds=0)


def until(look, seconds):
    """What `look` gives once it is true."""
    end = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(5)


def merge(base, over):
    return {
        key: merge(base[key], over[key]) if isinstance(base.get(key), dict) and isinstance(over.get(key), dict)
        else over.get(key, base.get(key))
        for key in {**base, **over}
    }  # fmt: skip
