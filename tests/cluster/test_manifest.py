"""One RayJob and one ConfigMap from a run and a runtime; the invariants over many runtimes."""

import copy
import json
import os
from pathlib import Path

import pytest
import yaml

from inpaint.cluster.manifest import build
from inpaint.cluster.rules import violations
from inpaint.cluster.runtime import Runtime
from inpaint.cluster.task import evaluation_task, shards_task, sweep_task, train_task
from inpaint.config import load_run
from inpaint.config.evaluation import EvaluationRequest
from inpaint.config.run import ResourcesConfig
from inpaint.config.sweep import SweepConfig
from inpaint.errors import ClusterError, ConfigError
from tests.cluster.invariants import check_grace, check_pod, pod_templates

SMALL = {"memory": "1Mi"}
RUNTIMES = {
    "default": {},
    "http": {"submissionMode": "HTTPMode"},
    "kueue": {"queue": {"kind": "kueue", "name": "gpus"}},
    "volcano": {"queue": {"kind": "volcano", "name": "gpus"}},
    "autoscaler": {"autoscaler": {"enabled": True}},
    "claim": {"store": {"root": "/store/x", "existingClaim": "shared"}},
    "gateway": {
        "s3": {"endpoint": "https://s3.lab:9000", "existingSecret": "keys", "caBundleConfigMap": "ca"},
        "wandb": {"existingSecret": "wandb"},
    },
    "site": {
        "head": {"sidecars": [{"name": "s", "image": "i", "resources": {"requests": SMALL, "limits": SMALL}}]},
        "shutdown": {"drainSeconds": 10, "checkpointSeconds": 200},
        "image": {"reference": "r@sha256:" + "0" * 64, "pullSecrets": ["pull"]},
    },
}  # fmt: skip
GPU = ("resources.gpus_per_worker=1", "resources.cpus_per_worker=4", "training.global_batch=8")


def job_of(task, runtime=None, **options):
    return build(task, runtime or Runtime(), namespace="training", **options).job


def tiny(*settings, name="paris"):
    return train_task(load_run("tiny", name=name, root="s3://lab/inpaint", assignments=settings))


@pytest.mark.parametrize("runtime", RUNTIMES.values(), ids=RUNTIMES)
@pytest.mark.parametrize(("settings", "spot"), [((), False), (GPU, False), (GPU, True)], ids=["cpu", "gpu", "spot"])
def test_every_pod_is_restricted_and_has_time_to_save(runtime, settings, spot):
    runtime = Runtime.model_validate(runtime)
    job = job_of(tiny(*settings), runtime, spot=spot)

    assert violations(job) == []
    for name, template in pod_templates(job):
        check_pod(template)
        if name != "submitter":
            check_grace(template, checkpoint_seconds=runtime.shutdown.checkpoint_seconds)


def test_the_file_in_the_config_map_is_the_run(make_run):
    run = make_run("paris", "training.global_batch=16")
    manifests = build(train_task(run), Runtime(), namespace="training")

    assert yaml.safe_load(manifests.config_map["data"]["run.yaml"]) == run.to_dict()
    assert manifests.config_map["immutable"] is True
    assert manifests.job["spec"]["entrypoint"] == "python -m ray_jobs.train /etc/inpaint/run.yaml"


def test_yaml_has_no_anchors_and_reads_back_as_the_same_objects(make_manifests):
    manifests = make_manifests()
    text = manifests.to_yaml()

    assert "&id" not in text
    assert "*id" not in text
    assert list(yaml.safe_load_all(text)) == [manifests.config_map, manifests.job]


def test_two_builds_share_nothing(make_manifests):
    one, other = make_manifests(), make_manifests()
    before = copy.deepcopy(other.job)
    one.job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["volumes"].clear()
    assert other.job == before


def test_the_head_trains_nothing_and_asks_for_a_token():
    cluster = job_of(tiny())["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == "2.60.0"


@pytest.mark.parametrize(
    ("workers", "gpus_of_a_pod", "pods"),
    [(1, 1, 1), (4, 1, 4), (4, 4, 1), (6, 4, 2)],
)
def test_pods_are_as_many_as_the_workers_need(workers, gpus_of_a_pod, pods):
    runtime = Runtime.model_validate(
        {"workerGroups": {"gpu": {"gpus": gpus_of_a_pod, "cpus": 32, "memory": "64Gi", "shm": "8Gi"}}}
    )
    settings = ("resources.gpus_per_worker=1", f"training.global_batch={workers}", f"resources.num_workers={workers}")
    (group,) = job_of(tiny(*settings), runtime)["spec"]["rayClusterSpec"]["workerGroupSpecs"]

    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (pods, pods, pods)
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == str(gpus_of_a_pod)


def test_half_gpus_share_one():
    runtime = Runtime.model_validate({"workerGroups": {"gpu": {"gpus": 1, "cpus": 8, "memory": "9Gi", "shm": "1Gi"}}})
    job = job_of(tiny("resources.gpus_per_worker=0.5", "resources.num_workers=4"), runtime)
    assert job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] == 2


def test_the_group_with_the_fewest_idle_gpus_is_chosen():
    shape = {"cpus": 32, "memory": "64Gi", "shm": "8Gi"}
    runtime = Runtime.model_validate({"workerGroups": {"big": {"gpus": 8, **shape}, "one": {"gpus": 1, **shape}}})
    groups = {
        count: job_of(
            tiny("resources.gpus_per_worker=1", f"resources.num_workers={count}", f"training.global_batch={count}"),
            runtime,
        )["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["groupName"]
        for count in (1, 8)
    }  # fmt: skip
    assert groups == {1: "one", 8: "big"}  # 8 of 8 GPUs in one pod rather than eight pods


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        (("resources.gpus_per_worker=2",), {}, "gpu: has 1 GPUs a pod"),
        (("resources.cpus_per_worker=64",), {}, "cpu: has 4 CPUs a pod"),
        (("resources.num_workers=40", "training.global_batch=40"), {}, "10 pods are more than maxReplicas 8"),
        ((), {"spot": True}, "cpu: is not a spot group"),
        ((), {"group": "gpu"}, "is kept for GPU work"),
        ((), {"group": "tpu"}, "groups: cpu, gpu, gpu-spot"),
        (("data.cache_gib=100",), {}, "a cache of 60Gi, less than data.cache_gib 100"),
    ],
)
def test_what_no_group_can_hold_is_refused_with_the_reason(settings, options, message):
    with pytest.raises(ClusterError, match=message):
        job_of(tiny(*settings), **options)


def test_spot_workers_drain_before_they_go_and_may_be_evicted():
    groups = {}
    for spot in (False, True):
        job = job_of(tiny(*GPU), spot=spot)
        groups[spot] = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]

    hook = groups[True]["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
    assert "ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION" in hook
    assert "--deadline-remaining-seconds 120; sleep 60" in hook
    assert "lifecycle" not in groups[False]["spec"]["containers"][0]
    keep = "cluster-autoscaler.kubernetes.io/safe-to-evict"
    assert groups[False]["metadata"]["annotations"][keep] == "false"
    assert keep not in groups[True]["metadata"].get("annotations", {})


def test_an_end_frees_the_workers_at_once_and_keeps_a_failed_head():
    rules = job_of(tiny())["spec"]["deletionStrategy"]["deletionRules"]
    waits = {
        (rule["policy"], rule["condition"].get("jobStatus") or rule["condition"]["jobDeploymentStatus"]): rule[
            "condition"
        ]["ttlSeconds"]
        for rule in rules
    }
    assert waits["DeleteWorkers", "Failed"] == waits["DeleteWorkers", "SUCCEEDED"] == 0
    assert waits["DeleteCluster", "Failed"] == 3600


def test_kueue_gets_a_suspended_job_of_fixed_size_and_a_limit_for_waiting():
    runtime = Runtime.model_validate({"queue": {"kind": "kueue", "name": "gpus"}, "timeouts": {"queueSeconds": 60}})
    job = job_of(tiny(), runtime)
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert job["metadata"]["annotations"]["inpaint/queue-seconds"] == "60"
    assert job["spec"]["suspend"] is True
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    assert "deletionStrategy" not in job["spec"]


def test_volcano_gets_its_label():
    job = job_of(tiny(), Runtime.model_validate({"queue": {"kind": "volcano", "name": "gpus"}}))
    assert job["metadata"]["labels"]["volcano.sh/queue-name"] == "gpus"


def test_the_autoscaler_starts_at_none_and_is_restricted_too():
    spec = job_of(tiny(), Runtime.model_validate({"autoscaler": {"enabled": True}}))["spec"]["rayClusterSpec"]
    group = spec["workerGroupSpecs"][0]
    assert (group["minReplicas"], group["maxReplicas"]) == (0, 1)
    assert spec["autoscalerOptions"]["securityContext"]["readOnlyRootFilesystem"] is True
    assert {mount["mountPath"] for mount in spec["autoscalerOptions"]["volumeMounts"]} == {"/tmp", "/home/inpaint"}
    ray, log = spec["headGroupSpec"]["template"]["spec"]["containers"]  # both see the folder the operator shares
    for container in (ray, log):
        assert {"name": "ray-logs", "mountPath": "/tmp/ray"} in container["volumeMounts"]
    assert spec["headGroupSpec"]["template"]["spec"]["automountServiceAccountToken"] is True


def test_what_a_worker_keeps_lies_on_its_cache_volume():
    """Shards, compiled code and weights: all below the folder that the cache volume is mounted at."""
    worker = dict(pod_templates(job_of(tiny())))["cpu"]["spec"]
    env = {entry["name"]: entry["value"] for entry in worker["containers"][0]["env"]}
    assert {"name": "cache", "mountPath": "/cache"} in worker["containers"][0]["volumeMounts"]
    for name in ("TMPDIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "NUMBA_CACHE_DIR", "TORCH_HOME"):
        assert env[name].startswith("/cache")
    assert env["RAY_TMPDIR"] == "/tmp"


@pytest.mark.parametrize("name", ["head", "cpu"])
def test_of_trains_settings_a_pod_has_those_that_the_chart_has_values_for(name):
    """The others have their home in `ray_jobs.runtime`, which leaves alone what it finds in the environment."""
    runtime = Runtime.model_validate({"timeouts": {"workerStartSeconds": 77, "collectiveSeconds": 88}})
    pod = dict(pod_templates(job_of(tiny(), runtime)))[name]["spec"]
    train = {entry["name"]: entry["value"] for entry in pod["containers"][0]["env"] if "RAY_TRAIN" in entry["name"]}
    assert train == {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "77", "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "88"}


def test_only_the_head_of_an_autoscaler_gets_an_api_token():
    for _, template in pod_templates(job_of(tiny())):
        assert template["spec"]["automountServiceAccountToken"] is False


def test_secrets_are_named_and_only_where_they_are_needed():
    runtime = Runtime.model_validate({"s3": {"existingSecret": "keys"}, "wandb": {"existingSecret": "wandb"}})
    named = {}
    for name, template in pod_templates(job_of(tiny(), runtime)):
        env = template["spec"]["containers"][0]["env"]
        named[name] = {
            entry["name"]: entry["valueFrom"]["secretKeyRef"]["name"] for entry in env if "valueFrom" in entry
        }
    assert named["head"] == named["cpu"] == {
        "AWS_ACCESS_KEY_ID": "keys", "AWS_SECRET_ACCESS_KEY": "keys", "WANDB_API_KEY": "wandb",
    }  # fmt: skip
    assert named["submitter"] == {}


@pytest.mark.parametrize(
    "runtime",
    [
        {"env": {"WANDB_API_KEY": "x" * 40}},
        {"head": {"extraEnv": [{"name": "HF_TOKEN", "value": "abc"}]}},
        {"env": {"PROXY": "http://user:pw@proxy:3128"}},
    ],
)
def test_a_secret_written_into_a_pod_is_refused(runtime):
    with pytest.raises(ConfigError, match="looks like a"):
        job_of(tiny(), Runtime.model_validate(runtime))


def test_every_setting_of_a_shape_reaches_its_pod():
    shape = {
        "nodeSelector": {"pool": "a"}, "tolerations": [{"key": "t"}], "affinity": {"nodeAffinity": {}},
        "topologySpreadConstraints": [{"maxSkew": 1}], "priorityClassName": "high", "schedulerName": "other",
        "runtimeClassName": "nvidia", "extraVolumes": [{"name": "v", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "v", "mountPath": "/v"}], "extraEnv": [{"name": "A", "value": "1"}],
        "extraEnvFrom": [{"secretRef": {"name": "s"}}], "labels": {"team": "x"}, "annotations": {"note": "y"},
        "initContainers": [{"name": "i", "image": "i"}], "sidecars": [{"name": "side", "image": "i"}],
    }  # fmt: skip
    runtime = Runtime.model_validate(
        {"head": shape, "submitter": shape,
         "workerGroups": {"cpu": {"cpus": 2, "memory": "4Gi", "shm": "1Gi", **shape}}}
    )  # fmt: skip
    for name, template in pod_templates(job_of(tiny(), runtime)):
        pod, metadata = template["spec"], template["metadata"]
        for field in ("nodeSelector", "tolerations", "affinity", "topologySpreadConstraints", "priorityClassName",
                      "schedulerName", "runtimeClassName"):  # fmt: skip
            assert pod[field] == shape[field], (name, field)
        assert metadata["labels"]["team"] == "x"
        assert metadata["annotations"]["note"] == "y"
        assert shape["extraVolumes"][0] in pod["volumes"]
        first = pod["containers"][0]
        assert shape["extraVolumeMounts"][0] in first["volumeMounts"]
        assert shape["extraEnv"][0] in first["env"]
        assert first["envFrom"] == shape["extraEnvFrom"]
        assert "side" in [each["name"] for each in pod["containers"]]
        assert pod["initContainers"][0]["name"] == "i"


def test_the_longest_names_still_fit_kuberay():
    for task in (
        tiny(name="r" * 40),
        shards_task(("s3://a/b.tar", "s3://c/d/e"), name="r" * 40, root="s3://c", workers=1),
        evaluation_task(EvaluationRequest(subject="r" * 40, root="s3://c"), ResourcesConfig()),
    ):
        assert len(job_of(task)["metadata"]["name"]) <= 47


def test_a_sweep_of_several_workers_gets_slots_for_its_drivers():
    sweep = SweepConfig(
        name="s", preset="tiny", metrics={"psnr": "max"}, trials=4, vary={"training.ema": {"choice": [0.9, 0.99]}},
        settings={"resources.num_workers": 2, "resources.gpus_per_worker": 1},
    )  # fmt: skip
    job = job_of(sweep_task(sweep, root="s3://lab/x", concurrent=3))
    groups = {g["groupName"]: g["replicas"] for g in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]}
    assert groups == {"gpu": 6, "cpu": 1}  # 3 trials × 2 GPUs; 3 drivers on one pod of 4 cores
    assert job["spec"]["entrypoint"] == "python -m ray_jobs.tune /etc/inpaint/run.yaml --root s3://lab/x"
    assert job["metadata"]["name"] == "s-sweep"


@pytest.mark.parametrize(("cpus", "fits"), [(4, False), (3.9, True)])
def test_workers_that_fill_their_pod_leave_no_core_for_a_trials_driver(cpus, fits):
    """Two workers of 4 CPUs and 1 GPU on a pod of 8 and 2: the running sweep would count none, for its drivers."""
    sweep = SweepConfig(
        name="s", preset="tiny", metrics={"psnr": "max"}, trials=4, vary={"training.ema": {"choice": [0.9, 0.99]}},
        settings={"resources.num_workers": 2, "resources.gpus_per_worker": 1, "resources.cpus_per_worker": cpus},
    )  # fmt: skip
    runtime = Runtime.model_validate({"worker_groups": {
        "gpu": {"cpus": 8, "gpus": 2, "memory": "16Gi", "max_replicas": 8}, "cpu": {"cpus": 4, "memory": "16Gi"},
    }})  # fmt: skip
    task = sweep_task(sweep, root="s3://lab/x", concurrent=1)
    if fits:
        assert job_of(task, runtime=runtime)
        return
    with pytest.raises(ClusterError, match="2 workers of 4 CPUs fill the 8 of a pod, and each trial's driver takes"):
        job_of(task, runtime=runtime)


def test_an_evaluation_carries_its_request():
    task = evaluation_task(EvaluationRequest(subject="paris", best="psnr", root="s3://lab/x"), ResourcesConfig())
    manifests = build(task, Runtime(), namespace="training")
    assert yaml.safe_load(manifests.config_map["data"]["run.yaml"])["request"]["best"] == "psnr"
    assert manifests.job["metadata"]["name"] == "paris-eval"
    assert manifests.job["spec"]["entrypoint"] == "python -m ray_jobs.evaluate /etc/inpaint/run.yaml"


@pytest.mark.parametrize("word", ["s3://a/b; rm -rf x", "$(id)", "a b", "`id`", "x'y", 'x"y', "a|b", "a&b", "a>b", "*"])
def test_a_word_that_a_shell_would_read_is_refused(word):
    with pytest.raises(ConfigError, match="shell"):
        job_of(shards_task((word, "s3://c/d/e"), name="x", root="s3://c", workers=1))


def test_the_digest_forgets_only_what_a_resumed_run_may_change():
    base = tiny().digest
    assert tiny("resources.num_workers=4").digest == base
    assert tiny("tracking.project=other").digest == base
    assert tiny("data.cache_gib=1").digest == base  # as the run's own folder has it
    assert tiny("seed=1").digest != base
    assert tiny("method.weights.l1=2").digest != base


@pytest.mark.skipif(not os.environ.get("INPAINT_KUBERAY_CRDS"), reason="INPAINT_KUBERAY_CRDS names no folder of CRDs")
@pytest.mark.parametrize("runtime", RUNTIMES.values(), ids=RUNTIMES)
def test_the_crd_of_kuberay_accepts_the_job(runtime):
    import jsonschema

    folder = Path(os.environ["INPAINT_KUBERAY_CRDS"])
    crd = yaml.load((folder / "ray.io_rayjobs.yaml").read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = [each for each in crd["spec"]["versions"] if each["name"] == "v1"]
    schema = _strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    job = job_of(tiny(), Runtime.model_validate(runtime))

    assert [error.message for error in jsonschema.Draft7Validator(schema).iter_errors(job)] == []
    job["spec"]["entryPoint"] = json.dumps(1)
    assert list(jsonschema.Draft7Validator(schema).iter_errors(job))


def _strict(node):
    """An OpenAPI v3 schema of a CRD as a JSON schema that refuses unknown fields, as the server does when strict."""
    if isinstance(node, list):
        return [_strict(each) for each in node]
    if not isinstance(node, dict):
        return node
    node = {key: value if key == "enum" else _strict(value) for key, value in node.items() if key != "default"}
    if node.pop("x-kubernetes-int-or-string", False):
        node = {key: value for key, value in node.items() if key not in ("type", "anyOf")} | {
            "type": ["integer", "string"]
        }
    keep = node.pop("x-kubernetes-preserve-unknown-fields", False)
    if node.pop("nullable", False) and "type" in node:
        node["type"] = [node["type"], "null"]
    if isinstance(node.get("properties"), dict) and not keep and node.get("type") == "object":
        node.setdefault("additionalProperties", False)
    return node


@pytest.mark.parametrize(
    ("request_", "url"),
    [
        ({"subject": "paris"}, "s3://lab/x/runs/paris/evaluations"),
        ({"subject": "s3://other/runs/paris"}, "s3://other/runs/paris/evaluations"),
        ({"subject": "s3://other/paris/checkpoints/0000000400"}, "s3://other/paris/evaluations"),
        ({"subject": "baseline:telea", "data": "s3://lab/x/shards/demo/test"}, "s3://lab/x/evaluations"),
        ({"subject": "paris", "out": "s3://lab/elsewhere"}, "s3://lab/elsewhere"),
    ],
)
def test_an_evaluation_names_the_folder_into_which_its_results_go(request_, url):
    request = EvaluationRequest(root="s3://lab/x/", **request_)
    assert evaluation_task(request, ResourcesConfig(), name="scores").url == url
