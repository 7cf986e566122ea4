"""On a real cluster with KubeRay: install, test, submit, lose a worker and the head, stop, resume, score, uninstall.

    KUBECONFIG=... pytest -m cluster tests/cluster/test_live.py

It uses whatever KUBECONFIG points at, and no GPU. Everything runs in a namespace of its own with PodSecurity
`restricted`; runs are submitted with the token of the chart's submitter account and no more rights than that. It takes
about half an hour on two free cores with 8 GB, and is skipped, with the reason, unless `-m cluster` asks for it.

    INPAINT_LIVE_IMAGE      name:tag of the image; the chart's own when unset
    INPAINT_LIVE_ROOT       s3://bucket/prefix that this machine and pods reach, with AWS_ACCESS_KEY_ID and
                            AWS_SECRET_ACCESS_KEY from here; when unset, a small store is started in the namespace
    INPAINT_LIVE_VALUES     a values file for the site (a gateway, node selectors, pull secrets)
    INPAINT_LIVE_NAMESPACE  a namespace instead of a fresh one
"""

import io
import json
import os
import time
import uuid
import zipfile
from pathlib import Path

import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from inpaint import __version__
from tests.cluster import gateway

pytestmark = [
    pytest.mark.cluster,
    # the client's port forwarding leaves its socket to the garbage collector when the API server ends it first
    pytest.mark.filterwarnings("ignore:.*SSLSocket:pytest.PytestUnraisableExceptionWarning"),
]
CHART = Path(__file__).parents[2] / "helm"
ADMIN = os.environ.get("KUBECONFIG", "")
IMAGE = os.environ.get("INPAINT_LIVE_IMAGE", f"inpaint:{__version__}")
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
SECRET = "live-store-keys"
MINUTES = 60.0
SHORT = ("stages.gan.steps=20", "checkpoints.every=10", "evaluation.every=20")


@pytest.fixture(scope="module")
def core(request):
    """The client of a cluster that can be used, else the reason why there is none."""
    from kubernetes import client, config

    chosen = request.config.option.markexpr
    if "cluster" not in chosen or "not cluster" in chosen:
        pytest.skip("changes a real cluster; ask for it with -m cluster")
    config.load_kube_config(ADMIN)
    try:
        groups = [group.name for group in client.ApisApi().get_api_versions(_request_timeout=10).groups]
    except Exception as error:
        pytest.skip(f"no cluster answers at {ADMIN}: {type(error).__name__}")
    if "ray.io" not in groups:
        pytest.skip("the cluster knows no RayJob; install the KubeRay operator 1.7")
    return client.CoreV1Api()


@pytest.fixture(scope="module")
def namespace(core):
    """A namespace with PodSecurity `restricted`; ours goes again at the end."""
    given = os.environ.get("INPAINT_LIVE_NAMESPACE")
    name = given or f"inpaint-live-{uuid.uuid4().hex[:6]}"
    if not given:
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        core.create_namespace({"metadata": {"name": name, "labels": labels}})
    yield name
    if not given:
        core.delete_namespace(name)


@pytest.fixture(scope="module")
def store(core, namespace):
    """Root and chart values of a store that pods and this machine reach, whose keys are a Secret in the namespace."""
    with pytest.MonkeyPatch.context() as environment:
        root, s3 = os.environ.get("INPAINT_LIVE_ROOT"), {}
        if not root:
            gateway.start(core, namespace, IMAGE)
            listener = gateway.forward(core, namespace)
            for name in KEYS:
                environment.setenv(name, "live")
            environment.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{listener.getsockname()[1]}")
            environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
            gateway.make_bucket()
            root = f"s3://{gateway.BUCKET}/inpaint"
            s3 = {"endpoint": f"http://{gateway.NAME}:{gateway.PORT}", "region": "us-east-1"}
        keys = {name: os.environ[name] for name in KEYS if name in os.environ}
        if keys:
            core.create_namespaced_secret(namespace, {"metadata": {"name": SECRET}, "stringData": keys})
        yield root, s3 | {"existingSecret": SECRET if keys else ""}
        if keys:
            core.delete_namespaced_secret(SECRET, namespace)
        if not os.environ.get("INPAINT_LIVE_ROOT"):
            listener.close()
            gateway.stop(core, namespace)


@pytest.fixture(scope="module")
def values(store):
    root, s3 = store
    image, _, tag = IMAGE.rpartition(":")
    site = os.environ.get("INPAINT_LIVE_VALUES")
    shape = {"cpus": 1, "memory": "3Gi", "shm": "512Mi", "maxReplicas": 2, "cache": {"size": "2Gi"}}
    small = {
        "image": {"repository": image, "tag": tag},
        "store": {"root": root},
        "s3": s3,
        "head": {"cpus": 0.5, "memory": "2560Mi", "shm": "256Mi"},
        "submitter": {"cpus": 0.1, "memory": "512Mi"},
        "workerGroups": {"gpu": None, "gpu-spot": None, "cpu": shape},
        "retention": {"succeededSeconds": 30, "failedSeconds": 120},
        "shutdown": {"drainSeconds": 15, "checkpointSeconds": 15},
    }
    return merge(small, yaml.safe_load(Path(site).read_text()) if site else {})


@pytest.fixture(scope="module")
def helm(namespace):
    import helm_python

    return helm_python.Config(kubeconfig_path=ADMIN, namespace=namespace)


@pytest.fixture(scope="module")
def installed(helm, core, namespace, values, tmp_path_factory):
    """The chart; from here on the command line is somebody who may do what the submitter's account may."""
    helm.install(str(CHART), "live", values, namespace=namespace, timeout=120)
    wanted = {"spec": {"audiences": None, "expirationSeconds": 4 * 3600}}
    token = core.create_namespaced_service_account_token("live-inpaint-submitter", namespace, wanted).status.token
    everything = yaml.safe_load(Path(ADMIN).read_text())
    active = next(each for each in everything["contexts"] if each["name"] == everything["current-context"])
    everything["users"] = [{"name": "submitter", "user": {"token": token}}]
    everything["contexts"] = [{"name": "live", "context": active["context"] | {"user": "submitter"}}]
    path = tmp_path_factory.mktemp("live") / "kubeconfig"
    path.write_text(yaml.safe_dump(everything | {"current-context": "live"}))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("KUBECONFIG", str(path))
        yield
    helm.uninstall("live")


@pytest.fixture(scope="module")
def shards(installed, store):
    """The bundled photographs as shard sets in the store, written from here."""
    from inpaint import storage
    from inpaint.config import load_run
    from inpaint.demo import write_photos

    run = load_run("tiny", root=store[0])
    if not storage.exists(storage.join(run.train_url, "index.json")):
        write_photos(run, print)


@pytest.fixture(scope="module")
def finished(namespace, shards):
    """Name of a run that has come to its end."""
    name = fresh()
    submit(name, namespace, *SHORT)
    ended(name, namespace)
    return name


def test_helm_test_passes_under_restricted_pod_security(helm, installed):
    assert "written, read and deleted" in helm.test("live", timeout=300, logs=True)["logs"]


def test_a_run_survives_the_loss_of_a_worker_and_of_the_head(core, namespace, shards):
    name = fresh()
    submit(name, namespace, "stages.gan.steps=20000", "checkpoints.every=50")
    assert cli("submit", "train", "tiny", "--name", name, "-n", namespace, *settings(20000, 50)).startswith(
        f"{name}: already on its way"
    )
    first = until(lambda: shown(name, namespace)["progress"]["checkpoint_step"], 15 * MINUTES)

    head = pods(core, namespace, name, "head")
    lose(core, namespace, name, "worker", 30)  # as a node does that is drained: Ray hears of it first
    drained = shown(name, namespace)["progress"]["checkpoint_step"]  # no worker lives that could write another
    assert drained >= first
    again = until(lambda: newer(shown(name, namespace), drained), 15 * MINUTES)
    assert pods(core, namespace, name, "head") == head  # it was the same driver that went on
    lose(core, namespace, name, "head", 0)
    states = set()
    until(lambda: states.add(shown(name, namespace)["state"]) or newer(shown(name, namespace), again), 20 * MINUTES)
    assert states & {"head lost", "running", "starting"}
    assert not states & {"failed", "succeeded"}
    assert "step " in cli("logs", name, "-n", namespace, "--tail", "200")

    assert "stopped, after a checkpoint" in cli("stop", name, "-n", namespace, "--wait", "300")
    stopped = shown(name, namespace)
    assert stopped["state"] == "stopped"
    until(lambda: not pods(core, namespace, name, "worker"), 5 * MINUTES)  # what would be GPUs is free
    assert cli("submit", "train", "tiny", "--name", name, "-n", namespace, *settings(20000, 50)).startswith(
        f"{name}: submitted again"
    )
    until(lambda: newer(shown(name, namespace), stopped["progress"]["checkpoint_step"]), 15 * MINUTES)
    cli("stop", name, "-n", namespace, "--now")
    until(lambda: not pods(core, namespace, name), 5 * MINUTES)


def test_a_short_run_finishes_and_can_be_pulled(namespace, store, finished, tmp_path):
    again = cli("submit", "train", "tiny", "--name", finished, "-n", namespace, *sets(*SHORT))
    assert again.startswith(f"{finished}: has already finished")
    cli("pull", finished, "--root", store[0], "-o", tmp_path / "model")
    assert list((tmp_path / "model").rglob("*.safetensors"))


def test_a_finished_run_is_scored_on_the_cluster(namespace, store, finished, tmp_path):
    cli("submit", "evaluate", finished, "-n", namespace, "--set", "limit=8", "--cpus", "0.5", "--workers", "2")
    ended(f"{finished}-eval", namespace)
    page = json.loads(cli("report", finished, "--root", store[0], "-o", tmp_path, "--json"))
    assert "inp-v1" in Path(page["md"]).read_text()


def test_images_become_shards_on_the_cluster(namespace, store, shards, tmp_path):
    from skimage import data

    from inpaint import storage

    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for photo in ("astronaut", "coffee", "chelsea"):
            file = io.BytesIO()
            Image.fromarray(getattr(data, photo)()).save(file, "PNG")
            archive.writestr(f"{photo}.png", file.getvalue())
    name = fresh()
    source, target = f"{store[0]}/raw/{name}.zip", f"{store[0]}/shards/{name}/train"
    storage.upload(tmp_path / "photos.zip", source)
    cli("submit", "shards", source, target, "-n", namespace, "--workers", "1", "--short-side", "64")
    ended(f"{name}-train-shards", namespace)
    assert "3 samples" in cli("shards", "verify", target)


def test_a_search_makes_its_trials_on_the_cluster(namespace, store, shards, tmp_path):
    name = fresh()
    (tmp_path / f"{name}.yaml").write_text(
        "preset: tiny\nmetrics: {psnr: max}\ntrials: 2\nvary: {method.weights.l1: {loguniform: [0.1, 10]}}\n"
        "settings: {stages.gan.steps: 4, evaluation.every: 4, evaluation.images: 4, data.cache_gib: 1,\n"
        "  resources.num_workers: 1, resources.cpus_per_worker: 0.5}\n"
    )
    cli("submit", "sweep", tmp_path / f"{name}.yaml", "-n", namespace, "--concurrent", "2")
    ended(f"{name}-sweep", namespace)
    records = json.loads(cli("sweep", "status", name, "--root", store[0], "--json"))["records"]
    assert [record["status"] for record in records.values()] == ["finished", "finished"]


def test_a_run_without_data_says_so_and_is_not_worked_at_again(namespace, store, installed):
    name = fresh()
    submit(name, namespace, f"data.train={store[0]}/nowhere")
    told = until(lambda: shown(name, namespace)["progress"]["verdict"], 10 * MINUTES)  # on a new cluster of KubeRay's
    assert told.startswith(f"{store[0]}/nowhere: no shards with an index here")
    assert shown(name, namespace)["state"] == "failing"
    cli("stop", name, "-n", namespace, "--now")


def test_an_impossible_run_says_why_it_is_stuck(namespace, shards, helm, values):
    """A pod larger than any node: the reason is told, and stopping removes it."""
    name = fresh()
    giant = merge(values, {"workerGroups": {"giant": {"cpus": 4000, "memory": "4Ti", "shm": "1Gi"}}})
    helm.upgrade(str(CHART), "live", giant, namespace=namespace, timeout=120)
    cli("submit", "train", "tiny", "--name", name, "-n", namespace, "--group", "giant", *sets())
    held = until(lambda: " ".join(shown(name, namespace)["holds"]), 5 * MINUTES)
    assert "unschedulable" in held
    cli("stop", name, "-n", namespace)
    helm.rollback("live", timeout=120)
    assert "giant" not in cli("submit", "train", "tiny", "--group", "nowhere", "-n", namespace, fails=True)


def test_an_uninstall_leaves_nothing(core, helm, namespace, values):
    helm.install(str(CHART), "brief", values, namespace=namespace)
    assert left_over(core, namespace, "brief")
    helm.test("brief", timeout=300)
    helm.uninstall("brief")
    until(lambda: left_over(core, namespace, "brief") == [], MINUTES)


def left_over(core, namespace, release):
    """Names of everything of a release that is there."""
    from kubernetes import client

    rbac, policy, network = client.RbacAuthorizationV1Api(), client.PolicyV1Api(), client.NetworkingV1Api()
    lists = [
        core.list_namespaced_config_map, core.list_namespaced_service_account, core.list_namespaced_pod,
        core.list_namespaced_persistent_volume_claim, core.list_namespaced_service, rbac.list_namespaced_role,
        rbac.list_namespaced_role_binding, policy.list_namespaced_pod_disruption_budget,
        network.list_namespaced_network_policy,
    ]  # fmt: skip
    selector = f"app.kubernetes.io/instance={release}"
    return [each.metadata.name for ask in lists for each in ask(namespace, label_selector=selector).items]


def cli(*words, fails=False):
    from inpaint.cli import app

    result = CliRunner().invoke(app, [str(word) for word in words])
    if fails:
        assert result.exception is not None
        return str(result.exception)
    assert result.exit_code == 0, (words, result.output, result.exception)
    return result.stdout


def sets(*assignments):
    """Two ranks that share the one core of one pod."""
    small = ("data.cache_gib=1", "resources.cpus_per_worker=0.5")
    return [word for assignment in (*assignments, *small) for word in ("--set", assignment)]


def settings(steps, every):
    return sets(f"stages.gan.steps={steps}", f"checkpoints.every={every}")


def fresh():
    """A name that nothing has yet."""
    return f"live-{uuid.uuid4().hex[:6]}"


def ended(name, namespace):
    """Wait until it has, and well."""
    until(lambda: shown(name, namespace)["finished"], 15 * MINUTES)
    about = shown(name, namespace)
    assert about["state"] == "succeeded", about


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


def lose(core, namespace, name, node_type, grace_seconds):
    """Delete a run's pods of a type, and wait until others are in their place."""
    lost = pods(core, namespace, name, node_type)
    for pod in lost:
        core.delete_namespaced_pod(pod, namespace, grace_period_seconds=grace_seconds)
    until(lambda: (now := pods(core, namespace, name, node_type)) and not set(now) & set(lost), 5 * MINUTES)


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
