"""How a trial of a sweep ends: what is recorded, what is left to the next start, and what a silent store costs."""

import pytest
import yaml
from ray.exceptions import RayTaskError

from inpaint import storage
from inpaint.config.sweep import load_sweep
from inpaint.errors import (
    ClusterError,
    DataError,
    InpaintError,
    MendableError,
    StorageError,
    TrainingError,
    UnhealthyError,
)
from inpaint.sweep.halving import Halving
from inpaint.sweep.trials import begin, planned, read_records, run_of
from ray_jobs import trial, tune
from ray_jobs.attempt import _as_error, kind_of
from ray_jobs.lease import LeaseLostError
from ray_jobs.toy import toy_run

L1 = "method.weights.l1"
PASSING = [
    StorageError("no answer"), ClusterError("no head"), LeaseLostError("taken over"),
    MendableError("is being trained by process 7"),
]  # fmt: skip


@pytest.fixture
def sweep(root, monkeypatch):
    """Two trials of the toy run under successive halving."""
    (root / "toy.yaml").write_text(yaml.safe_dump(toy_run(root, "toy", "stages.gan.steps=12").to_dict()))
    definition = {
        "preset": str(root / "toy.yaml"),
        "trials": 2,
        "metrics": {"psnr": "max"},
        "vary": {L1: {"loguniform": [0.1, 10]}},
        "scheduler": {"kind": "asha", "grace_steps": 4, "reduction": 2},
    }
    (root / "small.yaml").write_text(yaml.safe_dump(definition))
    monkeypatch.setattr(trial.ray, "get_gpu_ids", list)
    monkeypatch.setattr(trial.tune, "report", lambda numbers: None)
    found = load_sweep(str(root / "small.yaml"))
    begin(found, root=str(root))
    return found


@pytest.fixture
def end(sweep, root, monkeypatch):
    """Runs the first trial over a training that raises; gives its record."""

    def end(error):
        def train(run, session):
            raise error

        monkeypatch.setattr(trial, "_here", train)
        first = {key: getattr(planned(sweep)[0], key) for key in ("id", "label", "values", "settings", "seed")}
        trial.work({"sweep": sweep.model_dump(mode="json"), "root": str(root), "trial": first})
        return read_records("small", root=str(root))["000"]

    return end


@pytest.mark.parametrize("error", PASSING)
def test_what_a_later_start_may_mend_is_not_recorded(end, root, error):
    with pytest.raises(type(error)):
        end(error)
    assert read_records("small", root=str(root)) == {}


def test_a_trial_that_a_rule_of_health_ends_has_diverged(end):
    record = end(UnhealthyError("step 8: health/seam_error was 0.9 (health.stop_when)"))
    assert (record.status, record.reason) == ("diverged", "step 8: health/seam_error was 0.9 (health.stop_when)")


def test_an_error_that_would_come_again_is_recorded_as_a_failure(end):
    assert end(DataError("no shards here")).status == "failed"


@pytest.mark.parametrize("error", PASSING)
def test_a_trial_that_stayed_broken_by_what_is_mendable_is_left_to_the_next_start(sweep, root, error):
    """Tune hands on an error inside one of Ray's that is of both classes."""
    first = planned(sweep)[0]
    tune._record_failures(sweep, [(first, RayTaskError("work", "", error).as_instanceof_cause())], root=str(root))

    with pytest.raises(MendableError, match=r"2 trials were not made \(000"):
        tune.check_all_made(sweep, read_records("small", root=str(root)), root=str(root))


@pytest.mark.parametrize("error", [ValueError("a bug"), storage.MissingObject("s3://lab/none: no such object")])
def test_a_trial_that_stayed_broken_by_what_would_come_again_is_recorded_as_failed(sweep, root, error):
    tune._record_failures(sweep, [(each, error) for each in planned(sweep)], root=str(root))

    with pytest.raises(TrainingError, match="2 of 2 trials failed") as caught:
        tune.check_all_made(sweep, read_records("small", root=str(root)), root=str(root))
    assert not isinstance(caught.value, MendableError)


def test_a_lost_trial_counts_more_than_a_failed_one_as_the_next_start_tries_both(sweep, root):
    tune._record_failures(sweep, [(planned(sweep)[0], ValueError("a bug"))], root=str(root))

    with pytest.raises(MendableError, match=r"1 trials were not made \(001"):
        tune.check_all_made(sweep, read_records("small", root=str(root)), root=str(root))


@pytest.mark.parametrize("error", [*PASSING[1:], UnhealthyError("astray")])
def test_an_error_keeps_its_meaning_on_the_way_from_a_workers_process(error):
    """A lost lease comes as what it is a case of: MendableError."""
    found = _as_error({"kind": kind_of(error), "message": str(error)})
    assert isinstance(error, type(found))
    assert type(found) not in (TrainingError, InpaintError)


class Mark:
    seen = False


@pytest.fixture
def session(sweep, root):
    """The second trial's session; the first one scored 20 at the rung of step 4."""
    one, other = planned(sweep)
    Halving(sweep, total_steps=12, root=str(root)).judge(one.id, 4, 20.0)
    run = run_of(sweep, other, root=str(root))
    return trial.TrialSession(sweep, other, run, Mark(), root=str(root)), run


def break_once(monkeypatch, name, part):
    """Let the first call of a function of `storage` on a URL with `part` in it fail."""
    real, calls = getattr(storage, name), []

    def answer(url, *arguments, **options):
        if part in url:
            calls.append(url)
            if len(calls) == 1:
                raise StorageError(f"{url}: no answer")
        return real(url, *arguments, **options)

    monkeypatch.setattr(storage, name, answer)


def test_a_score_that_a_silent_store_kept_from_its_judgement_is_judged_at_the_next_report(session, monkeypatch):
    session, _ = session
    break_once(monkeypatch, "list_objects", "/rungs/")
    session.report({"step": 4, "psnr": 10.0})
    assert session.should_stop() is None
    session.report({"step": 5})
    assert session.should_stop() == "stopped"
    assert session.ended == "successive halving at step 4: psnr 10 is number 2 of 2, 1 of them may go on"


def test_a_stop_mark_that_a_silent_store_refused_is_written_at_the_next_report(session, monkeypatch):
    """An error from the report would start a second training beside the first."""
    session, run = session
    break_once(monkeypatch, "write_bytes", "/stop")

    def train(run, on_progress):
        for report in ({"step": 4, "psnr": 10.0}, {"step": 5}):
            on_progress(report)
        return {"reason": "stopped"}

    monkeypatch.setattr(trial, "run_training", train)
    assert trial._in_workers(run, session) == {"reason": "stopped"}
    assert storage.exists(f"{run.url}/stop")
