"""`inpaint sweep` and `inpaint report SWEEP` from the command line, where nothing needs to be trained."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from inpaint import storage
from inpaint.cli import app
from inpaint.config.sweep import load_sweep
from inpaint.errors import ConfigError, EvaluationError, MendableError, TrainingError
from inpaint.sweep.trials import Record, begin, planned, read_records, sweep_url, write_record
from ray_jobs import tune

SETTINGS = ["settings.data.dataset=photos", "trials=10"]
OPTIONS = [word for setting in SETTINGS for word in ("--set", setting)]


@pytest.fixture
def swept(tmp_path):
    """A root in which the loss-weight search has two records of ten."""
    sweep = load_sweep("isnet-loss-weights", budget="tiny", assignments=SETTINGS)
    begin(sweep, root=str(tmp_path))
    for trial, psnr in zip(planned(sweep), (20.0, 21.0), strict=False):
        record = Record(trial.id, trial.label, trial.values, trial.seed, "finished", 40, {"psnr": psnr, "l1": 5.0}, 9.0)
        write_record(sweep, record, root=str(tmp_path))
    return tmp_path


def call(*words):
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


@pytest.mark.parametrize("command", [("report",), ("sweep", "report")])
def test_a_sweeps_report_is_written_in_three_forms(swept, command):
    out = call(*command, "isnet-loss-weights", "--root", swept, "--out", swept / "page", "--json")
    places = json.loads(out.stdout.splitlines()[-1])
    assert places.pop("sweep") == "isnet-loss-weights"
    assert sorted(places) == ["csv", "html", "md"]
    assert "Table 1, row 2" in (swept / "page" / "isnet-loss-weights.csv").read_text()


def test_status_counts_what_is_over(swept):
    out = call("sweep", "status", "isnet-loss-weights", "--root", swept)
    assert "2 of 10 trials over (2 finished)" in out.stdout


def test_a_dry_run_prints_the_first_trials_and_writes_nothing(tmp_path):
    words = ["sweep", "run", "isnet-loss-weights", "--budget", "tiny", *OPTIONS, "--root", tmp_path]
    out = call(*words, "--dry-run")
    assert "20 steps of 4" in out.stdout
    assert "000 Table 1, row 1: l1=48.08 adversarial=5.412" in out.stdout
    assert not list(tmp_path.iterdir())


def test_a_dry_run_says_when_this_machine_holds_less_than_the_sweep_asks_for(tmp_path):
    words = ["sweep", "run", "isnet-loss-weights", "--budget", "tiny", *OPTIONS, "--root", tmp_path]
    out = call(*words, "--set", "concurrent=1000", "--dry-run")
    assert "not on this machine: isnet-loss-weights: concurrent 1000, but the cluster has" in out.stderr


def test_a_dry_run_refuses_a_metric_that_nobody_logs(tmp_path):
    with pytest.raises(ConfigError, match="no trial logs pnsr; did you mean psnr"):
        call("sweep", "run", "isnet-loss-weights", "--set", "metrics={pnsr: max}", "--root", tmp_path, "--dry-run")


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("metrics={psnr: min}", "metrics: psnr: min would look for the worst; set it to max"),
        ("metrics={l1: max}", "metrics: l1: max would look for the worst; set it to min"),
        ("published=[isnet_table11]", "isnet_table11 is not a published table; did you mean isnet_table1"),
        ("settings.evaluation.protocol=nope", "evaluation.protocol: nope is not a protocol"),
    ],
)
def test_a_dry_run_refuses_what_would_spoil_the_report(tmp_path, assignment, message):
    with pytest.raises((ConfigError, EvaluationError), match=message):
        call("sweep", "run", "isnet-loss-weights", "--set", assignment, "--root", tmp_path, "--dry-run")


def test_a_dry_run_refuses_rungs_before_the_stage_that_trains_what_fills(tmp_path):
    sweep = tmp_path / "edges-first.yaml"
    sweep.write_text(
        "preset: edge-texture-tiny\nsettings: {stages.edge.steps: 40, stages.texture.steps: 40, evaluation.every: 10}\n"
        "vary: {method.texture_weights.l1: {uniform: [0.5, 2]}}\ntrials: 4\nmetrics: {psnr: max}\n"
        "scheduler: {kind: asha, grace_steps: 40, reduction: 2}\n"
    )
    words = ["sweep", "run", sweep, "--root", tmp_path / "root", "--dry-run"]
    with pytest.raises(ConfigError, match="at scheduler.grace_steps 40 no step has trained texture_generator, so psnr"):
        call(*words)
    assert "4 trials" in call(*words, "--set", "scheduler.grace_steps=50").stdout
    assert "4 trials" in call(*words, "--set", "metrics={edge_precision: max}").stdout


def test_a_search_that_proposes_every_trial_is_checked_by_a_drawn_one(tmp_path):
    words = ["sweep", "run", "isnet-loss-weights", "--budget", "tiny", *OPTIONS, "--root", tmp_path, "--dry-run"]
    out = call(*words, "--set", "search={kind: tpe}", "--set", "points=[]", "--set", "published=[]")
    assert "10 trials × 1 seeds" in out.stdout
    assert "000" not in out.stdout


def test_a_dry_run_refuses_a_changed_definition_under_an_old_name(swept):
    with pytest.raises(ConfigError, match="started with another budget"):
        call("sweep", "run", "isnet-loss-weights", "--budget", "256k", *OPTIONS, "--root", swept, "--dry-run")


@pytest.fixture
def run_with(swept, monkeypatch):
    """Runs the command over a driver that leaves the first trials with these states."""

    def run(*states, stop=False):
        def run_sweep(sweep, *, root, **options):
            for trial, status in zip(planned(sweep), states, strict=False):
                record = Record(trial.id, trial.label, trial.values, trial.seed, status, 4, {}, 9.0, reason="it burnt")
                write_record(sweep, record, root=root)
            if stop:
                storage.write_bytes(storage.join(sweep_url(sweep.name, root=root), "stop"), b"")
            return read_records(sweep.name, root=root)

        monkeypatch.setattr(tune, "run_sweep", run_sweep)
        return call("sweep", "run", "isnet-loss-weights", "--budget", "tiny", *OPTIONS, "--root", swept, "--json")

    return run


def test_a_sweep_whose_trials_all_came_to_an_end_of_their_own_succeeds(run_with):
    assert run_with(*["finished"] * 8, "diverged", "stopped").exit_code == 0


def test_a_sweep_with_failed_trials_ends_with_an_error(run_with):
    with pytest.raises(TrainingError, match=r"1 of 10 trials failed \(009: it burnt\)"):
        run_with(*["finished"] * 9, "failed")


def test_a_sweep_with_lost_trials_ends_with_an_error(run_with):
    with pytest.raises(MendableError, match=r"2 trials were not made \(008, ...\); start it again"):
        run_with(*["finished"] * 8)


def test_a_sweep_that_was_asked_to_stop_ends_well_and_says_so(run_with):
    out = run_with("finished", stop=True)
    assert out.exit_code == 0
    assert "isnet-loss-weights: stopped as asked; run it again to go on" in out.stderr
    assert json.loads(out.stdout)["records"]["000"]["status"] == "finished"


@pytest.mark.parametrize("trial", [("001",), ()])
def test_a_promoted_trial_names_where_it_comes_from(swept, monkeypatch, trial):
    """The best one, if none is named."""
    monkeypatch.chdir(swept)
    call("sweep", "promote", "isnet-loss-weights", *trial, "--as", "better", "--root", swept)
    assert yaml.safe_load((swept / "better.yaml").read_text())["method"]["weights"]["style"] == 44.101921


def test_a_promoted_trial_replaces_no_other_file(swept, monkeypatch):
    monkeypatch.chdir(swept)
    (swept / "mine.yaml").write_text("preset of my own")
    with pytest.raises(ConfigError, match="mine.yaml: another file is here; choose another name with --as"):
        call("sweep", "promote", "isnet-loss-weights", "001", "--as", "mine", "--root", swept)
    assert (swept / "mine.yaml").read_text() == "preset of my own"


@pytest.mark.parametrize("command", [("sweep", "submit"), ("submit", "sweep")])
def test_a_sweep_is_submitted_by_either_name(tmp_path, command):
    path = tmp_path / "runtime.yaml"
    path.write_text("store: {root: s3://lab/inpaint}\n")
    words = [*command, "isnet-loss-weights", "--budget", "tiny", *OPTIONS, "--concurrent", "4"]
    out = call(*words, "--runtime", path, "--dry-run")
    job = next(part for part in yaml.safe_load_all(out.stdout) if part["kind"] == "RayJob")
    assert job["metadata"]["name"] == "isnet-loss-weights-sweep"
    assert "python -m ray_jobs.tune /etc/inpaint/run.yaml --root s3://lab/inpaint" in job["spec"]["entrypoint"]
