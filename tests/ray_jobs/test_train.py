"""The driver's loop: which ends of an attempt lead to another one, after how long, and which end the run."""

import signal
import subprocess
import sys
import time
import types

import pytest
import yaml

from inpaint import checkpoints
from inpaint.cluster.pods import head_template
from inpaint.cluster.runtime import Runtime, Shutdown
from inpaint.cluster.task import train_task
from inpaint.errors import DataError, StorageError, TrainingError
from ray_jobs import attempt, train
from ray_jobs.attempt import Attempt, Broken
from ray_jobs.session import PlainSession
from ray_jobs.signals import StopSignal
from ray_jobs.toy import toy_run
from ray_jobs.worker import train as train_here

FINISHED = {"step": 12, "reason": "finished"}


@pytest.fixture
def drive(root, monkeypatch):
    """Runs the driver over scripted attempts: a checkpoint's step, and then a result or an error.

    Returns:
        What it returned, the pauses it made in seconds, and its notes.
    """

    def drive(*script, stop_in_pause=False):
        steps, pauses, notes, script_left = [0], [], [], list(script)

        def make_attempt(self):
            step, end = script_left.pop(0)
            steps.append(step)
            if isinstance(end, Exception):
                raise end
            return end

        def rest(self, seconds):
            pauses.append(seconds)
            if stop_in_pause:
                self.wish.number = signal.SIGTERM

        monkeypatch.setattr(train._Driver, "_attempt", make_attempt)
        monkeypatch.setattr(train._Driver, "_checkpoint_step", lambda self: steps[-1])
        monkeypatch.setattr(train._Driver, "_rest", rest)
        return train.run_training(toy_run(root, "scripted"), on_note=notes.append), pauses, notes

    return drive


def test_a_broken_attempt_is_followed_by_another_after_ever_longer_pauses(drive):
    result, pauses, notes = drive(*[(0, Broken("Ray died"))] * 5, (12, FINISHED))

    assert result == FINISHED
    assert pauses == [2, 4, 8, 16, 32]
    assert notes[0] == "Ray died; going on from step 0 in 2 s"


def test_an_attempt_that_got_further_makes_the_next_pause_short_again(drive):
    script = [(0, Broken("x"))] * 4 + [(4, Broken("x")), (4, Broken("x")), (12, FINISHED)]

    assert drive(*script)[1] == [2, 4, 8, 16, 2, 4]


def test_too_many_attempts_that_get_no_further_end_the_run(drive):
    with pytest.raises(TrainingError, match="6 attempts in a row ended without a checkpoint, the last with Ray died"):
        drive(*[(0, Broken("Ray died"))] * 6)


def test_workers_that_fail_too_often_without_a_checkpoint_end_the_run_at_once(drive):
    with pytest.raises(TrainingError, match="workers failed 4 times without a checkpoint, at last with OSError: gone"):
        drive((0, Broken("OSError: gone", exhausted=True)))


def test_workers_that_failed_often_but_got_further_are_started_again(drive):
    assert drive((4, Broken("OSError: gone", exhausted=True)), (12, FINISHED))[0] == FINISHED


def test_a_store_that_is_away_between_two_attempts_is_waited_for(drive):
    assert drive((0, StorageError("away")), (0, StorageError("away")), (12, FINISHED))[1] == [2, 4]


def test_after_a_preemption_the_next_attempt_begins_at_once(drive):
    result, pauses, notes = drive((7, {"step": 7, "reason": "preempted"}), (12, FINISHED))

    assert (result, pauses) == (FINISHED, [])
    assert notes == ["a node goes away; checkpoint at step 7, starting again"]


def test_an_error_that_another_attempt_cannot_mend_ends_the_run(drive):
    with pytest.raises(TrainingError, match="not finite"):
        drive((0, TrainingError("not finite")))


def test_a_wish_to_stop_ends_the_pause_and_the_run(drive):
    result, _, _ = drive((4, Broken("x")), stop_in_pause=True)

    assert result == {"step": 4, "reason": "stopped", "signal": signal.SIGTERM}


def test_a_run_that_is_finished_starts_nothing(root, monkeypatch):
    run = toy_run(root, "done", "stages.gan.steps=4")
    train_here(run, PlainSession())
    monkeypatch.setattr(train, "Lease", None)

    result = train.run_training(run)

    assert (result["step"], result["reason"]) == (4, "finished")
    assert result["psnr"] == checkpoints.latest(run.url).metrics["psnr"]


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """Lets a small script stand in for the process of an attempt; gives the attempt."""

    def stand_in(script):
        begin = "import json, os, signal, sys, time\nsay = os.fdopen(int(sys.argv[1]), 'w', buffering=1)\n"
        (tmp_path / "process.py").write_text(begin + script)
        popen = subprocess.Popen

        def start(command, **options):
            return popen([sys.executable, str(tmp_path / "process.py"), command[-1]], **options)

        monkeypatch.setattr(attempt.subprocess, "Popen", start)
        return Attempt({"name": "x"}, None, "holder", {}, str(tmp_path / "log"))

    return stand_in


def make(attempt_made, wish=None, said=None):
    said = [] if said is None else said
    return attempt_made.make_apart(lambda *word: said.append(word), wish or StopSignal(), lambda: False)


def test_words_of_an_attempt_arrive_and_its_result_comes_back(stand_in):
    said = []
    script = "task = json.loads(sys.stdin.readline())\n" + "".join(
        f"print(json.dumps({word}), file=say)\n"
        for word in ('["note", task["run"]["name"]]', '["progress", {"step": 2}]', '["result", {"step": 12}]')
    )

    assert make(stand_in(script), said=said) == {"step": 12}
    assert said == [("note", "x"), ("progress", {"step": 2})]


@pytest.mark.parametrize(("end", "how"), [("os.abort()", "by SIGABRT"), ("sys.exit(3)", "with exit code 3")])
def test_an_attempt_whose_process_dies_is_broken_and_says_how(stand_in, end, how):
    with pytest.raises(Broken, match=f"the process that drove Ray ended {how}"):
        make(stand_in(f"print('[\"note\"', file=say, flush=True)\n{end}"))  # in the middle of a word


def test_a_wish_to_stop_reaches_the_process_of_the_attempt(stand_in):
    script = (
        "stop = []\nsignal.signal(signal.SIGTERM, lambda *_: stop.append(1))\n"
        "print(json.dumps(['note', 'up']), file=say)\n"
        "while not stop:\n    time.sleep(0.01)\nprint(json.dumps(['result', {'step': 5}]), file=say)\n"
    )
    wish = StopSignal()

    def ask(kind, value):  # once it listens
        wish.number = signal.SIGINT

    assert stand_in(script).make_apart(ask, wish, lambda: False) == {"step": 5}


class Channel:
    """Workers that say two things and heed nothing."""

    def __init__(self, failure=None):
        self.asked = []
        self.failure = lambda: failure

    def progress(self):
        return {"step": 3}

    def noted(self, number):
        return ["first", "second"][number] if number < 2 else None

    def ask_to_stop(self, reason):
        self.asked.append(reason)


def test_workers_that_do_not_stop_when_asked_are_ended_after_the_grace_period(root, monkeypatch):
    monkeypatch.setenv("RAY_JOB_STOP_WAIT_TIME_S", "0.4")  # half of it for the workers
    channel, said, wish = Channel(), [], StopSignal()
    wish.number = signal.SIGTERM
    endless = types.SimpleNamespace(wait=lambda seconds: time.sleep(0.02))

    with pytest.raises(TrainingError, match="endless did not stop within 0 s and was ended; its last checkpoint is"):
        attempt._watch(toy_run(root, "endless"), endless, channel, lambda *word: said.append(word), wish)

    assert channel.asked == ["stopped"]
    assert said[:3] == [("progress", {"step": 3}), ("note", "first"), ("note", "second")]
    assert len(said) == 4  # and that it stops; nothing is said twice


@pytest.mark.parametrize(("checkpoint_seconds", "grace"), [(60, 90), (600, 630)])
def test_a_driver_gives_its_workers_the_time_that_the_chart_gives_a_checkpoint(monkeypatch, checkpoint_seconds, grace):
    """Of drain and checkpoint together the driver keeps 30 s for its own end."""
    shutdown = Shutdown(drain_seconds=60, checkpoint_seconds=checkpoint_seconds)
    task = train_task(toy_run("s3://lab/x", "long"))
    pod = head_template(Runtime(shutdown=shutdown), task=task, labels={}, workers={})["spec"]["containers"][0]
    for entry in pod["env"]:
        if entry["name"].startswith("RAY_JOB_"):
            monkeypatch.setenv(entry["name"], entry["value"])

    assert attempt.grace_seconds() == grace


def test_what_trying_again_will_not_mend_ends_the_attempt_before_ray_starts_its_workers_anew(root, monkeypatch):
    monkeypatch.setattr(attempt, "LAST_WORDS_SECONDS", 0.1)
    channel = Channel({"kind": "DataError", "message": "s3://lab/shards: no shards here"})
    endless = types.SimpleNamespace(wait=lambda seconds: time.sleep(0.02))
    began = time.monotonic()

    with pytest.raises(DataError, match="s3://lab/shards: no shards here"):
        attempt._watch(toy_run(root, "doomed"), endless, channel, lambda *word: None, StopSignal())

    assert time.monotonic() - began > 0.1  # so long a worker may still copy its log


def test_the_entry_point_refuses_a_run_without_data_before_it_starts_ray(root, tmp_path, monkeypatch, capsys):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(toy_run(root, "doomed", "data.held_out=nowhere").to_dict()))
    monkeypatch.setattr(sys, "argv", ["train", str(file)])
    monkeypatch.setattr(Attempt, "make_apart", lambda *arguments: pytest.fail("it was started"))

    with pytest.raises(SystemExit) as ended:
        train.main()

    assert ended.value.code == 1
    assert capsys.readouterr().err == (
        "inpaint: nowhere: no shards with an index here; `inpaint shards write --help` makes them\n"
    )
    assert not (root / "runs").exists()


def test_an_attempt_of_a_driver_that_lost_its_lease_is_ended(stand_in):
    began = time.monotonic()

    with pytest.raises(TrainingError, match="taken over by another driver"):
        stand_in("time.sleep(60)").make_apart(lambda *_: None, StopSignal(), lambda: True)

    assert time.monotonic() - began < 20


def test_what_an_attempt_has_started_is_ended_with_it_even_when_it_was_given_away(stand_in, tmp_path):
    """As Ray's agents are, whose parent dies before them."""
    script = (
        "import subprocess\nchild = subprocess.Popen(['sleep', '60'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\nos.abort()"
    )
    with pytest.raises(Broken):
        make(stand_in(script))

    pid = int((tmp_path / "pid").read_text())
    until = time.monotonic() + 10
    while _lives(pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _lives(pid)


def _lives(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_the_process_of_an_attempt_ends_when_its_driver_is_gone():
    script = "import os, threading, time; from ray_jobs.attempt import _end_with_driver; "
    script += "threading.Thread(target=_end_with_driver).start(); print('up', flush=True); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout.readline() == b"up\n"

    process.stdin.close()  # as the system does when the driver dies

    assert process.wait(20) == -signal.SIGKILL
    process.stdout.close()
