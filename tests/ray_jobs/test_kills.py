"""A run that is killed at any moment and started again ends as if nothing had happened, byte for byte."""

import multiprocessing
import os
import random
import signal

import pytest

from inpaint import checkpoints, storage
from ray_jobs.session import PlainSession
from ray_jobs.toy import toy_run
from ray_jobs.worker import train
from tests.faulty_s3 import shared_server

CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(["ray_jobs.worker", "inpaint.evaluation.held_out"])
STEPS = "stages.gan.steps=24"


def start(run, *, die_at_write=None, **environment):
    child = CHILDREN.Process(target=_train, args=(run.to_dict(), die_at_write, environment))
    child.start()
    return child


def _train(values, die_at_write, environment):
    from inpaint.config import RunConfig

    os.environ |= environment
    if die_at_write is not None:
        _die_at(die_at_write)
    train(RunConfig.model_validate(values), PlainSession())


def _die_at(count):
    """Kill this process in the middle of its n-th write or deletion in the store: a write's bytes are half there."""
    from inpaint.storage import disk

    left = [count]

    def dying(name):
        original = getattr(disk, name)

        def operation(*arguments, **options):
            left[0] -= 1
            if left[0] < 0:
                if name == "upload":
                    target = storage.local_path(arguments[1])
                    target.parent.mkdir(parents=True, exist_ok=True)
                    half = arguments[0].read_bytes()
                    (target.parent / f".{target.name}.x.tmp").write_bytes(half[: len(half) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)

        setattr(disk, name, operation)

    for name in ("upload", "write_bytes", "delete", "delete_tree"):
        dying(name)


def outcome(url):
    last = checkpoints.latest(url)
    weights = {name: entry["sha256"] for name, entry in last.files.items() if name.startswith("networks/")}
    return storage.read_bytes(storage.join(url, "history.jsonl")), last.step, weights


@pytest.fixture(scope="module")
def undisturbed(shards, tmp_path_factory):
    root = tmp_path_factory.mktemp("undisturbed")
    (root / "shards").symlink_to(shards / "shards")
    run = toy_run(root, "calm", STEPS)
    child = start(run)
    child.join()
    assert child.exitcode == 0
    return outcome(run.url)


def test_a_run_killed_at_random_times_ends_byte_for_byte_as_an_undisturbed_one(root, undisturbed):
    run, times = toy_run(root, "killed", STEPS), random.Random(7)
    kills = 0
    for _ in range(6):
        child = start(run)
        child.join(times.uniform(0.5, 3.0))
        if child.exitcode is not None:
            break
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        kills += 1
    last = start(run)
    last.join()

    assert last.exitcode == 0
    assert kills >= 1
    assert outcome(run.url) == undisturbed


def test_a_run_killed_during_uploads_to_an_object_store_ends_the_same(shards, undisturbed, monkeypatch):
    """The store lives on while the run dies in the n-th object it puts there: weights, state, history, ..."""
    store = shared_server().forget()
    monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
    data = f"{shards}/shards/toy"
    run = toy_run("s3://lab/x", "uploaded", STEPS, f"data.train={data}/train", f"data.held_out={data}/test")
    starts = []

    for count in (4, 11, 16, 10**6):
        store.on_put = _after(count, lambda: os.kill(starts[-1].pid, signal.SIGKILL))
        starts.append(start(run, AWS_ENDPOINT_URL=store.url))
        starts[-1].join()
        store.on_put = lambda: None
    written = {key.split("/")[-2] for key in store.objects if key.endswith("trainer.pt")}

    assert [child.exitcode for child in starts] == [-signal.SIGKILL] * 3 + [0]
    assert written == {storage.name_of(info.url) for info in checkpoints.list_checkpoints(run.url)}
    assert outcome(run.url) == undisturbed


def _after(count, strike):
    """A function that strikes when it is called for the n-th time."""
    left = [count]

    def called():
        left[0] -= 1
        if left[0] == 0:
            strike()

    return called


@pytest.mark.parametrize("writes", [(2, 9, 12, 17), pytest.param(range(60), marks=pytest.mark.slow)])
def test_a_run_killed_in_the_middle_of_its_writes_ends_the_same(root, undisturbed, writes):
    """Each start dies in another write: of run.yaml, weights, state, history, manifest, or in a deletion."""
    run = toy_run(root, "torn", STEPS)
    seen = []
    for number in (*writes, 10**6):
        child = start(run, die_at_write=number)
        child.join()
        seen.append(child.exitcode)
        listed = checkpoints.list_checkpoints(run.url)
        for info in listed[-1:]:
            checkpoints.load_state(info.url)  # whatever is listed can be loaded
        if child.exitcode == 0:
            break

    assert seen[-1] == 0
    assert seen.count(-signal.SIGKILL) >= min(4, len(writes))
    assert outcome(run.url) == undisturbed
