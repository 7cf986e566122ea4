"""Submitting against an API server with faults: checked first, created once, resumed or refused."""

import threading

import pytest

from inpaint.cluster.client import Cluster, connect
from inpaint.cluster.manifest import build
from inpaint.cluster.submission import submit
from inpaint.cluster.task import sweep_task
from inpaint.config.sweep import SweepConfig
from inpaint.errors import ClusterError, ConfigError

JOBS = "/apis/ray.io/v1/namespaces/training/rayjobs"
ALONE = {"resources.num_workers": 1, "resources.gpus_per_worker": 0}


def written(api):
    return [line for line in api.requests if not line.startswith("GET") and "dryRun" not in line]


def test_both_objects_are_judged_by_the_server_before_either_is_made(cluster, api, make_manifests):
    assert submit(cluster, make_manifests()).result == "created"

    posts = [line.split("?")[0] for line in api.requests if line.startswith("POST")]
    maps = "POST /api/v1/namespaces/training/configmaps"
    assert posts == [f"POST {JOBS}", maps, f"POST {JOBS}", maps]
    assert all("fieldValidation=Strict" in line for line in api.requests if line.startswith("POST"))
    assert ["dryRun=All" in line for line in api.requests if line.startswith("POST")] == [True, True, False, False]


def test_the_run_file_belongs_to_its_job(cluster, api, make_manifests):
    submit(cluster, make_manifests())
    (owner,) = api.objects["configmaps", "paris-run"]["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"]) == ("RayJob", api.objects["rayjobs", "paris"]["metadata"]["uid"])
    assert api.objects["configmaps", "paris-run"]["data"]["task"] == owner["uid"]  # which its pods read
    api.remove("rayjobs", "paris")
    assert api.objects == {}


def test_the_same_name_twice_is_one_run(cluster, api, make_manifests):
    submit(cluster, make_manifests())
    before = dict(api.objects)
    assert submit(cluster, make_manifests()).result == "running"
    assert api.objects == before


def test_two_at_once_make_one_run(kubeconfig, api, make_manifests):
    results, barrier = [], threading.Barrier(4)

    def work():
        barrier.wait()
        results.append(submit(connect(), make_manifests()).result)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["created", "running", "running", "running"]
    assert set(api.objects) == {("rayjobs", "paris"), ("configmaps", "paris-run")}


def test_other_settings_under_the_same_name_are_refused(cluster, api, make_manifests):
    submit(cluster, make_manifests())
    with pytest.raises(ClusterError, match="submitted with other settings.*--name.*seed is 0 there and 1 here"):
        submit(cluster, make_manifests("paris", "seed=1"))
    assert len([line for line in written(api) if line.startswith("POST")]) == 2


@pytest.mark.parametrize(
    ("deployment", "status", "trials", "result", "note"),
    [("Complete", "SUCCEEDED", 60, "resumed", ""), ("Complete", "SUCCEEDED", 50, "finished", ""),
     ("Running", "RUNNING", 60, "running", "it keeps to its 50 trials; submit it again when it has ended to make 60")],
)  # fmt: skip
def test_a_sweep_grows_under_its_name(cluster, api, runtime, deployment, status, trials, result, note):
    submit(cluster, search_manifests(runtime, trials=50))
    api.set_status("search-sweep", jobDeploymentStatus=deployment, jobStatus=status)
    outcome = submit(cluster, search_manifests(runtime, trials=trials, about="a longer look"), replace_seconds=2)
    assert (outcome.result, outcome.note) == (result, note)


def test_what_the_folder_of_a_sweep_refuses_is_refused_before_anything_is_sent(cluster, runtime):
    submit(cluster, search_manifests(runtime, trials=50))
    with pytest.raises(ClusterError, match="other settings.*preset is 'tiny' there and 'isnet-places2' here"):
        submit(cluster, search_manifests(runtime, trials=50, preset="isnet-places2"))


def search_manifests(runtime, **settings):
    plain = {"name": "search", "preset": "tiny", "metrics": {"psnr": "max"}, "settings": ALONE}
    vary = {"training.ema": {"choice": [0.9, 0.99]}}
    task = sweep_task(SweepConfig(**plain | {"vary": vary} | settings), root="s3://lab/x", concurrent=1)
    return build(task, runtime, namespace="training")


def test_more_workers_under_the_same_name_are_said_to_have_no_effect(cluster, make_manifests):
    submit(cluster, make_manifests())
    outcome = submit(cluster, make_manifests("paris", "resources.num_workers=8"))
    assert outcome.result == "running"
    assert outcome.note == "it keeps its workers (1 × cpu); stop it first to change them (2 × cpu)"


def test_submitting_what_kuberay_tries_again_says_that_it_has_failed(cluster, api, make_manifests):
    submit(cluster, make_manifests())
    api.set_status("paris", jobDeploymentStatus="Initializing", failed=1)
    outcome = submit(cluster, make_manifests())
    assert outcome.result == "running"
    assert outcome.note == "it has failed 1× and is tried again; see `inpaint jobs show paris`"


def test_a_job_of_somebody_else_keeps_its_name(cluster, api, make_manifests):
    api.put("rayjobs", {"metadata": {"name": "paris"}, "spec": {}})
    with pytest.raises(ClusterError, match="RayJob that inpaint did not make"):
        submit(cluster, make_manifests())


@pytest.mark.parametrize(
    ("deployment", "status", "result"),
    [("Failed", "FAILED", "resumed"), ("Complete", "STOPPED", "resumed"), ("ValidationFailed", "", "resumed"),
     ("Complete", "SUCCEEDED", "finished"), ("Running", "RUNNING", "running"), ("Retrying", "FAILED", "running"),
     ("Suspended", "", "running")],
)  # fmt: skip
def test_what_is_there_decides_what_happens(cluster, api, make_manifests, deployment, status, result):
    submit(cluster, make_manifests())
    old = api.objects["rayjobs", "paris"]["metadata"]["uid"]
    api.set_status("paris", jobDeploymentStatus=deployment, jobStatus=status)

    assert submit(cluster, make_manifests(), replace_seconds=2).result == result
    new = api.objects["rayjobs", "paris"]["metadata"]["uid"]
    assert (new != old) is (result == "resumed")
    assert api.objects["configmaps", "paris-run"]["metadata"]["ownerReferences"][0]["uid"] == new


def test_a_run_that_was_asked_to_stop_resumes(cluster, api, make_manifests):
    submit(cluster, make_manifests())
    cluster.annotate_job("paris", {"inpaint/stop-asked": "now"})
    api.set_status("paris", jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    assert submit(cluster, make_manifests(), replace_seconds=2).result == "resumed"


def test_a_submission_that_broke_off_in_the_middle_is_mended(cluster, api, make_manifests):
    submit(cluster, make_manifests())
    del api.objects["configmaps", "paris-run"]
    submit(cluster, make_manifests())
    assert ("configmaps", "paris-run") in api.objects


def test_no_job_is_left_when_its_file_cannot_be_made(cluster, api, make_manifests):
    api.fail(r"POST .*configmaps\?fieldManager", 403, "configmaps is forbidden: exceeded quota", reason="Forbidden")
    with pytest.raises(ClusterError, match="exceeded quota"):
        submit(cluster, make_manifests())
    assert api.objects == {}


def test_a_file_left_by_an_earlier_run_is_replaced(cluster, api, make_manifests):
    api.put("configmaps", {"metadata": {"name": "paris-run"}, "data": {"run.yaml": "old"}})
    submit(cluster, make_manifests())
    assert "name: paris" in api.objects["configmaps", "paris-run"]["data"]["run.yaml"]


def test_a_job_that_never_goes_away_is_said_so(cluster, api, make_manifests):
    submit(cluster, make_manifests())
    api.keep_deleted = True
    cluster.delete_job("paris")
    with pytest.raises(ClusterError, match="a pod or finalizer holds it"):
        submit(cluster, make_manifests(), replace_seconds=0.3)


@pytest.mark.parametrize(
    ("status", "reason", "message", "words"),
    [
        (422, "Invalid", "bad", "the server refuses spec.rayClusterSpec: must be set"),
        (403, "Forbidden", "rayjobs.ray.io is forbidden: User x cannot create", "ask for the chart's submitter role"),
        (401, "Unauthorized", "Unauthorized", "log in again"),
        (
            400,
            "BadRequest",
            'strict decoding error: unknown field "spec.entryPoint"',
            'unknown field "spec.entryPoint"',
        ),
    ],
)
def test_a_refusal_is_one_sentence(cluster, api, make_manifests, status, reason, message, words):
    causes = [{"field": "spec.rayClusterSpec", "message": "must be set"}] if status == 422 else []
    api.fail(r"POST .*rayjobs", status, message, reason=reason, causes=causes)
    with pytest.raises(ClusterError) as error:
        submit(cluster, make_manifests())
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert api.objects == {}


def test_a_typo_is_refused_by_the_server_and_not_dropped(cluster, api, make_manifests):
    manifests = make_manifests()
    manifests.job["spec"]["entryPoint"] = manifests.job["spec"].pop("entrypoint")
    with pytest.raises(ClusterError, match='unknown field "spec.entryPoint"'):
        submit(cluster, manifests)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(cluster, api, make_manifests, status):
    api.fail(r"POST .*rayjobs", status, "later", times=2)
    assert submit(cluster, make_manifests()).result == "created"


def test_a_server_that_stays_broken_is_given_up(cluster, api, make_manifests):
    api.fail(r"rayjobs", 500, "etcd is gone", times=4)
    with pytest.raises(ClusterError, match="answered 500: etcd is gone"):
        submit(cluster, make_manifests())


def test_a_creation_whose_answer_was_lost_is_not_made_twice(cluster, api, make_manifests):
    submit(cluster, make_manifests())  # it was made, and the answer lost: the next submission finds it
    api.fail(r"GET .*rayjobs/paris", 404, "not found", reason="NotFound", name="paris")
    assert submit(cluster, make_manifests()).result == "running"


@pytest.mark.parametrize("fault", ["drop", "lose"])
def test_a_cut_connection_is_made_anew_and_what_was_asked_for_is_done_once(cluster, api, make_manifests, fault):
    cut = getattr(api, fault)
    cut(r"POST .*rayjobs\?(?!.*dryRun)")
    cut(r"POST .*configmaps\?(?!.*dryRun)")
    assert submit(cluster, make_manifests()).name == "paris"
    job = api.objects["rayjobs", "paris"]
    assert api.objects["configmaps", "paris-run"]["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"]
    for method in ("GET", "PATCH", "DELETE"):
        cut(rf"{method} .*rayjobs/paris", times=2)
    assert cluster.find_job("paris")["metadata"]["uid"] == job["metadata"]["uid"]
    cluster.annotate_job("paris", {"a": "b"})
    assert api.objects["rayjobs", "paris"]["metadata"]["annotations"]["a"] == "b"
    cluster.delete_job("paris")
    assert ("rayjobs", "paris") not in api.objects
    assert api.faults == api.lost == []


def test_an_unreachable_server_is_named(monkeypatch, tmp_path, closed_port, api):
    path = api.write_kubeconfig(tmp_path / "config")
    path.write_text(path.read_text().replace(api.url, f"http://127.0.0.1:{closed_port}"))
    monkeypatch.setenv("KUBECONFIG", str(path))
    with pytest.raises(ClusterError, match=f"no answer from http://127.0.0.1:{closed_port}"):
        connect().find_job("x")


def test_without_any_cluster_the_ways_out_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ClusterError, match="set KUBECONFIG, choose --context, or use --address"):
        connect()


def test_an_unknown_context_is_refused(kubeconfig):
    with pytest.raises(ClusterError, match="nowhere"):
        connect(context="nowhere")


def test_a_cluster_without_kuberay_says_so(api, cluster):
    api.objects.clear()
    broken = Cluster(cluster._core.api_client, "training")
    api.fail(r"GET .*rayjobs", 404, "404 page not found")
    with pytest.raises(ClusterError, match="is the KubeRay operator"):
        broken.list_jobs()


def runtime_map(name, text="{}"):
    return {"metadata": {"name": name, "labels": {"inpaint/runtime": "true"}}, "data": {"runtime.yaml": text}}


def test_the_only_runtime_is_found_by_its_label(api, cluster):
    api.put("configmaps", {"metadata": {"name": "other"}, "data": {}})
    api.put("configmaps", runtime_map("inpaint-runtime", "rayVersion: 2.60.1"))
    assert cluster.read_runtime().ray_version == "2.60.1"


@pytest.mark.parametrize(
    ("names", "asked", "words"),
    [((), None, "install the chart"), (("a", "b"), None, "a, b for a runtime; give one with --runtime"),
     (("a",), "c", "runtime c is not in namespace training")],
)  # fmt: skip
def test_a_missing_or_doubtful_runtime_is_refused(api, cluster, names, asked, words):
    for name in names:
        api.put("configmaps", runtime_map(name))
    with pytest.raises(ClusterError, match=words):
        cluster.read_runtime(asked)


def test_a_broken_runtime_names_its_config_map(api, cluster):
    api.put("configmaps", runtime_map("inpaint-runtime", "head: {cpu: 1}"))
    with pytest.raises(ConfigError, match="ConfigMap inpaint-runtime: head.cpu"):
        cluster.read_runtime()
