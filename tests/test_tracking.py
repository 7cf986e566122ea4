"""W&B from a background thread: what is sent, and that nothing W&B does can hold up or end a training."""

import logging
import os
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest

from inpaint import tracking
from inpaint.tracking import Tracker, resolve_mode, run_id
from ray_jobs.toy import toy_run


class Sink:
    """What `wandb.init` gives, remembering what it is told."""

    def __init__(self):
        self.rows, self.finished, self.metrics = [], False, []

    def define_metric(self, *names, **options):
        self.metrics.append((names, options))

    def log(self, row):
        self.rows.append(row)

    def finish(self):
        self.finished = True


def fake(init=None):
    """A stand-in for the wandb module and the sink it gives."""
    sink, asked = Sink(), []

    def remember(**options):
        asked.append(options)
        return init(options, sink) if init else sink

    image = lambda array: ("image", array)  # noqa: E731
    return types.SimpleNamespace(init=remember, Settings=lambda **options: options, Image=image), sink, asked


@pytest.fixture
def run(tmp_path):
    return toy_run(tmp_path, "tracked", "tracking.mode=offline")


def test_rows_and_pictures_arrive_in_order_under_our_own_step(run):
    module, sink, asked = fake()
    tracker = Tracker(run, attempt=2, load=lambda: module)

    tracker.log(10, {"generator/l1": 0.5})
    tracker.images(20, {"samples": "pixels"})
    tracker.close()

    assert sink.rows == [
        {"global_step": 10, "stage": "gan", "attempt": 2, "generator/l1": 0.5},
        {"global_step": 20, "samples": ("image", "pixels")},
    ]
    assert (("*",), {"step_metric": "global_step"}) in sink.metrics
    assert sink.finished
    assert asked[0]["id"] == run_id(run)
    assert asked[0]["mode"] == "offline"


def test_the_config_that_is_sent_holds_the_settings_and_no_secret(run, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s" * 40)
    module, _, asked = fake()

    Tracker(run, load=lambda: module).close()

    assert asked[0]["config"] == run.to_dict()
    assert "k" * 40 not in repr(asked)
    assert "s" * 40 not in repr(asked)


def test_a_run_of_the_same_name_under_another_root_has_another_id(tmp_path):
    assert run_id(toy_run(tmp_path / "a", "same")) != run_id(toy_run(tmp_path / "b", "same"))


def test_auto_is_online_with_a_key_and_offline_without(tmp_path, monkeypatch):
    run = toy_run(tmp_path, "auto", "tracking.mode=auto")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    assert resolve_mode(run) == "offline"

    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert resolve_mode(run) == "online"


def test_an_unreachable_server_turns_the_log_offline_and_training_hears_only_a_warning(tmp_path, caplog):
    run = toy_run(tmp_path, "cut-off", "tracking.mode=online")

    def refuse_online(options, sink):
        if options["mode"] == "online":
            raise ConnectionError("no route to host")
        return sink

    module, sink, asked = fake(refuse_online)
    tracker = Tracker(run, load=lambda: module)
    tracker.log(1, {"x": 1.0})
    tracker.close()

    assert [options["mode"] for options in asked] == ["online", "offline"]
    assert sink.rows == [{"global_step": 1, "stage": "gan", "attempt": 0, "x": 1.0}]
    assert "the log is kept in" in caplog.text


@pytest.mark.parametrize("trouble", ["not installed", "init fails", "log fails", "finish fails"])
def test_no_trouble_with_wandb_reaches_the_training(run, trouble, caplog):
    def refuse(*_, **__):
        raise RuntimeError("broken")

    module, sink, _ = fake(refuse if trouble == "init fails" else None)
    sink.log = refuse if trouble == "log fails" else sink.log
    sink.finish = refuse if trouble == "finish fails" else sink.finish

    def load():
        if trouble == "not installed":
            raise ImportError("No module named 'wandb'")
        return module

    with caplog.at_level(logging.WARNING):
        tracker = Tracker(run, load=load)
        for step in range(3):
            tracker.log(step, {"x": 1.0})
        tracker.close()

    assert "W&B" in caplog.text


def test_a_wandb_that_hangs_holds_up_neither_a_row_nor_the_end(run, monkeypatch):
    monkeypatch.setattr(tracking, "CLOSE_SECONDS", 0.2)
    release = threading.Event()
    module, _, _ = fake(lambda options, sink: release.wait(10) and sink)
    began = time.monotonic()

    tracker = Tracker(run, load=lambda: module)
    tracker.log(1, {"x": 1.0})
    tracker.close()

    assert time.monotonic() - began < 2
    release.set()


def test_an_offline_log_is_copied_to_the_store_while_the_run_goes_on(tmp_path, monkeypatch):
    copied, waiting = [], threading.Semaphore(0)

    def upload(path, url):
        copied.append((Path(path).read_text(), url))
        waiting.release()

    def begin(options, sink):
        folder = Path(options["dir"]) / "wandb" / "offline-run-1"
        folder.mkdir(parents=True)
        sink.log = lambda row: (folder / "run.wandb").write_text(str(row["global_step"]))
        return sink

    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setattr(tracking.storage, "upload", upload)
    monkeypatch.setattr(tracking, "KEEP_SECONDS", 0)
    module, _, _ = fake(begin)
    tracker = Tracker(toy_run("s3://lab/root", "tracked", "tracking.mode=offline"), load=lambda: module)

    tracker.log(7, {"x": 1.0})
    assert waiting.acquire(timeout=10)
    assert copied == [("7", "s3://lab/root/runs/tracked/wandb/offline-run-1/run.wandb")]
    tracker.close()
    assert len(copied) == 2  # once more at the end


def test_a_wandb_that_hangs_for_long_does_not_fill_the_memory(run, monkeypatch, caplog):
    monkeypatch.setattr(tracking, "CLOSE_SECONDS", 0.2)
    monkeypatch.setattr(tracking, "LONGEST_QUEUE", 3)
    release = threading.Event()
    module, sink, _ = fake(lambda options, sink: release.wait(10) and sink)
    tracker = Tracker(run, load=lambda: module)

    for step in range(5):
        tracker.log(step, {"x": 1.0})

    assert [record.args for record in caplog.records] == [(3,), (4,)]  # the steps that were left out
    release.set()
    tracker.close()
    assert [row["global_step"] for row in sink.rows] == [0, 1, 2]


def test_disabled_does_not_even_import_wandb(tmp_path):
    run = toy_run(tmp_path, "off", "tracking.mode=disabled")

    def load():
        raise AssertionError("imported")

    tracker = Tracker(run, load=load)
    tracker.log(1, {"x": 1.0})
    tracker.close()


@pytest.mark.slow
def test_the_real_wandb_keeps_an_offline_log_in_the_runs_folder(run, tmp_path):
    tracker = Tracker(run)
    tracker.log(1, {"x": 1.0})
    tracker.close()

    assert list(tmp_path.glob("runs/tracked/wandb/offline-run-*/run-*.wandb"))


@pytest.mark.slow
def test_the_real_wandb_without_its_server_keeps_the_log_and_lets_the_process_end(tmp_path):
    """A whole process, because W&B does more when one ends."""
    script = (
        "import logging; from inpaint.tracking import Tracker; from ray_jobs.toy import toy_run\n"
        "logging.basicConfig()\n"
        f"tracker = Tracker(toy_run({str(tmp_path)!r}, 'cut-off', 'tracking.mode=online'))\n"
        "tracker.log(1, {'x': 1.0})\ntracker.close()\nprint('closed')"
    )
    environment = os.environ | {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "k" * 40, "WANDB_MODE": ""}
    began = time.monotonic()

    ended = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=240, cwd=tmp_path
    )

    assert (ended.returncode, ended.stdout.strip().splitlines()[-1]) == (0, "closed")
    assert "the log is kept in" in ended.stderr
    assert list(tmp_path.glob("runs/cut-off/wandb/offline-run-*/run-*.wandb"))
    assert "k" * 40 not in ended.stderr
    assert time.monotonic() - began < 120
