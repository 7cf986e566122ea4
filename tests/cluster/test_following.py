"""Watching, logs from wherever they still are, and stopping: against an API server that drops, expires and forgets."""

import itertools
import json
import time
from datetime import UTC, datetime, timedelta

import pytest

from inpaint import storage
from inpaint.cluster import client
from inpaint.cluster.following import StoreReader, ask_to_stop, follow_logs, parse_progress, read_logs, resolve, summary
from inpaint.cluster.pods import DRIVER_LOG
from inpaint.cluster.refusals import Unavailable
from inpaint.cluster.submission import submit
from inpaint.cluster.task import STOP_FILE
from inpaint.config import list_presets, load_run
from inpaint.errors import ClusterError, StorageError
from tests.cluster.objects import lines, pod


@pytest.fixture
def job(cluster, make_manifests):
    submit(cluster, make_manifests())
    return cluster.find_job("paris")


def test_a_watch_outlives_a_dropped_connection_and_an_expired_version(api, cluster, job):
    seen = cluster.watch_jobs(every_seconds=1)
    assert [len(jobs) for jobs in itertools.islice(seen, 1)] == [1]

    api.set_status("paris", jobDeploymentStatus="Initializing")
    assert next(seen)[0]["status"]["jobDeploymentStatus"] == "Initializing"
    api.drop("WATCH")
    api.set_status("paris", jobDeploymentStatus="Running")
    assert next(jobs for jobs in seen if jobs[0]["status"]["jobDeploymentStatus"] == "Running")
    api.fail("WATCH", 410, "too old resource version", reason="Expired")
    api.set_status("paris", jobDeploymentStatus="Complete")
    assert next(jobs for jobs in seen if jobs[0]["status"]["jobDeploymentStatus"] == "Complete")
    api.remove("rayjobs", "paris")
    assert next(jobs for jobs in seen if jobs == []) == []


AWAY = 6  # connections that are cut; one call alone gives up after four


@pytest.fixture
def _short_pauses(monkeypatch):
    monkeypatch.setattr(client, "PAUSES_SECONDS", (0.0, 0.0, 0.0))


@pytest.mark.usefixtures("_short_pauses")
def test_a_watch_outlives_a_server_that_is_away(api, cluster, job):
    seen = cluster.watch_jobs(every_seconds=0.1)
    next(seen)
    api.drop("WATCH")
    api.drop(r"GET .*rayjobs\?", times=AWAY)
    api.set_status("paris", jobDeploymentStatus="Running")
    assert next(jobs for jobs in seen if jobs[0].get("status"))[0]["status"]["jobDeploymentStatus"] == "Running"
    assert next(jobs for jobs in seen if not api.faults)


def test_a_server_that_is_never_there_is_not_waited_for(api, cluster):
    api.drop(r"GET .*rayjobs\?", times=AWAY)
    with pytest.raises(Unavailable, match=f"cannot list RayJobs: no answer from {api.url}"):
        next(cluster.watch_jobs(every_seconds=0.1))


@pytest.mark.usefixtures("_short_pauses")
def test_following_outlives_a_server_that_is_away(api, cluster, job):
    api.put("pods", pod("paris-1", "submitter"))
    api.logs["paris-1", "ray-job-submitter"] = lines("one")
    api.set_status("paris", jobDeploymentStatus="Running", jobStatus="RUNNING")
    follow = follow_logs(cluster, job, pause_seconds=0.01)
    assert next(follow) == "one"
    api.logs["paris-1", "ray-job-submitter"] += lines("two", start=1)
    api.drop(r"GET .*pods\?", times=AWAY)
    api.drop(r"GET .*/log\?", times=AWAY)
    api.drop(r"GET .*rayjobs/paris", times=AWAY)
    assert next(follow) == "two"
    assert api.faults == []


def test_a_watch_that_is_forbidden_ends_with_a_sentence(api, cluster, job):
    seen = cluster.watch_jobs(every_seconds=1)
    next(seen)
    api.fail(r"watch=true", 403, "rayjobs is forbidden", reason="Forbidden")
    with pytest.raises(ClusterError, match="submitter role"):
        next(seen)


def test_logs_come_from_the_newest_submitter(api, cluster, job):
    for name in ("paris-1", "paris-2"):
        api.put("pods", pod(name, "submitter") | {"metadata": {**pod(name, "submitter")["metadata"],
                                                  "creationTimestamp": f"2026-11-21T12:0{name[-1]}:00Z"}})  # fmt: skip
        api.logs[name, "ray-job-submitter"] = lines(f"from {name}")
    assert list(read_logs(cluster, job)) == ["from paris-2"]


def test_logs_fall_back_to_the_head_and_then_to_the_store(api, cluster, job, store):
    api.put("pods", pod("head", "head"))
    api.logs["head", DRIVER_LOG] = lines("from the head")
    assert list(read_logs(cluster, job)) == ["from the head"]

    api.remove("pods", "head")
    with pytest.raises(ClusterError, match="paris has no log yet; `inpaint jobs show paris` says what it waits for"):
        list(read_logs(cluster, job))
    job["status"] = {"jobStatus": "RUNNING"}
    with pytest.raises(
        ClusterError, match="its pods are gone or have not started, and s3://lab/inpaint/runs/paris/logs is"
    ):
        list(read_logs(cluster, job))
    (store / "logs").mkdir(parents=True)
    (store / "logs" / "driver-0.log").write_text("from the store\n")
    assert list(read_logs(cluster, job))[1:] == ["from the store"]
    assert list(read_logs(cluster, job, tail_lines=1)) == ["from the store"]


def test_following_goes_on_after_a_cut_and_in_a_new_submitter_without_repeating(api, cluster, job):
    api.put("pods", pod("paris-1", "submitter"))
    api.logs["paris-1", "ray-job-submitter"] = lines("one", "two")
    api.set_status("paris", jobDeploymentStatus="Running", jobStatus="RUNNING")
    told = []
    follow = follow_logs(cluster, job, pause_seconds=0.01, tell=told.append)

    assert list(itertools.islice(follow, 2)) == ["one", "two"]
    api.logs["paris-1", "ray-job-submitter"] += lines("three", start=2)  # the stream ended; it is taken up again
    assert next(follow) == "three"
    api.put("pods", pod("paris-2", "submitter") | {"metadata": {**pod("paris-2", "submitter")["metadata"],
                                                   "creationTimestamp": "2099-01-01T00:00:00Z"}})  # fmt: skip
    api.logs["paris-2", "ray-job-submitter"] = lines("four")  # the head was lost: a new submitter, from its first line
    assert next(follow) == "four"
    assert told == ["paris: the log goes on in paris-2"]
    api.set_status("paris", jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    assert list(follow) == []


def test_following_waits_for_the_submitter_instead_of_giving_the_heads_lines_first(api, cluster, job):
    api.put("pods", pod("head", "head"))
    api.logs["head", DRIVER_LOG] = lines("one")
    api.set_status("paris", jobDeploymentStatus="Initializing")

    def tell(text):
        told.append(text)
        api.put("pods", pod("paris-1", "submitter"))
        api.logs["paris-1", "ray-job-submitter"] = lines("one", "two")
        api.set_status("paris", jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")

    told = []
    assert list(follow_logs(cluster, job, pause_seconds=0.01, tell=tell)) == ["one", "two"]
    assert told == ["paris has not started yet; `inpaint jobs show paris` says what it waits for"]


def test_following_reads_the_head_of_a_run_whose_submitter_is_gone(api, cluster, job):
    api.put("pods", pod("head", "head"))
    api.logs["head", DRIVER_LOG] = lines("one")
    api.set_status("paris", jobDeploymentStatus="Running", jobStatus="RUNNING")
    assert next(follow_logs(cluster, job, pause_seconds=0.01)) == "one"


def test_following_a_run_that_ended_before_gives_what_is_stored(api, cluster, job, store):
    (store / "logs").mkdir(parents=True)
    (store / "logs" / "driver-0.log").write_text("last words\n")
    api.set_status("paris", jobDeploymentStatus="Failed", jobStatus="FAILED")
    assert list(follow_logs(cluster, job, pause_seconds=0.01))[1:] == ["last words"]


def test_progress_is_read_from_the_newest_line_and_the_store():
    text = (
        "1970-01-01T00:16:20Z INFO x\n1970-01-01T00:16:30Z step 10/400 images_per_second=50.5 psnr=20.1\n"
        "1970-01-01T00:16:35Z a node goes away; checkpoint at step 15, starting again\n"
        "1970-01-01T00:16:40.123456789Z step 20/400 stage=texture images_per_second=80.25 checkpoint_age_seconds=30\n"
        "1970-01-01T00:17:40Z other\n"
    )
    found = parse_progress(text, checkpoint=None)
    assert (found.step, found.total_steps, found.stage, found.images_per_second) == (20, 400, "texture", 80.25)
    assert (found.checkpoint_time, found.preemptions) == (pytest.approx(970.123456, abs=1e-6), 1)
    found = parse_progress(text, checkpoint=(15, 900.0))
    assert (found.checkpoint_step, found.checkpoint_time) == (15, 900.0)
    assert parse_progress("", checkpoint=None).step is None


STAGES = sorted({stage for preset in list_presets() for stage in load_run(preset).stages})


@pytest.mark.parametrize("stage", STAGES)
def test_progress_of_every_stage_of_every_preset_is_read(stage):
    """A name that begins as a number does (edge) is not taken for one."""
    text = f"1970-01-01T00:16:40Z step 20/400 stage={stage} images_per_second=8.025e+01 checkpoint_age_seconds=30"
    found = parse_progress(text, checkpoint=None)
    assert (found.stage, found.images_per_second, found.checkpoint_time) == (stage, 80.25, 970.0)


@pytest.mark.parametrize("said", ["e", "-", ".", "+.e1", "1e", "1.5x", "nan", "inf", "1.2.3", "", "1e999"])
def test_what_is_no_finite_number_in_a_progress_line_is_left_out(said):
    found = parse_progress(f"1970-01-01T00:16:40Z step 20/400 images_per_second={said} x=1", checkpoint=None)
    assert (found.step, found.images_per_second) == (20, None)


@pytest.mark.parametrize(
    ("said", "number"), [("12", 12.0), ("12.", 12.0), (".5", 0.5), ("-3e-05", -3e-5), ("+1E2", 100.0)]
)
def test_every_way_to_write_a_number_in_a_progress_line_is_read(said, number):
    text = f"1970-01-01T00:16:40Z step 20/400 images_per_second={said}"
    assert parse_progress(text, checkpoint=None).images_per_second == number


@pytest.mark.parametrize(
    ("stamp", "written"),  # 10:00:00 UTC on 2026-11-21 is 1795255200
    [
        ("2026-11-21T18:00:00.5+08:00", 1795255200.5),
        ("2026-11-21T05:00:00-05:00", 1795255200.0),
        ("2026-11-21T10:00:00.250000000Z", 1795255200.25),
        ("2026-11-21T15:30:00.123456789+05:30", 1795255200.123456),
        ("2026-11-32T10:00:00Z", None),
        ("20261121", None),
    ],
)
def test_the_time_of_a_line_is_read_in_the_zone_of_its_node(stamp, written):
    found = parse_progress(f"{stamp} step 20/400 checkpoint_age_seconds=0", checkpoint=None)
    assert found.checkpoint_time == (written if written is None else pytest.approx(written, abs=1e-6))


def test_only_a_whole_checkpoint_counts(store):
    for step, whole in ((100, True), (200, False)):
        folder = store / "checkpoints" / f"{step:010d}"
        folder.mkdir(parents=True)
        (folder / "trainer.pt").write_text("x")
        if whole:
            (folder / "manifest.json").write_text("{}")
    step, written = StoreReader().newest_checkpoint("s3://lab/inpaint/runs/paris")
    assert step == 100
    assert abs(written - time.time()) < 60


def test_a_store_that_does_not_answer_is_asked_once(monkeypatch):
    asked = []
    monkeypatch.setattr(storage, "list_folders", lambda url: asked.append(url) or time.sleep(0.5) or [])
    reader = StoreReader(patience_seconds=0.05)
    assert [reader.newest_checkpoint(f"s3://lab/{name}") for name in "ab"] == [None, None]
    assert asked == ["s3://lab/a/checkpoints"]


def test_what_ended_a_task_for_good_is_read_from_its_folder_only_for_that_task(api, cluster, job, store):
    store.mkdir(parents=True)
    (store / "verdict.json").write_text(json.dumps({"task": job["metadata"]["uid"], "message": "no shards"}))
    api.set_status("paris", jobDeploymentStatus="Retrying", failed=1)

    about = summary(cluster, cluster.find_job("paris"), StoreReader())
    assert (about.state, about.progress.verdict) == ("failing", "no shards")

    (store / "verdict.json").write_text(json.dumps({"task": "an earlier RayJob's", "message": "no shards"}))
    assert summary(cluster, cluster.find_job("paris"), StoreReader()).state == "retrying"


def quota_event(name, about, told, minutes=0):
    stamp = (datetime.now(UTC) + timedelta(minutes=minutes)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"metadata": {"name": name}, "type": "Warning", "reason": "FailedCreate",
            "message": f"exceeded quota: {told}",
            "involvedObject": {"name": about}, "lastTimestamp": stamp}  # fmt: skip


def test_a_summary_puts_all_of_it_together(api, cluster, job):
    api.put("rayclusters", {"metadata": {"name": "paris-abc"}, "spec": {}})
    api.put("pods", pod("paris-1", "submitter"))
    api.put("pods", pod("paris-abc-head", "head"))
    for event in (quota_event("e1", "paris-abc", "q", 1), quota_event("e2", "parisian", "of another run", 1),
                  quota_event("e3", "paris-old", "of an earlier job", -60)):  # fmt: skip
        api.put("events", event)
    api.logs["paris-1", "ray-job-submitter"] = lines("step 7/400 images_per_second=3.5")
    api.set_status("paris", jobDeploymentStatus="Running", jobStatus="RUNNING", rayClusterName="paris-abc")
    held = "the namespace's quota is used up: q; wait, or ask for more"

    about = summary(cluster, cluster.find_job("paris"), StoreReader(patience_seconds=0.2))
    assert (about.state, about.detail, about.holds) == ("waiting", held, (held,))
    assert (about.workers_ready, about.workers_wanted) == (0, 1)
    assert (about.progress.step, about.progress.images_per_second) == (7, 3.5)

    api.put("pods", pod("paris-abc-w", "worker"))  # there was room after all; the event stays for an hour
    about = summary(cluster, cluster.find_job("paris"), StoreReader(patience_seconds=0.2))
    assert (about.state, about.holds, about.workers_ready) == ("running", (), 1)


def test_stopping_writes_the_mark_that_workers_look_for(api, cluster, job, store):
    ask_to_stop(cluster, job)
    assert (store / "stop").is_file()
    assert "inpaint/stop-asked" in api.objects["rayjobs", "paris"]["metadata"]["annotations"]


def test_a_store_that_this_machine_cannot_write_is_replaced_by_a_mark_in_the_pods(api, cluster, job, monkeypatch):
    def refused(url, data):
        raise StorageError(f"{url}: access denied")

    monkeypatch.setattr(storage, "write_bytes", refused)
    assert "through a ConfigMap" in ask_to_stop(cluster, job)
    mark = api.objects["configmaps", "paris-stop"]
    assert list(mark["data"]) == ["stop"]
    assert mark["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"]
    assert "through a ConfigMap" in ask_to_stop(cluster, job)  # asked again: the mark stays


def test_every_ray_pod_would_see_that_mark(job):
    spec = job["spec"]["rayClusterSpec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (volume,) = [each for each in pod["volumes"] if each["name"] == "stop"]
        assert volume["configMap"] == {"name": "paris-stop", "optional": True}
        assert STOP_FILE.rpartition("/")[0] in [each["mountPath"] for each in pod["containers"][0]["volumeMounts"]]


def test_a_mark_of_an_earlier_job_does_not_stop_the_next(api, cluster, job, make_manifests):
    cluster.put_stop_mark("paris-stop", owner=job | {"metadata": job["metadata"] | {"uid": "earlier"}})
    api.set_status("paris", jobDeploymentStatus="Failed", jobStatus="FAILED")
    assert submit(cluster, make_manifests()).result == "resumed"
    assert ("configmaps", "paris-stop") not in api.objects


def test_a_run_is_found_by_its_name_or_its_jobs(api, cluster, job):
    api.put(
        "rayjobs",
        {"metadata": {"name": "s-sweep", "labels": {"inpaint/run": "s", "inpaint/kind": "sweep"}}, "spec": {}},
    )
    assert resolve(cluster, "s")["metadata"]["name"] == resolve(cluster, "s-sweep")["metadata"]["name"] == "s-sweep"
    with pytest.raises(ClusterError, match="no run rome in namespace training; there: paris, s-sweep"):
        resolve(cluster, "rome")
