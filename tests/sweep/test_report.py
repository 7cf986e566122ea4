"""What a sweep's records say, on records with answers worked by hand."""

import csv
import io
from dataclasses import replace

import pytest
from scipy.stats import spearmanr

from inpaint.config.sweep import load_sweep
from inpaint.errors import ConfigError
from inpaint.sweep.analysis import axis_of, importance, pareto_front, ranked, spearman, spread
from inpaint.sweep.blocks import rank_agreement
from inpaint.sweep.promote import promoted
from inpaint.sweep.report import report_sweep
from inpaint.sweep.trials import Record, begin, planned, write_record

PRINTED_PSNR = [24.06, 23.68, 22.65, 23.13, 23.60, 23.45, 23.88, 21.99, 22.92, 23.01]  # ISNet, Table 1


@pytest.fixture
def sweep():
    return load_sweep("isnet-loss-weights", budget="tiny", assignments=["settings.data.dataset=photos", "trials=10"])


def made(sweep, scores, status="finished"):
    return {
        trial.id: Record(trial.id, trial.label, trial.values, trial.seed, status, 40, metrics, 60.0)
        for trial, metrics in zip(planned(sweep), scores, strict=False)
    }


def test_rank_correlation_equals_scipys_with_ties():
    first, second = [1.0, 2.0, 2.0, 5.0, 4.0], [3.0, 1.0, 2.0, 9.0, 9.0]
    found = spearman(first, second)
    assert found.value == pytest.approx(spearmanr(first, second).statistic)
    assert found.low <= found.value <= found.high


def test_rank_correlation_of_two_pairs_or_of_a_constant_does_not_exist():
    assert spearman([1.0, 2.0], [1.0, 2.0]) is None
    assert spearman([1.0, 2.0, 3.0], [5.0, 5.0, 5.0]) is None


def test_scores_in_the_printed_order_agree_fully_with_the_paper(sweep):
    records = made(sweep, [{"psnr": score - 3, "l1": 5.0} for score in PRINTED_PSNR])
    found = rank_agreement("isnet_table1", records, "psnr")
    assert found.value == pytest.approx(1.0)
    assert found.n == 10


def test_a_diverged_trial_counts_in_no_ranking(sweep):
    records = made(sweep, [{"psnr": 30.0}], status="diverged") | made(sweep, [{}, {"psnr": 1.0}, {"psnr": 2.0}])
    assert [record.id for record in ranked(records, sweep)] == ["002", "001"]


def test_the_front_holds_what_nothing_beats(sweep):
    scores = [{"psnr": 20, "l1": 5}, {"psnr": 22, "l1": 6}, {"psnr": 19, "l1": 5}, {"psnr": 22, "l1": 7}]
    front = pareto_front(made(sweep, scores), {"psnr": "max", "l1": "min"})
    assert [record.id for record in front] == ["001", "000"]


def test_a_score_that_is_not_finite_is_on_no_front(sweep):
    nan = float("nan")
    scores = [{"psnr": 20, "l1": 5}, {"psnr": 22, "l1": 6}, {"psnr": 10, "l1": nan}, {"psnr": nan, "l1": 1}]
    front = pareto_front(made(sweep, scores), {"psnr": "max", "l1": "min"})
    assert [record.id for record in front] == ["001", "000"]


def test_a_weight_that_orders_the_scores_is_the_most_important(sweep):
    trials = planned(sweep)
    order = sorted(trials, key=lambda trial: trial.values["method.weights.style"])
    scores = [{"psnr": float(order.index(trial))} for trial in trials]
    found = importance(made(sweep, scores), sweep)
    assert next(iter(found)) == "method.weights.style"
    assert found["method.weights.style"] == pytest.approx(1.0)


def test_spread_over_seeds_is_the_sample_deviation():
    sweep = load_sweep("isnet-ablation", budget="tiny", assignments=["seeds=[0, 1]"])
    records = made(sweep, [{"psnr": 20.0}, {"psnr": 22.0}])
    assert spread(records, "psnr") == {"Table 2, row 1": (21.0, pytest.approx(2**0.5), 2)}


def seeded(tmp_path, scores):
    """A sweep of three points with three seeds each, and its records: scores by point, then by seed; None diverged."""
    sweep = load_sweep(
        "isnet-loss-weights", budget="tiny",
        assignments=["settings.data.dataset=photos", "trials=3", "seeds=[0, 1, 2]", "published=[]"],
    )  # fmt: skip
    flat = [score for point in scores for score in point]
    records = made(sweep, [{"psnr": score, "l1": 30.0 - score} if score else {} for score in flat])
    ended = {name: "finished" if records[name].metrics else "diverged" for name in records}
    records = {name: replace(record, status=ended[name]) for name, record in records.items()}
    begin(sweep, root=str(tmp_path))
    for record in records.values():
        write_record(sweep, record, root=str(tmp_path))
    return sweep, records


LUCKY = [[20.0, 20.0, 29.0], [25.0, 24.0, 26.0], [22.0, 22.0, 22.0]]  # means 23, 25, 22


def test_a_points_luckiest_seed_does_not_rank_it(tmp_path):
    sweep, records = seeded(tmp_path, LUCKY)
    assert [(point.id, point.metrics["psnr"]) for point in ranked(records, sweep)] == [
        ("001", 25.0), ("000", 23.0), ("002", 22.0)
    ]  # fmt: skip
    assert [point.id for point in pareto_front(records, {"psnr": "max", "l1": "min"})] == ["001"]
    text = report_sweep(sweep.name, root=str(tmp_path)).markdown
    best = text[text.index("## Best trials by psnr") :].split("\n## ")[0]
    rows = [line for line in best.splitlines() if line.startswith("| 0")]
    assert rows[0].startswith("| 001 | Table 1, row 2 |")
    assert rows[0].endswith("| 25 ± 1 | 5 ± 1 | 3 of 3 |")
    assert len(rows) == 3
    assert "Mean over seeds ± standard deviation" in best


def test_a_point_that_only_a_lucky_seed_finished_comes_behind_and_is_on_no_front(tmp_path):
    sweep, records = seeded(tmp_path, [[None, None, 29.0], *LUCKY[1:]])
    assert [point.id for point in ranked(records, sweep)] == ["001", "002", "000"]
    assert [point.id for point in pareto_front(records, {"psnr": "max", "l1": "min"})] == ["001"]


def test_importance_is_over_points_and_not_over_seeds(tmp_path):
    """The means follow the weight of the style term, the single seeds do not."""
    sweep, _ = seeded(tmp_path, LUCKY)
    styles = [planned(sweep)[3 * point].values["method.weights.style"] for point in range(3)]
    order = sorted(range(3), key=lambda point: styles[point])
    scores = dict(zip(order, (22.0, 23.0, 25.0), strict=True))
    _, records = seeded(tmp_path, [[scores[point] + luck for luck in (-5.0, 0.0, 5.0)] for point in range(3)])
    assert importance(records, sweep)["method.weights.style"] == pytest.approx(1.0)


def test_the_promoted_trial_is_of_the_point_that_is_best_on_average(tmp_path):
    sweep, _ = seeded(tmp_path, LUCKY)
    for asked in (None, "001"):
        text = promoted(sweep.name, asked, preset="better", root=str(tmp_path))
        first = "# better: trial 001-s0 (Table 1, row 2) of sweep isnet-loss-weights, psnr 25 ± 1 over 3 seeds"
        assert text.startswith(f"{first} after 40 steps")


def test_of_a_sweep_without_finished_trials_none_is_promoted(tmp_path):
    sweep, _ = seeded(tmp_path, [[None] * 3] * 3)
    with pytest.raises(ConfigError, match="isnet-loss-weights has no finished trial yet"):
        promoted(sweep.name, None, preset="better", root=str(tmp_path))


def test_a_log_uniform_axis_has_its_geometric_middle_in_the_middle(sweep):
    assert axis_of(sweep, "method.weights.l1", 30**0.5) == pytest.approx(0.5)


def test_what_only_a_point_tries_lies_at_an_end_of_its_axis(sweep):
    assert axis_of(sweep, "method.weights.l1", 0.0) == 0
    assert axis_of(sweep, "method.weights.l1", 1e9) == 1
    designs = load_sweep("isnet-design")
    assert axis_of(designs, "method.design", "another") == 1


def test_the_report_shows_printed_beside_ours_in_three_forms(sweep, tmp_path):
    begin(sweep, root=str(tmp_path))
    for record in made(sweep, [{"psnr": s - 3, "l1": 7.25, "generator/l1": 0.5} for s in PRINTED_PSNR]).values():
        write_record(sweep, record, root=str(tmp_path))
    report = report_sweep(sweep.name, root=str(tmp_path))
    assert "| 1 | 48.08 | 5.412 | 15.97 | 40.15 | 0.1181 | 24.06 | 21.06 | 4.445 | 7.25 |" in report.markdown
    assert "Spearman's rank correlation of psnr, printed against ours: +1.00" in report.markdown
    assert "http" not in report.html.replace("http://www.w3.org", "")
    rows = list(csv.DictReader(io.StringIO(report.csv)))
    assert float(rows[0]["psnr"]) == pytest.approx(21.06)
    assert rows[9]["point"] == "Table 1, row 10"


def test_random_feature_weights_are_marked_in_the_report(tmp_path):
    sweep = load_sweep("isnet-loss-weights", budget="tiny", assignments=["settings.feature_weights.vgg19=random"])
    begin(sweep, root=str(tmp_path))
    assert "RANDOM weights" in report_sweep(sweep.name, root=str(tmp_path)).markdown


def test_the_design_study_is_laid_beside_both_of_its_tables(tmp_path):
    sweep = load_sweep("isnet-design", budget="tiny", assignments=["settings.data.dataset=photos"])
    begin(sweep, root=str(tmp_path))
    for record in made(sweep, [{"psnr": 20.0 + n, "ssim": 0.5, "l1": 5.0} for n in range(7)]).values():
        write_record(sweep, record, root=str(tmp_path))
    text = report_sweep(sweep.name, root=str(tmp_path)).markdown
    seven, eight = (text[text.index(f"## Table {n}, ") :].split("\n## ")[0] for n in (7, 8))
    assert "| 1 | unet | 4 |" in seven
    assert "| 1 | isnet | 1 |" in eight
    assert "| 4 | isnet | 4 |" in seven
    assert "| 4 | isnet | 4 |" in eight  # the same trial


def test_a_row_tried_with_several_seeds_is_shown_as_mean_and_deviation(tmp_path):
    sweep = load_sweep(
        "isnet-ablation", budget="tiny", assignments=["settings.data.dataset=photos", "seeds=[0, 1]", "trials=7"]
    )
    begin(sweep, root=str(tmp_path))
    for record in made(sweep, [{"psnr": psnr, "l1": 5.0} for psnr in (20.0, 22.0, 18.0, 18.0)]).values():
        write_record(sweep, record, root=str(tmp_path))
    text = report_sweep(sweep.name, root=str(tmp_path)).markdown
    assert "| 21 ± 1.4 |" in text  # sqrt(2)
    assert "| Table 2, row 1 | 21 | 1.4 | 2 |" in text


def test_of_several_seeds_the_one_that_finished_is_shown(tmp_path):
    sweep = load_sweep("isnet-ablation", budget="tiny", assignments=["seeds=[0, 1]", "trials=7"])
    begin(sweep, root=str(tmp_path))
    first = made(sweep, [{"psnr": 9.5}], status="diverged")
    for record in (made(sweep, [{}, {"psnr": 21.5}]) | first).values():
        write_record(sweep, record, root=str(tmp_path))
    text = report_sweep(sweep.name, root=str(tmp_path)).markdown
    beside = text[text.index("## Table 2, ") :].split("\n## ")[0]
    assert "| 21.5 |" in beside
    assert "9.5" not in beside.replace("21.5", "")


@pytest.mark.parametrize(
    ("definition", "settings", "marked"),
    [
        ("isnet-loss-weights", [], ""),
        ("isnet-loss-weights", ["settings.data.dataset=photos"], "data set photos, not places2 as"),
        ("isfrnet-variants", [], ""),  # celeba, as in its paper; beside no published table
        ("gated-hdc", ["settings.data.dataset=photos"], ""),
        ("isnet-loss-weights", ["published=[dina_table1]", "settings.data.dataset=psv"], ""),  # another name of it
    ],
)
def test_a_data_set_is_marked_where_it_is_not_that_of_the_published_tables(tmp_path, definition, settings, marked):
    sweep = load_sweep(definition, assignments=settings)
    begin(sweep, root=str(tmp_path))
    text = report_sweep(sweep.name, root=str(tmp_path)).markdown
    assert f"Marked: {marked}" in text if marked else "Marked: data set" not in text


def test_what_trials_say_breaks_no_table(sweep, tmp_path):
    begin(sweep, root=str(tmp_path))
    first = next(iter(made(sweep, [{}], status="failed").values()))
    first = replace(first, label="l1 | style", reason="out of memory:\n  worker 3\r\n  worker 4")
    write_record(sweep, first, root=str(tmp_path))
    text = report_sweep(sweep.name, root=str(tmp_path)).markdown
    lines = text[text.index("## Trials that did not finish") :].splitlines()
    assert lines[-1] == r"| 000 | l1 \| style | failed | 40 | out of memory: worker 3 worker 4 |"


def test_the_report_shows_where_score_and_look_disagree(sweep, tmp_path):
    """PSNR 20 to 29; LPIPS best in the middle, so the front is the middle and what scores higher."""
    begin(sweep, root=str(tmp_path))
    scores = [
        {"psnr": 20.0 + n, "l1": 5.0, "lpips_squeeze": 0.1 + 0.01 * abs(n - 6), "health/seam_error": 0.1 * n,
         "generator/style": 0.5, "health/share/generator/style": 0.25, "data/samples": 3.0}
        for n in range(10)
    ]  # fmt: skip
    for record in made(sweep, scores).values():
        write_record(sweep, record, root=str(tmp_path))
    text = report_sweep(sweep.name, root=str(tmp_path)).markdown
    front = text[text.index("## Pareto front of psnr and lpips_squeeze") :].split("\n## ")[0]
    assert [line.split(" | ")[1] for line in front.splitlines()[2:] if line.startswith("| 0")] == [
        f"Table 1, row {row}" for row in (10, 9, 8, 7)
    ]
    assert "Spearman's rank correlation of psnr with health/seam_error: +1.00" in text
    assert "| 000 | Table 1, row 1 | 0.5 | 25.0% |" in text  # raw magnitude and share, nothing of the data
    assert "data/samples" not in text
    assert "so -1 would be full agreement of score and look" in text  # PSNR is better when it is larger


def test_score_and_look_that_are_both_better_when_smaller_agree_fully_at_plus_one(tmp_path):
    settings = ["settings.data.dataset=photos", "trials=10", "metrics={l1: min}", "published=[]"]
    sweep = load_sweep("isnet-loss-weights", budget="tiny", assignments=settings)
    begin(sweep, root=str(tmp_path))
    scores = [{"l1": 5.0 + n, "lpips_squeeze": 0.1 + 0.01 * n} for n in range(10)]
    for record in made(sweep, scores).values():
        write_record(sweep, record, root=str(tmp_path))
    text = report_sweep(sweep.name, root=str(tmp_path)).markdown
    assert "Spearman's rank correlation of l1 with lpips_squeeze: +1.00" in text
    assert "so +1 would be full agreement of score and look" in text
