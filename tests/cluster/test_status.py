"""States in plain words, also where KubeRay's own are contradictory; and why a run is stuck."""

from datetime import UTC, datetime, timedelta

import pytest

from inpaint.cluster.status import Progress, Seen, is_overdue, summarize
from inpaint.cluster.stuck import reasons

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


def at(minutes_ago):
    return (NOW - timedelta(minutes=minutes_ago)).strftime("%Y-%m-%dT%H:%M:%SZ")


def pod(name, node_type, *, ready=True, phase="Running", age=30, **status):
    condition = {"type": "Ready", "status": "True" if ready else "False"}
    metadata = {"name": name, "labels": {"ray.io/node-type": node_type}, "creationTimestamp": at(age)}
    return {"metadata": metadata, "status": {"phase": phase, "conditions": [condition], **status}}


def job(deployment="", status="", *, gpus=2, spec=None, annotations=None, labels=None, age=60, **more):
    template = {"spec": {"containers": [{"resources": {"limits": {"nvidia.com/gpu": str(gpus), "memory": "1Gi"}}}]}}
    return {
        "metadata": {"name": "paris", "creationTimestamp": at(age), "annotations": annotations or {},
                     "labels": {"inpaint/kind": "train", "inpaint/run": "paris"} | (labels or {})},
        "spec": {"rayClusterSpec": {"workerGroupSpecs": [{"groupName": "gpu", "maxReplicas": 2, "template": template}]}}
        | (spec or {}),
        "status": {"jobDeploymentStatus": deployment, "jobStatus": status, **more},
    }  # fmt: skip


HEAD, OLD_CLUSTER = pod("head", "head"), {"metadata": {"name": "c", "creationTimestamp": at(31)}}
AT_500 = Progress(step=500, total_steps=1000, checkpoint_step=400)


DOOMED = Progress(verdict="step 3: l1 is not finite")


def told(seen, progress=AT_500):
    summary = summarize(seen, progress, now=NOW)
    return summary.state, summary.detail, summary.finished


@pytest.mark.parametrize(
    ("seen", "state", "words", "finished"),
    [
        (Seen(job(age=0)), "accepted", "waiting for the KubeRay operator", False),
        (Seen(job(age=5)), "not seen", "no KubeRay operator has touched it", False),
        (Seen(job("ValidationFailed", message="RayJob name should be no more than 47 characters")), "refused",
         "will not look again: RayJob name", True),
        (Seen(job("Initializing")), "starting", "its Ray cluster is coming up", False),
        (Seen(job("Running", "")), "starting", "the head is not ready yet", False),
        (Seen(job("Running", "PENDING"), OLD_CLUSTER, [HEAD]), "starting", "hands it to the head", False),
        (Seen(job("Running", "RUNNING"), OLD_CLUSTER, [HEAD]), "running", "", False),
        # the head is gone, and KubeRay still says Running with failed 0
        (Seen(job("Running", "RUNNING", failed=0), OLD_CLUSTER, []), "head lost", "again from checkpoint 400", False),
        (Seen(job("Running", "RUNNING"), OLD_CLUSTER, [pod("head", "head", ready=False, phase="Pending")]), "head lost",
         "a new head is coming", False),
        # a new head runs the entry point from its first line, and KubeRay still says failed 0
        (Seen(job("Running", "RUNNING", failed=0), OLD_CLUSTER, [pod("head", "head", age=3)]), "running",
         "the head was lost and replaced; it runs again from checkpoint 400", False),
        (Seen(job("Running", "SUCCEEDED"), OLD_CLUSTER, [HEAD]), "finishing", "the submitter is about to end", False),
        (Seen(job("Retrying", "FAILED", failed=1)), "retrying", "attempt 2 starts on a new cluster", False),
        (Seen(job("Suspended")), "suspended", "spec.suspend is set", False),
        (Seen(job("Waiting")), "waiting", "InteractiveMode", False),
        # a job that a user stopped ends as Complete
        (Seen(job("Complete", "STOPPED")), "stopped", "KubeRay calls this Complete", True),
        (Seen(job("Complete", "STOPPED"), None, [HEAD]), "stopped", "its cluster still holds its pods", True),
        (Seen(job("Complete", "FAILED")), "failed", "the entry point failed at step 500", True),
        (Seen(job("Complete", "SUCCEEDED", annotations={"inpaint/stop-asked": "now"})), "stopped", "as `inpaint stop`",
         True),
        (Seen(job("Complete", "SUCCEEDED")), "stopped", "it ended at step 500 of 1,000", True),
        (Seen(job("Failed", "FAILED", reason="AppFailed", message="log\nTrainingError: loss is nan\n")), "failed",
         "the entry point failed: TrainingError: loss is nan", True),
        (Seen(job("Failed", "", reason="PreRunningDeadlineExceeded")), "failed", "preRunningDeadlineSeconds", True),
        (Seen(job("Failed", "RUNNING", reason="DeadlineExceeded")), "failed", "activeDeadlineSeconds", True),
        (Seen(job("Failed", "RUNNING", reason="SubmissionFailed"), None, [HEAD]), "failed",
         "driver may still run", True),
        (Seen(job("Failed", "SUCCEEDED", reason="SubmissionFailed")), "succeeded",
         "although KubeRay says Failed", True),
        (Seen(job("Teleporting")), "teleporting", "which this version does not know", False),
    ],
)  # fmt: skip
def test_a_state_is_told_truthfully(seen, state, words, finished):
    said = told(seen)
    assert said[0] == state
    assert words in said[1]
    assert said[2] is finished


def test_a_run_that_reached_its_last_step_succeeded():
    assert told(Seen(job("Complete", "SUCCEEDED")), Progress(step=1000, total_steps=1000)) == ("succeeded", "", True)


def test_being_deleted_is_said_whatever_else_is():
    doomed = job("Running", "RUNNING")
    doomed["metadata"]["deletionTimestamp"] = at(0)
    assert told(Seen(doomed))[0] == "stopping"


def test_waiting_in_a_queue_names_it_and_its_limit():
    labels, notes = {"kueue.x-k8s.io/queue-name": "gpus"}, {"inpaint/queue-seconds": "7200"}
    waiting = job("Suspended", spec={"suspend": True}, labels=labels, annotations=notes, age=60)
    late = job("Suspended", spec={"suspend": True}, labels=labels, annotations=notes, age=180)

    assert told(Seen(waiting)) == ("queued", "queue gpus has not admitted it; waiting for 1.0 h", False)
    assert "longer than its limit of 2.0 h" in told(Seen(late))[1]
    assert [is_overdue(each, now=NOW) for each in (waiting, late)] == [False, True]
    assert not is_overdue(job("Running", "RUNNING", annotations=notes, age=999), now=NOW)


def test_a_sequence_of_a_lost_head_never_looks_finished():
    """What a live control plane showed: the head is killed, a new submitter comes 20 s later, failed stays 0."""
    running, gone = job("Running", "RUNNING", failed=0), pod("head", "head", phase="Failed", ready=False)
    fresh = pod("head-2", "head", age=1)
    sequence = [
        (running, [HEAD]),
        (running, [gone]),
        (running, []),
        (running, [fresh]),
        (job("Complete", "SUCCEEDED"), []),
    ]
    states = [told(Seen(each, OLD_CLUSTER, pods), Progress(1000, 1000))[0] for each, pods in sequence]
    assert states == ["running", "head lost", "head lost", "running", "succeeded"]


def test_workers_gpus_and_hours_are_counted():
    pods = [HEAD, pod("w1", "worker"), pod("w2", "worker", ready=False)]
    summary = summarize(Seen(job("Running", "RUNNING", startTime=at(90)), OLD_CLUSTER, pods), Progress(), now=NOW)
    assert (summary.workers_ready, summary.workers_wanted) == (1, 2)
    assert summary.gpus == 4
    assert summary.gpu_hours == pytest.approx(6.0)  # 4 GPUs × 1.5 h
    ended = summarize(Seen(job("Failed", startTime=at(90), endTime=at(60))), Progress(), now=NOW)
    assert ended.gpu_hours == pytest.approx(2.0)  # 4 GPUs × 0.5 h


def unscheduled(message, reason="Unschedulable"):
    condition = {"type": "PodScheduled", "status": "False", "reason": reason, "message": message}
    return {"metadata": {"name": "w"}, "status": {"phase": "Pending", "conditions": [condition]}}


def waiting(reason, message="", **more):
    state = {"name": "ray", "image": "lab/x:1", "state": {"waiting": {"reason": reason, "message": message}}, **more}
    return {"metadata": {"name": "w"}, "status": {"containerStatuses": [state]}}


def event(message, reason="FailedCreate"):
    return {"type": "Warning", "reason": reason, "message": message, "lastTimestamp": at(1)}


@pytest.mark.parametrize(
    ("pods", "events", "words"),
    [
        ([unscheduled("0/5 nodes are available: 5 Insufficient nvidia.com/gpu.")], [],
         "no node has enough free nvidia.com/gpu (0/5 nodes"),
        ([unscheduled("0/5 nodes are available: 5 Insufficient nvidia.com/mig-1g.10gb. preempt")], [],
         "no node has enough free nvidia.com/mig-1g.10gb"),
        ([unscheduled("0/5 nodes are available: 2 node(s) had untolerated taint {a: b}")], [], "untolerated taint"),
        ([unscheduled("", "SchedulingGated")], [], "queue has not admitted"),
        ([waiting("ImagePullBackOff", "Back-off pulling image")], [], "cannot pull lab/x:1"),
        ([waiting("CreateContainerConfigError", 'secret "keys" not found')], [],
         'misses a Secret or ConfigMap: secret "keys"'),
        ([waiting("CrashLoopBackOff")], [], "keeps crashing"),
        ([waiting("", lastState={"terminated": {"reason": "OOMKilled"}})], [], "ran out of memory"),
        ([], [event('pods "x" is forbidden: exceeded quota: gpus, requested: 8, used: 4, limited: 8')],
         "quota is used up: gpus, requested: 8"),
        ([], [event('pods "x" is forbidden: violates PodSecurity "restricted:latest": allowPrivilegeEscalation')],
         'PodSecurity forbids a pod: "restricted:latest": allowPrivilegeEscalation'),
        ([], [event('configmap "x" not found', "FailedMount")], "a volume cannot be mounted"),
        ([], [event("RayJob name should be ...", "InvalidRayJobMetadata")], "KubeRay refuses the run"),
        ([], [event("admission webhook \"v\" denied the request: no")], "the cluster refuses a pod"),
        ([], [event("couldn't assign flavors to pod set main: insufficient quota for nvidia.com/gpu", "Pending")],
         "the queue has not admitted the run"),
    ],
)  # fmt: skip
def test_the_reason_for_being_stuck_is_named(pods, events, words):
    found = reasons(pods, events)
    assert len(found) == 1
    assert words in found[0]


def test_nothing_is_wrong_with_a_healthy_run():
    assert reasons([HEAD], [{"type": "Normal", "reason": "Created", "message": "is forbidden to nobody"}]) == []


@pytest.mark.parametrize("deployment", ["Retrying", "", "Initializing", "Running"])
def test_a_run_that_ended_for_good_says_why_while_kuberay_tries_it_on_a_new_cluster(deployment):
    state, detail, finished = told(Seen(job(deployment, failed=1)), DOOMED)
    assert (state, finished) == ("failing", False)
    assert detail.startswith("step 3: l1 is not finite (KubeRay's new cluster for it will end at once; `inpaint stop ")


def test_once_kuberay_has_given_up_its_own_message_is_told():
    failed = job("Failed", "FAILED", failed=3, reason="AppFailed", message="logs\ninpaint: step 3: l1 is not finite\n")
    assert told(Seen(failed), DOOMED) == (
        "failed", "the entry point failed: inpaint: step 3: l1 is not finite", True
    )  # fmt: skip
