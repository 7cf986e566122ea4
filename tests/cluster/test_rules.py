"""The rules of KubeRay 1.7's operator: a good job breaks none, and each bad one breaks its own.

Source: ray-operator/controllers/ray/utils/validation.go at v1.7.0.
"""

import copy

import pytest

from inpaint.cluster.rules import RULES, violations

POD = {"spec": {"containers": [{"name": "ray", "image": "i"}]}}
GROUP = {"groupName": "g", "replicas": 1, "minReplicas": 1, "maxReplicas": 1, "rayStartParams": {}, "template": POD}


def job(name="good", **spec):
    cluster = {
        "rayVersion": "2.60.0",
        "headGroupSpec": {"rayStartParams": {}, "template": POD},
        "workerGroupSpecs": [GROUP],
    }
    cluster = cluster | spec.pop("cluster", {})
    whole = {"entrypoint": "true", "rayClusterSpec": cluster} | spec
    return copy.deepcopy({"metadata": {"name": name}, "spec": {k: v for k, v in whole.items() if v is not None}})


def group(**fields):
    return {"workerGroupSpecs": [{k: v for k, v in (GROUP | fields).items() if v is not None}]}


def rules(*conditions):
    return {"deletionRules": [{"policy": policy, "condition": condition} for policy, condition in conditions]}


SCALING = {"enableInTreeAutoscaling": True}
FAILED, DONE = {"jobDeploymentStatus": "Failed"}, {"jobStatus": "SUCCEEDED"}
BAD = [
    (job("n" * 48), "has 48 characters"),
    (job("1st"), "not a DNS-1035 label"),
    (job("a.b"), "not a DNS-1035 label"),
    (job("ends-"), "not a DNS-1035 label"),
    (job("Upper"), "not a DNS-1035 label"),
    (job(submissionMode="Bogus"), "submissionMode Bogus"),
    (job(suspend=True), "suspend needs shutdownAfterJobFinishes"),
    (job(activeDeadlineSeconds=0), "activeDeadlineSeconds 0"),
    (job(preRunningDeadlineSeconds=-1), "preRunningDeadlineSeconds -1"),
    (job(backoffLimit=-1), "backoffLimit -1"),
    (job(ttlSecondsAfterFinished=5), "needs shutdownAfterJobFinishes"),
    (job(ttlSecondsAfterFinished=-5, shutdownAfterJobFinishes=True), "must not be negative"),
    (job(shutdownAfterJobFinishes=True, deletionStrategy=rules(("DeleteSelf", DONE))), "exclude each other"),
    (job(deletionStrategy={}), "needs deletionRules, or both"),
    (job(deletionStrategy={"onSuccess": {"policy": "DeleteSelf"}}), "needs deletionRules, or both"),
    (job(deletionStrategy=rules(("DeleteSelf", DONE)) | {"onSuccess": {}}), "exclude each other"),
    (job(deletionStrategy=rules(("DeleteSelf", {}))), "exactly one of jobStatus"),
    (job(deletionStrategy=rules(("DeleteSelf", DONE | FAILED))), "exactly one of jobStatus"),
    (job(deletionStrategy=rules(("DeleteSelf", DONE | {"ttlSeconds": -1}))), "negative ttlSeconds"),
    (job(deletionStrategy=rules(("DeleteSelf", DONE), ("DeleteSelf", DONE))), "repeats DeleteSelf"),
    (job(deletionStrategy=rules(("DeleteCluster", DONE), ("DeleteWorkers", DONE | {"ttlSeconds": 9}))),
     "must go before"),
    (job(deletionStrategy=rules(("DeleteSelf", FAILED), ("DeleteCluster", FAILED | {"ttlSeconds": 9}))),
     "must go before"),
    (job(deletionStrategy=rules(("DeleteWorkers", DONE)), cluster=SCALING), "not possible with the autoscaler"),
    (job(rayClusterSpec=None), "one of rayClusterSpec and clusterSelector"),
    (job(clusterSelector={"x": "y"}), "needs ray.io/cluster"),
    (job(clusterSelector={"ray.io/cluster": "c"}, suspend=True, shutdownAfterJobFinishes=True), "cannot be suspended"),
    (job(clusterSelector={"ray.io/cluster": "c"}, backoffLimit=1), "allows no backoffLimit"),
    (job(clusterSelector={"ray.io/cluster": "c"}, submissionMode="SidecarMode"), "not possible in SidecarMode"),
    (job(clusterSelector={"ray.io/cluster": "c"}, deletionStrategy=rules(("DeleteCluster", DONE))),
     "with clusterSelector"),
    (job(submissionMode="InteractiveMode", backoffLimit=1), "InteractiveMode allows no backoffLimit"),
    (job(submissionMode="SidecarMode", submitterPodTemplate=POD), "allows no submitterPodTemplate"),
    (job(submissionMode="SidecarMode", submitterConfig={}), "allows no submitterConfig"),
    (job(submissionMode="SidecarMode", cluster={"headGroupSpec": {"template": {"spec": POD["spec"] | {"restartPolicy":
     "Always"}}}}), "restartPolicy Never"),
    (job(submissionMode="SidecarMode", cluster={"headGroupSpec": {"template": {"spec": POD["spec"] | {"securityContext":
     {"runAsNonRoot": True}}}}}), "would stay Initializing"),
    (job(cluster={"authOptions": {"mode": "token", "enableK8sTokenAuth": True}}), "enableK8sTokenAuth"),
    (job(cluster={"authOptions": {"mode": "token"}, "rayVersion": "2.51.2"}), "2.52.0 or later"),
    (job(cluster={"authOptions": {"mode": "token"}, "rayVersion": ""}), "2.52.0 or later"),
    (job(cluster={"headGroupSpec": {"template": {"spec": {"containers": []}}}}), "head has no container"),
    (job(cluster=group(template={"spec": {"containers": []}})), "g has no container"),
    (job(cluster=group(minReplicas=None)), "needs minReplicas and maxReplicas"),
    (job(cluster=group(minReplicas=-1)), "negative replicas"),
    (job(cluster=group(minReplicas=3)), "minReplicas 3 above maxReplicas 1"),
    (job(cluster=group(rayStartParams={"num-cpus": "1"}, resources={"CPU": "1"})), "both in rayStartParams"),
    (job(cluster=group(rayStartParams={"labels": "a=b"})), "rayStartParams.labels"),
    (job(cluster=group(labels={"bad key": "x"})), "impossible key"),
    (job(cluster=group(labels={"key": "bad value"})), "impossible value"),
    (job(cluster=group(labels={"key": "v" * 64})), "impossible value"),
    (job(cluster=group(idleTimeoutSeconds=5)), "without autoscaler v2"),
    (job(cluster=group(idleTimeoutSeconds=-5) | SCALING), "negative idleTimeoutSeconds"),
    (job(cluster=group(priority=1)), "sets priority"),
    (job(cluster=group(priority=1) | SCALING | {"rayVersion": "2.55.0"}), "sets priority"),
    (job(cluster=group(suspend=True) | SCALING), "cannot be suspended"),
    (job(cluster=SCALING | {"autoscalerOptions": {"idleTimeoutSeconds": -1}}), "must not be negative"),
    (job(cluster=SCALING | {"autoscalerOptions": {"env": [{"name": "KUBERAY_GEN_AUTOSCALER_START_CMD"}]}}),
     "must not set"),
    (job(cluster=SCALING | group(template={"spec": POD["spec"] | {"restartPolicy": "Always"}})), "restartPolicy Never"),
    (job(cluster={"headGroupSpec": {"template": {"spec": {"containers": [{"env": [{"name": "RAY_REDIS_ADDRESS"}]}]}}}}),
     "needs gcsFaultToleranceOptions"),
    (job(cluster={"headGroupSpec": {"template": {"spec": {"containers": [{"env": [{"name": "REDIS_USERNAME"}]}]}}}}),
     "Redis user name"),
    (job(cluster={"headGroupSpec": {"template": {"spec": {"containers": [{"env": [
        {"name": "RAY_enable_autoscaler_v2", "value": "true"}]}]}}}}), "needs enableInTreeAutoscaling"),
    (job(cluster={"gcsFaultToleranceOptions": {"redisAddress": "r"}, "headGroupSpec": {"rayStartParams": {
        "redis-password": "x"}, "template": POD}}), "redis-password is set by gcsFaultToleranceOptions only"),
    (job(runtimeEnvYAML="a: [1"), "runtimeEnvYAML is not YAML"),
    (job(runtimeEnvYAML="- a"), "runtimeEnvYAML is not a mapping"),
    (job(cluster={"networkPolicy": {}}), "networkPolicy needs a feature gate"),
    (job(cluster={"tlsOptions": {}}), "tlsOptions needs a feature gate"),
    (job(cluster={"upgradeStrategy": {"type": "Recreate"}}), "upgradeStrategy"),
]  # fmt: skip
GOOD = [
    job("n" * 47),
    job(submissionMode="HTTPMode"),
    job(suspend=True, shutdownAfterJobFinishes=True, ttlSecondsAfterFinished=5),
    job(
        deletionStrategy=rules(
            ("DeleteWorkers", FAILED), ("DeleteCluster", FAILED | {"ttlSeconds": 9}), ("DeleteSelf", DONE)
        )
    ),
    job(deletionStrategy={"onSuccess": {"policy": "DeleteSelf"}, "onFailure": {"policy": "DeleteWorkers"}}),
    job(clusterSelector={"ray.io/cluster": "c"}, rayClusterSpec=None),
    job(cluster=group(idleTimeoutSeconds=5, priority=2, minReplicas=None) | SCALING),
    job(cluster={"authOptions": {"mode": "token"}, "rayVersion": "2.52.0"}),
]


@pytest.mark.parametrize("good", GOOD, ids=range(len(GOOD)))
def test_what_kuberay_takes_breaks_no_rule(good):
    assert violations(good) == []


@pytest.mark.parametrize(("bad", "sentence"), BAD, ids=[sentence for _, sentence in BAD])
def test_what_kuberay_refuses_is_said_in_a_sentence(bad, sentence):
    assert any(sentence in broken for broken in violations(bad)), violations(bad)


def test_every_rule_has_a_bad_case():
    idle = [rule.__name__ for rule in RULES if not any(list(rule(bad)) for bad, _ in BAD)]
    assert idle == []
