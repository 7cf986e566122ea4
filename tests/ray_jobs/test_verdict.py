"""What ended a task for good is said again on KubeRay's next cluster for it, and not worked at again."""

import sys

import pytest
import yaml

from inpaint import storage
from inpaint.data import shards
from inpaint.errors import DataError, MendableError, StorageError
from inpaint.sweep.trials import Record, planned, read_records, write_record
from ray_jobs import evaluate, shard, train, tune, verdict
from ray_jobs.lease import LeaseLostError
from ray_jobs.toy import toy_run
from ray_jobs.verdict import remember


@pytest.fixture
def task(tmp_path, monkeypatch):
    """Where a pod finds the UID of its RayJob."""
    file = tmp_path / "task"
    file.write_text("uid-1")
    monkeypatch.setattr(verdict, "TASK_FILE", file)
    return file


@pytest.fixture
def start(root, tmp_path, monkeypatch, capsys):
    """Runs the entry point over a scripted training; exit code, last line on stderr, and how often it trained."""
    trained = []

    def start(end, *settings):
        def run_training(run, **options):
            trained.append(run.name)
            if isinstance(end, Exception):
                raise end
            return end

        (tmp_path / "run.yaml").write_text(yaml.safe_dump(toy_run(root, "doomed", *settings).to_dict()))
        monkeypatch.setattr(train, "run_training", run_training)
        monkeypatch.setattr(sys, "argv", ["train", str(tmp_path / "run.yaml")])
        with pytest.raises(SystemExit) as ended:
            train.main()
        return ended.value.code, (capsys.readouterr().err.splitlines() or [""])[-1], len(trained)

    return start


def test_the_next_cluster_says_it_again_and_a_new_submission_tries(start, task):
    error = DataError("step 3: l1 is not finite")
    assert start(error) == (1, "inpaint: step 3: l1 is not finite", 1)
    assert start(error) == (1, "inpaint: step 3: l1 is not finite", 1)

    task.write_text("uid-2")
    assert start({"step": 12, "reason": "finished"}) == (0, "", 2)


def test_a_url_that_names_nothing_is_not_tried_again_although_a_silent_store_is(start, task):
    gone = storage.MissingObject("s3://lab/none.zip: there is no such object")
    assert start(gone)[2] == 1
    assert start(gone) == (1, "inpaint: s3://lab/none.zip: there is no such object", 1)


def test_missing_data_is_said_without_training(start, task):
    code, said, trained = start(None, "data.train=nowhere")
    assert (code, trained) == (1, 0)
    assert said.startswith("inpaint: nowhere: no shards with an index here")
    assert start(None)[1] == said  # for this task


@pytest.mark.parametrize(
    "error", [StorageError("s3://lab: no answer"), MendableError("6 attempts in a row"), LeaseLostError("taken over")]
)
def test_what_another_cluster_may_mend_is_tried_there(start, task, error):
    assert start(error)[2] == 1
    assert start(error)[2] == 2


def test_a_sweep_with_a_failed_trial_fails_so_that_submitting_it_again_tries_it(
    root, tmp_path, task, monkeypatch, capsys
):
    """KubeRay's further clusters only say so: the trial broke at each of its restarts."""
    search = "preset: tiny\nmetrics: {psnr: max}\ntrials: 2\nvary: {training.ema: {choice: [0.9]}}\n"
    (tmp_path / "search.yaml").write_text(search)
    arguments = [str(tmp_path / "search.yaml"), "--root", str(root)]
    ends, started = {"000": "diverged", "001": "failed"}, []

    def run_sweep(sweep, **options):
        started.append(sweep.name)
        for trial in planned(sweep):
            if trial.id in ends:
                reason = "no space left on device"
                ended = Record(trial.id, trial.label, trial.values, 0, ends[trial.id], 3, {}, 1.0, reason=reason)
                write_record(sweep, ended, root=str(root))
        return read_records(sweep.name, root=str(root))

    monkeypatch.setattr(tune, "run_sweep", run_sweep)
    for _ in range(2):
        assert tune.main(arguments) == 1
        said = capsys.readouterr().err
        assert "search: 1 of 2 trials failed (001: no space left on device); mend what it names" in said
    assert len(started) == 1

    task.write_text("uid-2")
    storage.write_bytes(f"{root}/sweeps/search/stop", b"")
    assert tune.main(arguments) == 0  # as `inpaint stop` asked
    storage.delete(f"{root}/sweeps/search/stop")
    ends["001"] = "finished"
    assert tune.main(arguments) == 0


def test_a_sweep_that_lost_a_trial_is_tried_on_the_next_cluster(root, tmp_path, task, monkeypatch, capsys):
    search = "preset: tiny\nmetrics: {psnr: max}\ntrials: 2\nvary: {training.ema: {choice: [0.9]}}\n"
    (tmp_path / "search.yaml").write_text(search)
    started = []
    monkeypatch.setattr(tune, "run_sweep", lambda sweep, **options: started.append(sweep.name) or {})
    for _ in range(2):
        assert tune.main([str(tmp_path / "search.yaml"), "--root", str(root)]) == 1
    assert "2 trials were not made (000, ...)" in capsys.readouterr().err
    assert len(started) == 2


@pytest.mark.parametrize("kind", ["sweep", "evaluate", "shards"])
def test_the_other_entry_points_do_the_same(kind, root, tmp_path, task, monkeypatch, capsys):
    words, place, at, worker = {
        "sweep": (["search.yaml", "--root", str(root)], root / "sweeps" / "search", tune, "run_sweep"),
        "evaluate": (["request.yaml"], root / "runs" / "paris" / "evaluations", evaluate, "run_on_ray"),
        "shards": ([str(root / "raw"), str(root / "set"), "--workers", "1"], root / "set", shards, "write_shards"),
    }[kind]
    search = "preset: tiny\nmetrics: {psnr: max}\ntrials: 1\nvary: {training.ema: {choice: [0.9]}}\n"
    (tmp_path / "search.yaml").write_text(search)
    request = {"request": {"subject": "paris", "root": str(root)}, "resources": {}}
    (tmp_path / "request.yaml").write_text(yaml.safe_dump(request))
    monkeypatch.chdir(tmp_path)
    asked = []

    def refuse(*arguments, **options):
        asked.append(arguments)
        raise DataError("nothing there")

    monkeypatch.setattr(at, worker, refuse)
    monkeypatch.setattr(sys, "argv", [kind, *words])
    for _ in range(2):
        try:
            code = (shard if kind == "shards" else at).main()
        except SystemExit as ended:
            code = ended.code
        assert code == 1
        assert ": nothing there" in capsys.readouterr().err
    assert len(asked) == 1
    assert (place / "verdict.json").is_file()


def test_outside_of_kubernetes_every_start_tries(start):
    assert start(DataError("bad"))[2] == 1
    assert start(DataError("bad"))[2] == 2


def test_a_store_that_is_away_when_a_run_ends_does_not_hide_its_error(task, monkeypatch):
    def away(url, content):
        raise StorageError("no answer")

    monkeypatch.setattr(storage, "write_bytes", away)
    remember("s3://lab/runs/doomed", DataError("bad"))
