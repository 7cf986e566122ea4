"""Sweep definitions: checked to the last path before anything starts, drawn the same each time."""

import math
import time
from pathlib import Path

import pytest
import yaml

from inpaint.config import load_run
from inpaint.config.sweep import load_sweep, trial_run
from inpaint.errors import ConfigError
from inpaint.evaluation.published import published_tables

# Table 1 of the ISNet paper, as printed: l1, adversarial, style, perceptual, feature matching.
TABLE_1 = [
    (48.081212, 5.412144, 15.96878, 40.149662, 0.118075),
    (0.604847, 0.202847, 44.101921, 0.387274, 0.488302),
    (24.159013, 66.923958, 0.103212, 6.038855, 206.568582),
    (13.484269, 30.525771, 1.034876, 155.314466, 32.331865),
    (7.700032, 3.438013, 1.986786, 22.0823, 0.31213),
    (3.229381, 12.299439, 6.084766, 18.260382, 14.062116),
    (63.075208, 0.206318, 144.371788, 1.288317, 6.51374),
    (1.110633, 15.054847, 76.107149, 0.145567, 0.24907),
    (8.017214, 1.670086, 0.491773, 95.361352, 70.59277),
    (1.74567, 49.057089, 1.153775, 1.412379, 0.189158),
]
DEFINITIONS = sorted(path.stem for path in (Path(__file__).parents[2] / "sweeps").glob("*.yaml"))
TERMS = ("l1", "adversarial", "style", "perceptual", "feature_matching")


@pytest.mark.parametrize("name", DEFINITIONS)
def test_every_definition_is_valid_under_each_of_its_budgets(name):
    for budget in load_sweep(name).budgets:
        sweep = load_sweep(name, budget=budget)
        assert set(sweep.published) <= set(published_tables())


def test_the_loss_weight_search_begins_with_the_ten_published_rows():
    sweep = load_sweep("isnet-loss-weights")
    rows = [tuple(point.values[f"method.weights.{term}"] for term in TERMS) for point in sweep.points]
    assert rows == TABLE_1
    assert sweep.trials == 50


@pytest.mark.parametrize(("budget", "steps"), [("256k", 32_000), ("25.6k", 3_200)])
def test_budgets_are_the_two_readings_of_the_paper_at_batch_8(budget, steps):
    sweep = load_sweep("isnet-loss-weights", budget=budget)
    run = trial_run(sweep, sweep.points[0].values, name="a", root="r")
    assert run.total_steps == steps
    assert run.training.global_batch == 8


def test_draws_are_log_uniform_between_a_tenth_and_three_hundred():
    sweep = load_sweep("isnet-loss-weights")
    values = [value for number in range(20_000) for value in sweep.draw(number).values()]  # 10^5 draws of five weights
    assert min(values) >= 0.1
    assert max(values) <= 300
    assert sum(map(math.log, values)) / len(values) == pytest.approx(math.log(5.477), abs=0.03)


def test_a_draw_depends_on_the_seed_and_its_number_alone():
    sweep, again = load_sweep("isnet-loss-weights"), load_sweep("isnet-loss-weights")
    other = load_sweep("isnet-loss-weights", assignments=["search={kind: random, seed: 1}"])
    assert sweep.draw(7) == again.draw(7)
    assert sweep.draw(7) != sweep.draw(8)
    assert sweep.draw(7) != other.draw(7)


def test_trials_of_a_seed_differ_in_the_varied_values_only():
    sweep = load_sweep("isnet-loss-weights")
    first, second = (trial_run(sweep, sweep.draw(n), name="a", root="r").to_dict() for n in range(2))
    for settings in (first, second):
        settings["method"].pop("weights")
    assert first == second


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("trials=0", "trials 0: input should be greater than 0"),
        ("trials=1000000000", "trials 1000000000: input should be less than or equal to 100000"),
        ("metrics={}", "metrics: name at least one"),
        ("budget=tinny", "budget 'tinny' is unknown .*did you mean tiny"),
        ("settings.data.datset=x", "data.datset is not a setting of data; did you mean dataset"),
        ("vary={method.weights.l1: {loguniform: [3, 1]}}", r"bounds \[3, 1\]: the first must be below the second"),
        ("vary={method.weights.l1: {loguniform: [0, 1]}}", r"vary.method.weights.l1.loguniform.0 0: .* greater than 0"),
        ("vary={method.weights.l1: {logunifrom: [1, 2]}}", r"l1 .*: expected loguniform: \[low, high\]"),
        ("vary={method.weights.l1: 3}", r"vary.method.weights.l1 3: expected loguniform: \[low, high\]"),
        ("settings.seed=5", "seed: the sweep's seeds are those of its runs; leave it out"),
        ("settings.name=one", "name: a trial's name is its sweep's with a number"),
        ("vary={tracking.group: {choice: [a]}}", "tracking.group: a sweep's runs are grouped by its name"),
        ("search={kind: tpe, seed: -1}", "search.seed -1: input should be greater than or equal to 0"),
        ("scheduler={kind: asha, grace_steps: 999999}", "scheduler.grace_steps 999999 of 32000 steps"),
        ("seeds=[1, 1]", "give one or more, each once"),
        ("seeds=[0, -1]", "seeds.1 -1: input should be greater than or equal to 0"),
        ("seeds=[0, 1234567890123456789]", "name 'isnet-loss-weights': a trial would be named .*-049-s123456789012"),
    ],
)
def test_what_cannot_work_is_refused_on_the_laptop(assignment, message):
    with pytest.raises(ConfigError, match=message):
        load_sweep("isnet-loss-weights", assignments=[assignment])


@pytest.mark.parametrize(
    ("metric", "grace", "every", "path"),
    [("psnr", 800, 3200, "evaluation.every"), ("psnr", 3000, 1600, "evaluation.every"),
     ("health/seam_error", 1800, 1700, "health.every")],
)  # fmt: skip
def test_successive_halving_that_never_sees_a_score_before_the_end_is_refused(metric, grace, every, path):
    """3,200 steps; a score at the last one judges nobody."""
    plain = [f"metrics={{{metric}: max}}", f"scheduler={{kind: asha, grace_steps: {grace}}}"]
    plain += ["settings.evaluation.every=100", "settings.checkpoints.keep_best=0"]
    said = f"{metric} comes every {every} of 3200 steps, so no trial is judged before its end; set settings.{path} to "
    with pytest.raises(ConfigError, match=f"{said}{grace}$"):
        load_sweep("isnet-loss-weights", budget="25.6k", assignments=[*plain, f"settings.{path}={every}"])
    assert load_sweep("isnet-loss-weights", budget="25.6k", assignments=[*plain, f"settings.{path}={grace}"])


def test_a_varied_path_that_does_not_exist_is_refused_with_the_nearest_one(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "preset: tiny\ntrials: 1\nmetrics: {psnr: max}\nvary: {method.weights.styl: {uniform: [0, 1]}}\n"
    )
    with pytest.raises(ConfigError, match="method.weights.styl is not a setting of method.weights; did you mean style"):
        load_sweep(str(path))


def test_a_bound_that_a_run_does_not_take_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("preset: tiny\ntrials: 1\nmetrics: {psnr: max}\nvary: {method.blocks: {choice: [1, 99]}}\n")
    with pytest.raises(ConfigError, match=r"vary method.blocks: .*method.blocks 99"):
        load_sweep(str(path))


@pytest.mark.parametrize("kind", ["uniform", "loguniform"])
@pytest.mark.parametrize("search", ["random", "tpe"])
def test_a_distribution_of_fractions_over_whole_numbers_is_refused(tmp_path, kind, search):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "preset: tiny\ntrials: 1\nmetrics: {psnr: max}\npoints: [{label: one, values: {method.blocks: 1}}]\n"
        f"vary: {{method.blocks: {{{kind}: [1, 4]}}}}\nsearch: {{kind: {search}}}\n"
    )
    with pytest.raises(ConfigError, match=r"vary method.blocks, .* between .* \(or list a choice\): .*blocks 2\.\d"):
        load_sweep(str(path))


def test_draws_that_do_not_go_together_are_refused_before_any_is_trained(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "preset: tiny\ntrials: 8\nmetrics: {psnr: max}\nvary:\n  training.global_batch: {choice: [4, 8]}\n"
        "  training.accumulate: {choice: [1, 8]}\nsettings: {resources.num_workers: 1}\n"  # 4 does not divide into 8
    )
    with pytest.raises(ConfigError, match=r"random \d: .*training.global_batch 4 does not divide into 1 workers × 8"):
        load_sweep(str(path))


def test_the_longest_search_is_checked_in_seconds():
    began = time.process_time()
    load_sweep("isnet-loss-weights", assignments=["trials=100000"])
    assert time.process_time() - began < 10


def test_a_sweep_carries_the_settings_of_a_users_preset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(yaml.safe_dump(without(load_run("tiny").to_dict(), "name", "root") | {"seed": 3}))
    Path("search.yaml").write_text("preset: mine.yaml\ntrials: 1\nmetrics: {psnr: max}\npoints: [{label: one}]\n")
    sweep = load_sweep("search.yaml")
    Path("mine.yaml").unlink()  # as on another machine

    Path("run.yaml").write_text(yaml.safe_dump(sweep.model_dump(mode="json")))
    again = load_sweep("run.yaml")
    assert again == sweep
    run = trial_run(again, {}, name="a", root="r", seed=1)
    assert (run.name, run.root, run.seed, run.method) == ("a", "r", 1, load_run("tiny").method)
    other = load_sweep("run.yaml", assignments=["preset=isfrnet-tiny"])
    assert trial_run(other, {}, name="a", root="r").method.name == "isfrnet"


def without(settings, *keys):
    return {key: value for key, value in settings.items() if key not in keys}


def test_an_unknown_sweep_is_refused_with_the_nearest_one():
    with pytest.raises(ConfigError, match="isnet-los-weights is not a sweep; did you mean isnet-loss-weights"):
        load_sweep("isnet-los-weights")
