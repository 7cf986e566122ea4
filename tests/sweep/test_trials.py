"""Trials and their records: known beforehand, kept in the store, never made twice."""

import pytest

from inpaint import storage
from inpaint.config import load_run
from inpaint.config.sweep import load_sweep
from inpaint.errors import ConfigError, StorageError
from inpaint.sweep.promote import promoted
from inpaint.sweep.trials import (
    Record,
    Trial,
    begin,
    foreseen,
    known_trials,
    planned,
    propose_points,
    read_records,
    recorded,
    remaining,
    run_of,
    write_record,
)


@pytest.fixture
def sweep():
    return load_sweep("isnet-loss-weights", budget="tiny", assignments=["settings.data.dataset=photos", "trials=12"])


def record(trial, status="finished", **metrics):
    return Record(trial.id, trial.label, trial.values, trial.seed, status, 40, metrics, 3600.0, gpus=0.5)


def test_points_come_first_and_draws_fill_the_rest(sweep):
    trials = planned(sweep)
    assert [trial.id for trial in trials] == [f"{number:03d}" for number in range(12)]
    assert trials[9].label == "Table 1, row 10"
    assert trials[10].values == sweep.draw(0)


def test_every_seed_repeats_every_trial():
    sweep = load_sweep("isnet-ablation", budget="tiny", assignments=["seeds=[3, 4]"])
    assert [(trial.id, trial.seed) for trial in planned(sweep)[:3]] == [("000-s3", 3), ("000-s4", 4), ("001-s3", 3)]


def test_a_trials_run_lies_in_the_sweep_and_reads_the_shards_of_the_root(sweep):
    run = run_of(sweep, planned(sweep)[0], root="s3://lab/x")
    assert run.url == "s3://lab/x/sweeps/isnet-loss-weights/runs/isnet-loss-weights-000"
    assert run.train_url == "s3://lab/x/shards/photos/train"
    assert run.tracking.group == "isnet-loss-weights"


def test_what_is_recorded_is_not_to_be_done_again(sweep, tmp_path):
    root = str(tmp_path)
    begin(sweep, root=root)
    first, second, *others = planned(sweep)
    write_record(sweep, record(first, psnr=20.0), root=root)
    write_record(sweep, record(second, "diverged"), root=root)
    assert [trial.id for trial in remaining(sweep, root=root)] == [trial.id for trial in others]
    assert read_records(sweep.name, root=root)["000"] == record(first, psnr=20.0)


def test_a_watch_reads_each_record_once_and_a_record_made_anew_again(sweep, tmp_path, monkeypatch):
    root, seen, reads, real = str(tmp_path), {}, [], storage.read_bytes
    monkeypatch.setattr(storage, "read_bytes", lambda url: reads.append(url) or real(url))
    first, second = planned(sweep)[:2]
    write_record(sweep, record(first, "failed"), root=root)
    assert list(read_records(sweep.name, root=root, seen=seen)) == [first.id]
    assert read_records(sweep.name, root=root, seen=seen) == {}
    write_record(sweep, record(first, psnr=21.5), root=root)
    write_record(sweep, record(second), root=root)
    assert list(read_records(sweep.name, root=root, seen=seen)) == [first.id, second.id]
    assert read_records(sweep.name, root=root, seen=seen) == {}
    assert len(reads) == 3


def test_a_record_read_before_the_store_failed_is_read_again(sweep, tmp_path, monkeypatch):
    root, seen, real = str(tmp_path), {}, storage.read_bytes
    for trial in planned(sweep)[:2]:
        write_record(sweep, record(trial), root=root)

    def fail_at_the_second(url):
        if url.endswith("001.json"):
            raise StorageError("the store hiccups")
        return real(url)

    monkeypatch.setattr(storage, "read_bytes", fail_at_the_second)
    with pytest.raises(StorageError):
        read_records(sweep.name, root=root, seen=seen)
    monkeypatch.setattr(storage, "read_bytes", real)
    assert list(read_records(sweep.name, root=root, seen=seen)) == ["000", "001"]


def test_a_search_is_checked_by_a_drawn_trial_until_it_has_proposed_one(tmp_path):
    sweep = load_sweep("isnet-loss-weights", budget="tiny", assignments=["points=[]", "search={kind: tpe}"])
    (stand_in,) = foreseen(sweep, root=str(tmp_path))
    assert stand_in.values == sweep.draw(0)

    propose_points(sweep, [sweep.draw(7)], first=0, root=str(tmp_path))
    assert foreseen(sweep, root=str(tmp_path)) == [Trial("000", "tpe 1", sweep.draw(7))]


def test_a_search_that_is_killed_while_it_writes_its_proposals_knows_a_point_with_every_seed_or_not(
    tmp_path, monkeypatch
):
    """Else the next start would propose other values for a trial that has a run already."""
    seeds = ["points=[]", "search={kind: tpe}", "seeds=[0, 1]", "trials=4"]
    sweep = load_sweep("isnet-loss-weights", budget="tiny", assignments=seeds)
    points, left, write = [sweep.draw(number) for number in range(3)], [1, 1], storage.write_bytes

    def die_at_the_third(*arguments, **options):
        left.pop()  # of an empty list, this is the kill
        write(*arguments, **options)

    with monkeypatch.context() as killed:
        killed.setattr(storage, "write_bytes", die_at_the_third)
        with pytest.raises(IndexError):
            propose_points(sweep, points, first=0, root=str(tmp_path))

    known = [(trial.id, trial.seed, trial.values) for trial in known_trials(sweep, root=str(tmp_path))]
    assert known == [
        ("000-s0", 0, points[0]), ("000-s1", 1, points[0]), ("001-s0", 0, points[1]), ("001-s1", 1, points[1]),
    ]  # fmt: skip


def test_half_a_gpu_for_an_hour_is_half_a_gpu_hour(sweep):
    assert record(planned(sweep)[0]).gpu_hours == 0.5


def test_a_changed_definition_under_an_old_name_is_refused_by_what_changed(sweep, tmp_path):
    begin(sweep, root=str(tmp_path))
    same = ["settings.data.dataset=photos", "trials=12"]
    changed = load_sweep("isnet-loss-weights", budget="25.6k", assignments=same)
    with pytest.raises(ConfigError, match="started with another budget; give the definition"):
        begin(changed, root=str(tmp_path))


def test_another_metric_that_decides_is_another_definition(sweep, tmp_path):
    begin(sweep, root=str(tmp_path))
    with pytest.raises(ConfigError, match="started with another metrics"):
        begin(sweep.model_copy(update={"metrics": {"l1": "min", "psnr": "max"}}), root=str(tmp_path))


def test_a_sweep_may_grow(sweep, tmp_path):
    begin(sweep, root=str(tmp_path))
    longer = load_sweep("isnet-loss-weights", budget="tiny", assignments=["settings.data.dataset=photos", "trials=20"])
    begin(longer, root=str(tmp_path))
    assert recorded(sweep.name, root=str(tmp_path)).trials == 20


def test_a_sweep_that_was_never_started_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="no sweep of this name here"):
        recorded("nothing", root=str(tmp_path))


def test_a_promoted_trial_is_a_preset_that_loads_with_its_values(sweep, tmp_path, monkeypatch):
    begin(sweep, root=str(tmp_path))
    trial = planned(sweep)[2]
    write_record(sweep, record(trial, psnr=21.5), root=str(tmp_path))
    path = tmp_path / "better.yaml"
    path.write_text(promoted(sweep.name, "002", preset="better", root=str(tmp_path)))
    run = load_run(str(path))
    assert run.method.weights.feature_matching == 206.568582
    assert run.name == "better"
    monkeypatch.chdir(tmp_path)
    assert load_run("better") == run.model_copy(update={"preset": "better"})  # by its name where it was written
    assert "trial 002 (Table 1, row 3) of sweep isnet-loss-weights, psnr 21.5" in path.read_text()


def test_a_promoted_trial_keeps_the_sets_that_its_sweep_named_and_no_others(tmp_path):
    named = load_sweep("isnet-ablation", budget="tiny", assignments=["settings.data.train=s3://lab/mine/train"])
    begin(named, root=str(tmp_path))
    write_record(named, record(planned(named)[0], psnr=20), root=str(tmp_path))
    path = tmp_path / "better.yaml"
    path.write_text(promoted(named.name, "000", preset="better", root=str(tmp_path)))
    run = load_run(str(path), root="s3://other")
    assert run.train_url == "s3://lab/mine/train"
    assert run.held_out_url == "s3://other/shards/places2/test"  # of the root where the preset is used


def test_a_trial_that_diverged_is_not_promoted(sweep, tmp_path):
    begin(sweep, root=str(tmp_path))
    write_record(sweep, record(planned(sweep)[0], "diverged"), root=str(tmp_path))
    with pytest.raises(ConfigError, match="trial 000 of .* diverged at step 40; promote a finished one"):
        promoted(sweep.name, "000", preset="better", root=str(tmp_path))
