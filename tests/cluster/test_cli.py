"""`inpaint submit`, `jobs`, `logs`, `stop` from end to end, and that no artefact of a run holds a planted secret."""

import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import helm_python
import pytest
import yaml
from typer.testing import CliRunner

from inpaint import storage
from inpaint.cli import app
from inpaint.cluster import client, selftest
from inpaint.cluster.following import StoreReader
from inpaint.config import load_run
from inpaint.config.sweep import load_sweep, trial_run
from inpaint.errors import InpaintError
from tests.cluster.objects import lines, pod

CHART = Path(__file__).parents[2] / "helm"


@pytest.fixture
def installed(api, kubeconfig, store):
    """The API server after `helm install` with a store and an S3 Secret."""
    values = {
        "store": {"root": "s3://lab/inpaint"},
        "s3": {"existingSecret": "keys"},
        "wandb": {"existingSecret": "wandb"},
    }
    files = helm_python.Chart.load(str(CHART)).render(values, name="inpaint", namespace="training")
    (runtime,) = [text for name, text in files.items() if name.endswith("templates/runtime.yaml")]
    api.put("configmaps", yaml.safe_load(runtime))
    return api


def run(*words, fails=False):
    result = CliRunner().invoke(app, [str(word) for word in words])
    if fails:
        assert isinstance(result.exception, InpaintError) or result.exit_code == 2, result.output
        return str(result.exception) if isinstance(result.exception, InpaintError) else result.output
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def test_a_run_is_submitted_with_what_the_platform_installed(installed):
    out = run("submit", "train", "tiny", "--name", "paris")
    assert "paris: submitted" in out
    assert "inpaint logs paris --follow -n training" in out
    job = installed.objects["rayjobs", "paris"]
    assert job["metadata"]["annotations"]["inpaint/url"] == "s3://lab/inpaint/runs/paris"
    env = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["env"]
    assert {"name": "INPAINT_ROOT", "value": "s3://lab/inpaint"} in env
    assert run("submit", "train", "tiny", "--name", "paris").startswith("paris: already on its way; nothing was sent")


@pytest.mark.parametrize(
    ("words", "root"),
    [
        ((), "s3://file/root"),
        (("--set", "root=s3://set/root"), "s3://set/root"),
        (("--set", "root=s3://set/root", "--root", "s3://given"), "s3://given"),
    ],
)
def test_the_store_of_a_run_file_comes_before_the_runtimes(installed, tmp_path, monkeypatch, words, root):
    monkeypatch.setenv("INPAINT_ROOT", "s3://environment")
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(load_run("tiny").to_dict() | {"name": "mine", "root": "s3://file/root"}))
    run("submit", "train", file, *words)
    assert installed.objects["rayjobs", "mine"]["metadata"]["annotations"]["inpaint/url"] == f"{root}/runs/mine"


def test_the_store_of_an_evaluation_comes_before_the_runtimes(installed):
    run("submit", "evaluate", "paris", "--set", "root=s3://set/root")
    run("submit", "evaluate", "rome", "--set", "root=s3://set/root", "--root", "s3://given")
    jobs = {name: job["metadata"]["annotations"]["inpaint/url"] for (_, name), job in installed.objects.items()
            if name.endswith("-eval")}  # fmt: skip
    assert jobs == {
        "paris-eval": "s3://set/root/runs/paris/evaluations",
        "rome-eval": "s3://given/runs/rome/evaluations",
    }


def test_json_for_programs(installed):
    said = json.loads(run("submit", "train", "tiny", "--json"))
    assert (said["name"], said["result"], said["namespace"]) == ("tiny", "created", "training")
    (row,) = json.loads(run("jobs", "--json"))
    assert (row["name"], row["state"], row["workers_wanted"]) == ("tiny", "accepted", 1)
    assert json.loads(run("jobs", "list", "--json"))[0]["name"] == "tiny"


def test_the_namespace_may_stand_before_or_after_the_word(installed):
    run("submit", "train", "tiny", "-n", "elsewhere", "--root", "s3://lab/x",
        "--runtime", Path(__file__).with_name("empty_runtime.yaml"))  # fmt: skip
    for words in (("-n", "elsewhere", "show", "tiny"), ("show", "tiny", "-n", "elsewhere")):
        run("jobs", *words)
        assert any("/namespaces/elsewhere/rayjobs/tiny" in line for line in installed.requests)
        installed.requests.clear()
    assert json.loads(run("jobs", "--json", "-n", "elsewhere", "list"))[0]["name"] == "tiny"
    assert all("/namespaces/elsewhere/" in line for line in installed.requests)


def test_a_dry_run_sends_nothing(installed):
    installed.requests.clear()
    documents = list(yaml.safe_load_all(run("submit", "train", "tiny", "--dry-run", "-o", "yaml")))
    assert [document["kind"] for document in documents] == ["ConfigMap", "RayJob"]
    assert json.loads(run("submit", "train", "tiny", "--dry-run", "-o", "json"))["kind"] == "List"
    assert all(line.startswith("GET") for line in installed.requests)


def test_a_dry_run_needs_no_cluster(monkeypatch, tmp_path):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    out = run("submit", "train", "tiny", "--root", "s3://lab/x", "--dry-run")
    assert "kind: RayJob" in out
    (tmp_path / "runtime.yaml").write_text("rayVersion: 2.60.1\n")
    out = run("submit", "train", "tiny", "--root", "s3://lab/x", "--dry-run", "--runtime", tmp_path / "runtime.yaml")
    assert "rayVersion: 2.60.1" in out
    assert "no Kubernetes cluster is configured" in run("submit", "train", "tiny", "--root", "s3://lab/x", fails=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("tiny", "--root", "here"), "root here cannot be reached from a pod"),
        (("tinny",), "tinny is not a preset; did you mean tiny?"),
        (("tiny", "--set", "method.width=7"), "multiple of 4"),
        (("tiny", "--set", "checkpoints.metric=psrn"), "the run logs no psrn; did you mean psnr?"),
        (("tiny", "--spot"), "cpu: is not a spot group"),
        (("tiny", "--group", "tpu"), "groups: cpu, gpu, gpu-spot"),
        (("tiny", "--runtime", "missing"), "runtime missing is not in namespace training"),
        (("tiny", "--runtime", "missing.yaml"), "no such file"),
        (("tiny", "--name", "Paris"), "cannot name a run"),
        (("tiny", "--dry-run", "-o", "xml"), "yaml or json"),
        (("tiny", "--address", "http://x:1", "-n", "y"), "--namespace is for Kubernetes"),
        (("tiny", "--address", "http://x:1", "--root", "s3://a/b", "--spot"), "have no effect with --address"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_sent(installed, words, message):
    before = dict(installed.objects)
    assert message in run("submit", "train", *words, fails=True)
    assert installed.objects == before


ELSEWHERE = {  # what each place of a run and of an evaluation is called, and an assignment with a path of this machine
    "data.train": "/home/me/train",
    "data.held_out": "photos/",
    "holes": "{kind: set, url: masks/, hole: white}",
    "stages.gan.from": "./runs/first",
    "feature_weights.vgg19": "vgg.pth",
    "feature_weights.vgg16": "~/vgg16.pth",
    "evaluation.lpips": "{vgg: vgg.pth}",
}
ASKED_ELSEWHERE = {
    "data": "./photos",
    "masks": "{url: masks, hole: white}",
    "lpips.vgg": "vgg.pth",
    "features.tf-port": "inception.pth",
    "faces.arcface": "arcface.pt",
    "out": "here",
}


@pytest.mark.parametrize(("path", "value"), ELSEWHERE.items())
def test_a_place_of_a_run_that_no_pod_sees_is_refused_by_its_name(installed, path, value):
    said = run("submit", "train", "tiny", "--set", f"{path}={value}", fails=True)
    assert re.match(rf"{path}\S* \S+ cannot be reached from a pod; copy it to the store and give its URL, or ", said)
    said = run("submit", "sweep", "isnet-loss-weights", "--set", f"settings.{path}={value}", fails=True)
    assert said.startswith(path)
    assert ("rayjobs", "tiny") not in installed.objects


@pytest.mark.parametrize(("path", "value"), ASKED_ELSEWHERE.items())
def test_a_place_of_an_evaluation_that_no_pod_sees_is_refused_by_its_name(installed, path, value):
    said = run("submit", "evaluate", "paris", "--set", f"{path}={value}", fails=True)
    assert re.match(rf"{path}\S* \S+ cannot be reached from a pod", said)
    assert "subject ./runs/paris cannot be" in run("submit", "evaluate", "./runs/paris", "--name", "x", fails=True)


def test_every_place_of_finished_images_is_looked_at(installed):
    said = run("submit", "evaluate", "theirs", "--set", "finished={images: a, truth: s3://b/c, masks: m, hole: white}",
               fails=True)  # fmt: skip
    assert [line.partition(" cannot")[0] for line in said.splitlines()] == ["finished.images a", "finished.masks m"]


def test_places_in_the_store_and_names_pass(installed):
    places = ("data.train=s3://lab/a", "data.held_out=s3://lab/b", "stages.gan.from=first", "data.cache_dir=/cache/x",
              "holes={kind: set, url: s3://lab/m, hole: white}", "feature_weights.vgg19=s3://lab/vgg19.pth",
              "feature_weights.vgg16=random", "evaluation.lpips={alex: present}")  # fmt: skip
    run("submit", "train", "tiny", *(word for place in places for word in ("--set", place)))
    run("submit", "evaluate", "paris", "--set", "data=places2/test", "--set", "lpips.vgg=torchvision")


def test_a_cache_where_a_pod_may_not_write_is_refused(installed):
    said = run("submit", "train", "tiny", "--set", "data.cache_dir=/home/me/cache", fails=True)
    assert said == "data.cache_dir /home/me/cache cannot be written in a pod; use a path under /cache, or leave it out"


def test_a_preset_that_names_a_file_of_your_own_says_so(installed):
    said = run("submit", "train", "isfrnet-celeba", fails=True)
    assert "method.psp.checkpoint psp-inpainting.pt cannot be reached from a pod; copy it to the store" in said


@pytest.fixture
def volumes(tmp_path):
    """A runtime whose pods share a claim at /store, and whose head and workers mount another at /data."""
    claim = {"name": "data", "persistentVolumeClaim": {"claimName": "data"}}
    mount = {
        "extraVolumes": [claim, {"name": "own", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "own", "mountPath": "/own"}],
    }
    values = {"store": {"existingClaim": "shared"}, "head": mount, "workerGroups": {"cpu": {"cpus": 4, **mount}}}
    (tmp_path / "runtime.yaml").write_text(yaml.safe_dump(values))
    return ("--dry-run", "--root", "/store/lab", "--runtime", tmp_path / "runtime.yaml")


@pytest.mark.parametrize("place", ["/store/train", "file:///store/train", "/store/a/../train", "/data/train", "/data"])
def test_volumes_that_all_pods_mount_are_reached(volumes, place):
    assert f"train: {place}" in run("submit", "train", "tiny", "--set", f"data.train={place}", *volumes)


def test_weights_that_only_the_image_can_have_are_left_to_it(installed, tmp_path):
    baked, own = "/opt/weights/vgg19.pth", tmp_path / "vgg19.pth"
    own.touch()
    run("submit", "train", "tiny", "--set", f"feature_weights.vgg19={baked}")
    said = run("submit", "train", "tiny", "--name", "b", "--set", f"feature_weights.vgg19={own}", fails=True)
    assert f"feature_weights.vgg19 {own} cannot be reached from a pod" in said


@pytest.mark.parametrize("place", ["/own/cache", "/cache", "/dev/shm/x", "/store/cache"])
def test_a_cache_may_lie_wherever_workers_may_write(volumes, place):
    assert f"cache_dir: {place}" in run("submit", "train", "tiny", "--set", f"data.cache_dir={place}", *volumes)


@pytest.mark.parametrize("place", ["/storage/train", "/store/../home/me", "store/train", "/own/train"])
def test_what_only_looks_like_a_volume_is_not(volumes, place):
    said = run("submit", "train", "tiny", "--set", f"data.train={place}", *volumes, fails=True)
    assert f"data.train {place} cannot be reached from a pod" in said
    assert "or a path under /store or /data" in said


def test_a_sweep_of_a_promoted_preset_carries_it_to_the_cluster(installed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = load_run("tiny", num_workers=1, assignments=["method.width=8"]).to_dict()
    Path("mine.yaml").write_text(yaml.safe_dump(settings))
    Path("search.yaml").write_text("preset: mine.yaml\nmetrics: {psnr: max}\ntrials: 1\npoints: [{label: one}]\n")
    run("submit", "sweep", "search.yaml")
    Path("mine.yaml").unlink()  # a pod has no such file
    Path("run.yaml").write_text(installed.objects["configmaps", "search-sweep-run"]["data"]["run.yaml"])
    sent = load_sweep("run.yaml")
    assert trial_run(sent, {}, name="a", root="s3://lab/inpaint").method.width == 8


@pytest.mark.parametrize("varied", ["vary: {data.train: {choice: [s3://a/b, here]}}",
                                    "points: [{label: one, settings: {data.train: here}}]"])  # fmt: skip
def test_a_place_that_only_some_trials_have_is_looked_at(installed, tmp_path, varied):
    (tmp_path / "search.yaml").write_text(f"preset: tiny\nmetrics: {{psnr: max}}\ntrials: 1\n{varied}\n")
    assert "data.train here cannot be" in run("submit", "sweep", tmp_path / "search.yaml", fails=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("sweep", "isnet-loss-weights", "--set", "metrics={psrn: max}"), "no trial logs psrn; did you mean psnr?"),
        (("evaluate", "paris-1", "--protocol", "isnet-2022"), "isnet-2022 is not a protocol; did you mean"),
    ],
)
def test_a_sweep_or_evaluation_of_scores_that_are_not_there_is_not_sent(installed, words, message):
    before = dict(installed.objects)
    assert message in run("submit", *words, fails=True)
    assert installed.objects == before


@pytest.mark.parametrize(
    "words",
    [
        ("--set", "tracking.api_key=hunter2hunter2"),
        ("--set", "tracking.entity=0123456789abcdef0123456789abcdef01234567"),
        ("--root", "s3://AKIAIOSFODNN7EXAMPLE/x"),
        ("--set", "data.train=https://me:hunter2hunter2@host/x"),
    ],
)
def test_a_secret_on_the_command_line_is_refused_and_not_repeated(installed, words):
    said = run("submit", "train", "tiny", *words, fails=True)
    assert "secrets belong in a Kubernetes Secret" in said
    for secret in ("hunter2hunter2", "0123456789abcdef", "AKIAIOSFODNN7EXAMPLE"):
        assert secret not in said


def test_planted_secrets_are_in_no_artefact(installed, store, tmp_path, monkeypatch):
    """Keys that this machine and the cluster hold never reach an object, a request, a log or anything printed."""
    planted = ["planted-" + name for name in ("aws-id", "aws-key", "wandb", "ray")]
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "RAY_AUTH_TOKEN")
    for name, value in zip(names, planted, strict=True):
        monkeypatch.setenv(name, value)
    printed = [run("submit", "train", "tiny", "--dry-run"), run("submit", "train", "tiny"), run("jobs", "--json")]
    printed += [run("submit", "train", "tiny", "--address", "http://x:1", "--root", "s3://lab/x", "--dry-run")]
    printed += [run("submit", "evaluate", "tiny", "--dry-run"), run("jobs", "show", "tiny", "--json")]
    installed.put("pods", pod("tiny-1", "submitter") | {"metadata": {**pod("tiny-1", "submitter")["metadata"],
                  "labels": {"inpaint/run": "tiny", "inpaint/kind": "train",
                             "app.kubernetes.io/component": "submitter"}}})  # fmt: skip
    installed.logs["tiny-1", "ray-job-submitter"] = lines("step 1/2")
    printed += [run("logs", "tiny"), run("stop", "tiny", "--now")]
    everything = "\n".join(
        [*printed, *installed.bodies, *installed.requests, json.dumps(list(installed.objects.values()))]
    )
    everything += "".join(path.read_text() for path in store.rglob("*") if path.is_file())
    assert "step 1/2" in everything
    assert [value for value in planted if value in everything] == []


def test_a_log_in_a_file_or_a_pipe_has_no_codes_for_a_terminal(installed):
    run("submit", "train", "tiny")
    labels = {"inpaint/run": "tiny", "inpaint/kind": "train", "app.kubernetes.io/component": "submitter"}
    installed.put("pods", {"metadata": {"name": "tiny-1", "labels": labels}, "status": {"phase": "Running"}})
    installed.logs["tiny-1", "ray-job-submitter"] = lines("\x1b[36m(worker pid=7)\x1b[0m step 1/2\x1b[K", "[1m] plain")
    assert run("logs", "tiny").splitlines() == ["(worker pid=7) step 1/2", "[1m] plain"]


def test_sweeps_evaluations_and_shards_go_the_same_way(installed):
    run("submit", "evaluate", "paris", "--protocol", "inp-v1", "--set", "limit=8", "--workers", "2")
    run("submit", "shards", "s3://lab/raw.tar", "s3://lab/inpaint/shards/demo/train", "--samples", "10")
    entry_points = {
        name: job["spec"]["entrypoint"] for (kind, name), job in installed.objects.items() if kind == "rayjobs"
    }
    assert entry_points == {
        "paris-eval": "python -m ray_jobs.evaluate /etc/inpaint/run.yaml",
        "demo-train-shards": "python -m ray_jobs.shard s3://lab/raw.tar s3://lab/inpaint/shards/demo/train "
        "--samples 10 --workers 4",
    }
    assert (
        "no such option" in run("submit", "shards", "s3://a/b.tar", "s3://c/d/e", "--sampels", "1", fails=True).lower()
    )
    assert "SRC ./here cannot be reached from a pod" in run("submit", "shards", "./here", "s3://c/d/e", fails=True)
    assert "DST here cannot be reached from a pod" in run("submit", "shards", "s3://a/b", "here", fails=True)
    said = run("submit", "shards", "s3://a/b.tar", "s3://c/d/e", "--list", "names.txt", fails=True)
    assert "--list names.txt cannot be reached from a pod" in said


def test_a_sweep_asks_for_room_for_its_trials(installed, tmp_path):
    (tmp_path / "search.yaml").write_text(
        "preset: tiny\nmetrics: {psnr: max}\ntrials: 4\nvary: {method.weights.l1: {loguniform: [0.1, 10]}}\n"
        "settings: {resources.num_workers: 1, resources.cpus_per_worker: 2}\n"
    )
    run("submit", "sweep", tmp_path / "search.yaml", "--concurrent", "4")
    job = installed.objects["rayjobs", "search-sweep"]
    assert job["spec"]["entrypoint"] == "python -m ray_jobs.tune /etc/inpaint/run.yaml --root s3://lab/inpaint"
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert (group["groupName"], group["replicas"]) == ("cpu", 2)  # 4 trials × 2 cores on pods of 4 cores


def test_the_table_and_one_run_in_plain_words(installed):
    run("submit", "train", "tiny", "--name", "paris")
    installed.set_status("paris", jobDeploymentStatus="ValidationFailed", message="name too long")
    table = run("jobs")
    assert "paris" in table
    assert "refused" in table
    shown = run("jobs", "show", "paris")
    assert "paris (train): refused: KubeRay refused it and will not look again: name too long" in shown
    assert run("jobs", "list").startswith("run")


def test_a_stuck_run_says_why(installed):
    run("submit", "train", "tiny", "--name", "paris")
    installed.set_status("paris", jobDeploymentStatus="Initializing")
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                 "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."}  # fmt: skip
    worker = pod("paris-w", "worker", phase="Pending")
    worker["status"]["conditions"] = [condition]
    installed.put("pods", worker)
    assert "held up   paris-w is unschedulable: no node has enough free nvidia.com/gpu" in run("jobs", "show", "paris")


@pytest.fixture
def end_when_asked(installed, store):
    """A run that ends in a given way, with these last words, once it sees the stop mark."""

    def begin(*said, **status):
        def work():
            while not (store / "stop").exists():
                time.sleep(0.01)
            installed.put("pods", pod("paris-1", "submitter", phase="Succeeded"))
            installed.logs["paris-1", "ray-job-submitter"] = lines("step 3/40 stage=gan", *said)
            if status:
                installed.set_status("paris", **status)
            else:
                installed.remove("rayjobs", "paris")

        run("submit", "train", "tiny", "--name", "paris")
        installed.set_status("paris", jobDeploymentStatus="Running", jobStatus="RUNNING")
        threading.Thread(target=work, daemon=True).start()

    return begin


def test_stopping_waits_for_the_checkpoint_and_keeps_the_record(installed, end_when_asked, monkeypatch):
    monkeypatch.setattr(StoreReader, "newest_checkpoint", lambda self, url: (1234, 0.0))
    end_when_asked("stopped at step 1234", jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    assert run("stop", "paris", "--wait", "20") == "paris: stopped, after a checkpoint at step 1,234\n"
    assert ("rayjobs", "paris") in installed.objects
    assert run("submit", "train", "tiny", "--name", "paris").startswith("paris: submitted again; it goes on")


@pytest.mark.parametrize(
    ("said", "status", "told"),
    [
        (["stopped with 3 trials recorded; start it again to go on"],
         {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, "stopped, after a checkpoint"),
        (["finished at step 40"], {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"},
         "came to its own end before it had to stop"),
        ([], {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed", "message": "x\nl1 is nan"},
         "failed instead of stopping: the entry point failed: l1 is nan"),
        ([], {"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}, "was ended by Ray"),
        ([], {}, "is gone: somebody has removed its RayJob"),
    ],
)  # fmt: skip
def test_stopping_says_how_a_run_really_ended(end_when_asked, said, status, told):
    end_when_asked(*said, **status)
    assert run("stop", "paris", "--wait", "20") == f"paris: {told}\n"


def test_a_run_that_does_not_stop_is_ended_hard(installed, store):
    run("submit", "train", "tiny", "--name", "paris")
    installed.set_status("paris", jobDeploymentStatus="Running", jobStatus="RUNNING")
    assert "did not end within 0 s and was ended hard" in run("stop", "paris", "--wait", "0")
    assert ("rayjobs", "paris") not in installed.objects
    assert "no run paris" in run("stop", "paris", fails=True)


def test_a_run_that_was_asked_to_stop_is_ended_although_the_network_goes_away_meanwhile(installed, store, monkeypatch):
    monkeypatch.setattr(client, "PAUSES_SECONDS", (0.0, 0.0, 0.0))
    run("submit", "train", "tiny", "--name", "paris")
    installed.set_status("paris", jobDeploymentStatus="Running", jobStatus="RUNNING")
    write = storage.write_bytes

    def write_the_mark(url, data):
        write(url, data)
        installed.drop(r"(GET|DELETE) .*rayjobs/paris", times=6)  # one call alone gives up after four

    monkeypatch.setattr(storage, "write_bytes", write_the_mark)
    assert "did not end within 0 s and was ended hard" in run("stop", "paris", "--wait", "0")
    assert ("rayjobs", "paris") not in installed.objects


@pytest.mark.parametrize(
    ("status", "words", "said"),
    [
        ({"jobDeploymentStatus": "Initializing"}, (), "removed; nothing to save"),
        ({"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}, ("--now",), "grace period"),
        ({"jobDeploymentStatus": "Failed", "jobStatus": "FAILED"}, (), "has already ended"),
        (
            {"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"},
            ("--delete",),
            "had ended; its RayJob and pods are",
        ),
    ],
)
def test_stopping_does_what_the_state_allows(installed, status, words, said):
    run("submit", "train", "tiny", "--name", "paris")
    installed.set_status("paris", **status)
    assert said in run("stop", "paris", *words)
    assert (("rayjobs", "paris") in installed.objects) is ("already" in said)


def test_what_a_queue_never_admits_is_removed(installed):
    run("submit", "train", "tiny", "--name", "late")
    run("submit", "train", "tiny", "--name", "early")
    for name, born in (("late", "2020-01-01T00:00:00Z"), ("early", "2099-01-01T00:00:00Z")):
        job = installed.objects["rayjobs", name]
        job["metadata"]["annotations"]["inpaint/queue-seconds"] = "60"
        job["metadata"]["creationTimestamp"] = born
        job["spec"]["suspend"] = True
        job["status"] = {"jobDeploymentStatus": "Suspended"}
    assert json.loads(run("jobs", "expire", "--dry-run", "--json")) == {"overdue": ["late"], "removed": False}
    assert run("jobs", "expire") == "late: not admitted in time; removed\n"
    assert {name for kind, name in installed.objects if kind == "rayjobs"} == {"early"}


def test_the_helm_test_passes_where_everything_is_there_and_names_what_is_not(installed, tmp_path):
    assert "inpaint-runtime: image inpaint:0.1.0, groups cpu, gpu, gpu-spot; 0 RayJobs" in selftest.check_cluster(
        "training", "inpaint-runtime"
    )
    assert "written, read and deleted" in selftest.check_store(str(tmp_path / "store"))
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    with pytest.raises(InpaintError, match="INPAINT_ROOT is empty"):
        selftest.check_store("")
    installed.fail(r"GET .*rayjobs", 403, "rayjobs.ray.io is forbidden", reason="Forbidden")
    with pytest.raises(InpaintError, match="submitter role"):
        selftest.check_cluster("training", "inpaint-runtime")


def test_submitting_needs_neither_torch_nor_ray():
    """On a laptop with the light half: the heavy modules are made to fail on import."""
    code = (
        "import sys\n"
        "for name in ('torch', 'ray', 'numpy', 'wandb', 'torchvision', 'PIL'): sys.modules[name] = None\n"
        "from inpaint.cli import app\n"
        "sys.argv = ['inpaint', 'submit', 'train', 'tiny', '--root', 's3://a/b', '--dry-run',\n"
        "            '--runtime', sys.argv[1]]\n"
        "app()\n"
    )
    runtime = Path(__file__).with_name("empty_runtime.yaml")
    done = subprocess.run([sys.executable, "-c", code, str(runtime)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "kind: RayJob" in done.stdout


def test_the_stop_mark_is_where_workers_look(store):
    """The contract with the training loop: `<run>/stop`."""
    from ray_jobs.stopping import STOP_MARK

    assert STOP_MARK == "stop"
    assert storage.join("s3://lab/inpaint/runs/paris", STOP_MARK) == "s3://lab/inpaint/runs/paris/stop"
