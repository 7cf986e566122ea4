"""What must hold of every pod template, whoever made it. Used on manifests and on the rendered chart."""

import re

RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}
UNITS = {"": 1, "m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def check_pod(template):
    """Assert PodSecurity `restricted`, equal memory, shared memory inside, places to write."""
    pod = template["spec"]
    containers = pod["containers"] + pod.get("initContainers", [])
    for container in containers:
        context = container["securityContext"]
        assert {key: context.get(key) for key in RESTRICTED} == RESTRICTED, container["name"]
        assert context["runAsUser"] > 0
        resources = container["resources"]
        assert resources["requests"]["memory"] == resources["limits"]["memory"], container["name"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert not any(pod.get(field) for field in ("hostNetwork", "hostPID", "hostIPC"))
    allowed = {
        "configMap",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
        "downwardAPI",
        "csi",
    }
    assert all(set(volume) - {"name"} <= allowed for volume in pod["volumes"])
    mounted = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    assert {"/tmp", "/home/inpaint"} <= set(mounted)
    names = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for each in containers for mount in each.get("volumeMounts", [])} <= names
    if "/dev/shm" in mounted:
        (shm,) = [volume for volume in pod["volumes"] if volume["name"] == mounted["/dev/shm"]]
        assert shm["emptyDir"]["medium"] == "Memory"
        assert size(shm["emptyDir"]["sizeLimit"]) < size(pod["containers"][0]["resources"]["limits"]["memory"])
    check_env(pod)
    check_labels(template)


def check_grace(template, *, checkpoint_seconds):
    """Assert that a Ray pod's grace period is longer than Ray's drain and a checkpoint together."""
    pod = template["spec"]
    env = {entry["name"]: entry.get("value") for entry in pod["containers"][0]["env"]}
    drain = float(env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
    hook = pod["containers"][0].get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [""])[-1]
    sleeps = sum(map(int, re.findall(r"sleep (\d+)", hook)))
    assert pod["terminationGracePeriodSeconds"] > drain + max(checkpoint_seconds, sleeps)


def check_env(pod):
    """Assert that nothing secret by name has a value written out."""
    for container in pod["containers"]:
        for entry in container.get("env", []):
            if re.search(r"PASSWORD|SECRET|TOKEN|API_KEY|ACCESS_KEY", entry["name"]):
                assert "value" not in entry, entry["name"]
                assert "secretKeyRef" in entry["valueFrom"]


def check_labels(template):
    """Assert the common labels, and none that the operator owns."""
    labels = template["metadata"]["labels"]
    assert {"app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/component"} <= set(labels)
    assert not any(label.startswith("ray.io/") for label in labels)


def size(quantity):
    """Bytes of a quantity."""
    number, unit = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", quantity).groups()
    return float(number) * UNITS[unit]


def pod_templates(job):
    """(name, template) of every pod that a RayJob or RayCluster makes."""
    spec = job["spec"].get("rayClusterSpec", job["spec"])
    yield "head", spec["headGroupSpec"]["template"]
    for group in spec["workerGroupSpecs"]:
        yield group["groupName"], group["template"]
    if "submitterPodTemplate" in job["spec"]:
        yield "submitter", job["spec"]["submitterPodTemplate"]
