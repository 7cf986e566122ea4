"""The chart rendered by Helm's own library over all value files: invariants, schema, the runtime it writes, guards."""

import json
import re
import shutil
from pathlib import Path

import helm_python
import kubernetes_validate
import pytest

from inpaint.cluster.manifest import build
from inpaint.cluster.runtime import Runtime
from inpaint.cluster.secrets import find_secrets
from inpaint.cluster.task import train_task
from inpaint.config import load_run
from tests.chart import ALL, CHART, VALUE_FILES, chart, merged, of_kind, render, rendered, runtime_of, values_of
from tests.cluster.api_server import ApiServer
from tests.cluster.invariants import check_env, check_grace, check_labels, check_pod, pod_templates

OF_A_RUN = ("run-file", "stop")  # volumes that no standing cluster has
CUSTOM = ("RayCluster", "RayJob", "PodMonitor", "PrometheusRule")  # not built into Kubernetes


@pytest.mark.parametrize("name", ALL)
def test_lint_finds_nothing(name):
    report = helm_python.lint(str(CHART), values_of(name), strict=True, kube_version="v1.36.0")
    assert [message for message in report["messages"] if message["severity"] > 1] == []


@pytest.mark.parametrize("name", ALL)
def test_built_in_objects_are_valid_for_kubernetes(name):
    for item in rendered(name)[0]:
        if item["kind"] not in CUSTOM:
            kubernetes_validate.validate(item, "1.36", strict=True)


@pytest.mark.parametrize("name", ALL)
def test_objects_carry_the_common_labels_and_short_names(name):
    for item in rendered(name)[0]:
        metadata = item["metadata"]
        if metadata["name"] == "site-notes":  # an extra object is taken as it is
            continue
        labels = metadata["labels"]
        assert labels["app.kubernetes.io/name"] == "inpaint"
        assert labels["app.kubernetes.io/instance"] == "inpaint"
        assert labels["app.kubernetes.io/managed-by"] == "Helm"
        assert labels["helm.sh/chart"] == "inpaint-0.1.0"
        assert metadata["namespace"] == "training"
        assert len(metadata["name"]) <= 47


@pytest.mark.parametrize("name", ALL)
def test_every_pod_of_the_chart_is_restricted(name):
    seen = 0
    for item in rendered(name)[0]:
        if item["kind"] == "RayCluster":
            for _, template in pod_templates(item):
                check_pod(template)
                check_grace(template, checkpoint_seconds=60)
                seen += 1
        elif item["kind"] in ("Pod", "CronJob"):
            template = item if item["kind"] == "Pod" else item["spec"]["jobTemplate"]["spec"]["template"]
            check_pod({"metadata": template["metadata"], "spec": template["spec"]})
            seen += 1
    assert seen >= 1  # the helm test at least


@pytest.mark.parametrize("name", ALL)
def test_a_run_under_the_rendered_runtime_is_restricted(name):
    runtime = runtime_of(rendered(name)[0])
    run = load_run("tiny", name="x", root="/store/x" if runtime.store.existing_claim else "s3://lab/x",
                   assignments=["data.cache_gib=4"])  # fmt: skip
    job = build(train_task(run), runtime, namespace="training").job
    for pod, template in pod_templates(job):
        if name != "extras" or pod == "head":  # the site's own containers state what they like
            check_pod(template)
        check_env(template["spec"])
        check_labels(template)


@pytest.mark.parametrize("name", ALL)
def test_no_secret_is_written_out(name):
    objects, notes = rendered(name)
    assert list(find_secrets(objects)) == []
    assert list(find_secrets(notes)) == []


def test_the_default_runtime_is_the_one_that_python_assumes():
    assert runtime_of(rendered("default")[0]) == Runtime()


def test_every_runtime_value_of_values_yaml_reaches_the_runtime():
    """A value that the runtime does not carry would have no effect on runs."""
    runtime = runtime_of(rendered("default")[0]).model_dump(by_alias=True)
    values = merged({})
    for group in ("store", "s3", "wandb", "head", "timeouts", "retries", "retention", "shutdown", "autoscaler"):
        assert set(values[group]) == set(runtime[group]), group
    assert set(values["workerGroups"]["gpu"]) == set(runtime["workerGroups"]["gpu"])
    assert set(values["queue"]) - set(runtime["queue"]) == {"cleanUpSchedule"}


def test_service_accounts_and_the_role_are_least():
    objects, _ = rendered("default")
    accounts = of_kind(objects, "ServiceAccount")
    assert set(accounts) == {"inpaint-head", "inpaint-worker", "inpaint-submitter"}
    assert all(account["automountServiceAccountToken"] is False for account in accounts.values())
    (role,) = of_kind(objects, "Role").values()
    allowed = {resource: set(rule["verbs"]) for rule in role["rules"] for resource in rule["resources"]}
    assert allowed == {
        "rayjobs": {"get", "list", "watch", "create", "patch", "delete"},
        "rayclusters": {"get", "list", "watch"},
        "pods": {"get", "list", "watch"},
        "events": {"get", "list", "watch"},
        "pods/log": {"get"},
        "configmaps": {"get", "list", "create", "delete"},
    }
    assert not of_kind(objects, "ClusterRole")
    assert not of_kind(objects, "ClusterRoleBinding")


def test_people_get_the_role_by_name_and_cloud_roles_by_annotation():
    (binding,) = of_kind(rendered("extras")[0], "RoleBinding").values()
    assert {"kind": "Group", "name": "researchers", "apiGroup": "rbac.authorization.k8s.io"} in binding["subjects"]
    accounts = of_kind(rendered("cloud-identity")[0], "ServiceAccount")
    assert set(accounts) == {"inpaint-head", "inpaint-worker"}  # the submitter's is somebody else's
    assert "eks.amazonaws.com/role-arn" in accounts["inpaint-worker"]["metadata"]["annotations"]
    assert runtime_of(rendered("cloud-identity")[0]).service_accounts.submitter == "build-robot"


def test_no_head_may_be_evicted_and_workers_by_choice():
    (budget,) = of_kind(rendered("default")[0], "PodDisruptionBudget").values()
    assert budget["spec"]["minAvailable"] == 10000
    assert budget["spec"]["selector"]["matchLabels"]["app.kubernetes.io/component"] == "head"
    budgets = of_kind(rendered("small")[0], "PodDisruptionBudget")
    assert budgets["inpaint-worker"]["spec"]["selector"]["matchLabels"]["inpaint/spot"] == "false"


def test_gauges_of_dashboard_and_alerts_are_those_that_training_exports():
    """Ray puts `ray_` before the names that a program gives."""
    exported = {
        "step", "images_per_second", "data_wait_share", "checkpoint_age_seconds", "preemptions_total",
    }  # fmt: skip
    objects, _ = rendered("monitoring")
    (board,) = [item for item in objects if "inpaint-training.json" in item.get("data", {})]
    dashboard = json.loads(board["data"]["inpaint-training.json"])
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    (rules,) = of_kind(objects, "PrometheusRule").values()
    alerts = [rule["expr"] for group in rules["spec"]["groups"] for rule in group["rules"]]
    assert set(re.findall(r"ray_inpaint_(\w+)", " ".join(queries))) == exported
    assert set(re.findall(r"ray_inpaint_(\w+)", " ".join(alerts))) <= exported
    assert board["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert "changes(ray_inpaint_step[15m]) == 0" in alerts
    (monitor,) = of_kind(objects, "PodMonitor").values()
    assert monitor["spec"]["podMetricsEndpoints"][0]["port"] == "metrics"


def test_alerts_keep_prometheus_own_placeholders():
    (rules,) = of_kind(rendered("monitoring")[0], "PrometheusRule").values()
    summaries = [rule["annotations"]["summary"] for group in rules["spec"]["groups"] for rule in group["rules"]]
    assert "Run {{ $labels.run }} has made no step for 15 minutes." in summaries


def test_helm_test_runs_our_image_as_the_submitter():
    (pod,) = of_kind(rendered("s3-secret")[0], "Pod").values()
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    (container,) = pod["spec"]["containers"]
    assert container["image"] == "inpaint:0.1.0"
    assert container["command"][:3] == ["python", "-m", "inpaint.cluster.selftest"]
    assert "--store" in container["command"]
    assert pod["spec"]["serviceAccountName"] == "inpaint-submitter"
    assert pod["spec"]["automountServiceAccountToken"] is True
    (without,) = of_kind(rendered("default")[0], "Pod").values()
    assert "--store" not in without["spec"]["containers"][0]["command"]  # there is no store to reach


def test_kueue_gets_a_clean_up_of_what_it_never_admits():
    (cron,) = of_kind(rendered("kueue")[0], "CronJob").values()
    container = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]
    assert container["command"] == ["inpaint", "jobs", "expire"]
    assert not of_kind(rendered("default")[0], "CronJob")


@pytest.mark.parametrize("values", [{}, {"workerGroups": {"cpu": {"cache": {"size": "9Gi", "storageClass": "fast"}}}}])
@pytest.mark.parametrize("name", ["standing-cluster", "shared-volume", "s3-secret", "extras", "scheduling"])
def test_the_standing_cluster_has_the_pods_that_a_run_would_get(name, values):
    values = {**values_of(name), **values, "standingCluster": {"enabled": True, "replicas": {"cpu": 1}}}
    objects, _ = render(values)
    (standing,) = of_kind(objects, "RayCluster").values()
    runtime = runtime_of(objects)
    root = "/store/x" if runtime.store.existing_claim else "s3://lab/x"
    run = load_run("tiny", name="x", root=root, assignments=["data.cache_gib=4"])
    job = build(train_task(run), runtime, namespace="training").job

    ours, theirs = dict(pod_templates(job)), dict(pod_templates(standing))
    for pod in ("head", "cpu"):
        assert plain(theirs[pod]) == plain(ours[pod])


def plain(template):
    """A pod template without what only a run's has: its file, its driver's log, its labels; lists by name."""
    pod = {**template["spec"]}
    pod["containers"] = [each for each in pod["containers"] if each["name"] != "driver-log"]
    pod["volumes"] = sorted(
        (each for each in pod["volumes"] if each["name"] not in OF_A_RUN), key=lambda volume: volume["name"]
    )
    first = {**pod["containers"][0]}
    first["volumeMounts"] = sorted(
        (each for each in first["volumeMounts"] if each["name"] not in OF_A_RUN), key=lambda mount: mount["name"]
    )
    first["env"] = sorted(first["env"], key=lambda entry: entry["name"])
    first["resources"] = {
        side: {key: str(float(value)) if key == "cpu" else value for key, value in sizes.items()}
        for side, sizes in first["resources"].items()
    }
    pod["containers"] = [first, *pod["containers"][1:]]
    labels = {
        key: value for key, value in template["metadata"]["labels"].items()
        if key not in ("inpaint/run", "inpaint/kind", "app.kubernetes.io/managed-by")
    }  # fmt: skip
    return {"labels": labels, "annotations": template["metadata"].get("annotations", {}), "pod": pod}


@pytest.mark.parametrize("name", ALL)
def test_nothing_is_null(name):
    """A key without a value is refused by the server's schemas of RayCluster and RayJob."""

    def empty(item, path):
        children = item.items() if isinstance(item, dict) else enumerate(item) if isinstance(item, list) else ()
        for key, child in children:
            yield from [f"{path}.{key}"] if child is None else empty(child, f"{path}.{key}")

    objects, _ = rendered(name)
    assert [path for item in objects for path in empty(item, item["kind"])] == []


def test_a_spot_group_of_the_standing_cluster_drains():
    (standing,) = of_kind(rendered("standing-cluster")[0], "RayCluster").values()
    spot = dict(pod_templates(standing))["gpu-spot"]["spec"]["containers"][0]
    assert "--deadline-remaining-seconds 120; sleep 60" in spot["lifecycle"]["preStop"]["exec"]["command"][-1]
    assert spot["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_a_standing_group_that_does_not_exist_is_refused():
    values = {"standingCluster": {"enabled": True, "replicas": {"tpu": 1}}}
    with pytest.raises(helm_python.HelmRenderError, match=r"standingCluster.replicas.tpu is not a group"):
        chart().render(values, name="inpaint", namespace="training")


@pytest.fixture
def refusal(tmp_path):
    """What Helm itself says when it installs into a server that knows some kinds; its schemas are never published."""

    def install(values, kinds):
        api = ApiServer()
        api.kinds = {"v1": ["Pod", "ConfigMap"], **kinds}
        known = Path.home() / ".kube" / "cache" / "discovery" / f"127.0.0.1_{api.http.server_port}"
        shutil.rmtree(known, ignore_errors=True)  # Helm remembers the kinds of a server by its address
        config = helm_python.Config(kubeconfig_path=api.write_kubeconfig(tmp_path / "config"), namespace="training")
        try:
            with pytest.raises(helm_python.HelmReleaseError) as error:
                config.install(str(CHART), "inpaint", values, dry_run="server", namespace="training", timeout=20)
        finally:
            api.close()
            shutil.rmtree(known, ignore_errors=True)
        return str(error.value)

    return install


def test_a_cluster_without_kuberay_is_refused_with_a_sentence(refusal):
    sentence = "this cluster does not know RayJob (ray.io/v1): install the KubeRay operator 1.7 first"
    assert sentence in refusal({}, {})
    assert sentence not in refusal({}, {"ray.io/v1": ["RayJob", "RayCluster"]})
    assert sentence not in refusal({"kuberay": {"check": False}}, {})


def test_monitoring_without_its_operator_is_refused_with_a_sentence(refusal):
    values = {"metrics": {"podMonitor": {"enabled": True}}}
    known = {"ray.io/v1": ["RayJob"]}
    assert "this cluster does not know PodMonitor" in refusal(values, known)
    assert "PodMonitor" not in refusal(values, known | {"monitoring.coreos.com/v1": ["PodMonitor"]})


def test_the_crds_of_kuberay_are_not_bundled():
    assert not list(CHART.rglob("crds"))
    assert not [item for name in ALL for item in rendered(name)[0] if item["kind"] == "CustomResourceDefinition"]


def test_names_stay_short_and_follow_the_overrides():
    for values in ({"fullnameOverride": "n" * 60}, {"nameOverride": "m" * 60}):
        for item in render(values)[0]:
            assert len(item["metadata"]["name"]) <= 53
    objects, notes = render({"fullnameOverride": "lab"})
    assert "lab-runtime" in of_kind(objects, "ConfigMap")
    assert "--runtime lab-runtime" in notes


def test_each_feature_has_its_own_values_file():
    for name, path in VALUE_FILES.items():
        assert path.read_text().startswith("# "), name
        assert runtime_of(rendered(name)[0])
