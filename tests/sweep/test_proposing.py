"""A search that learns: proposals within bounds, the same for the same results, drawn towards what scored well."""

from dataclasses import replace

import pytest

from inpaint.config.sweep import load_sweep
from inpaint.sweep.proposing import propose
from inpaint.sweep.trials import Record

L1 = "method.weights.l1"


@pytest.fixture
def definition(tmp_path):
    def load(**search):
        path = tmp_path / "mine.yaml"
        path.write_text(
            f"preset: tiny\ntrials: 40\nmetrics: {{psnr: max, l1: min}}\nvary: {{{L1}: {{uniform: [0, 10]}}}}\n"
        )
        settings = ", ".join(f"{key}: {value}" for key, value in {"kind": "tpe", **search}.items())
        return load_sweep(str(path), assignments=[f"search={{{settings}}}"])

    return load


def records(values, score):
    return [
        Record(f"{n:03d}", "x", {L1: value}, 0, "finished", 12, score(value), 1.0) for n, value in enumerate(values)
    ]


def test_proposals_lie_within_bounds_and_are_the_same_for_the_same_results(definition):
    sweep = definition(multi_objective="true")
    known = records([0.2, 1.0, 5.0], lambda value: {"psnr": 20 - value, "l1": value})
    proposed = propose(sweep, known, 3)
    assert proposed == propose(sweep, known, 3)
    assert all(0 <= values[L1] <= 10 for values in proposed)
    assert proposed != propose(definition(multi_objective="true", seed=1), known, 3)


@pytest.mark.parametrize(
    ("multi_objective", "score", "best"),
    [
        ("false", lambda value: {"psnr": -abs(value - 8), "l1": abs(value - 2)}, 8),  # the first metric alone counts
        ("true", lambda value: {"psnr": -abs(value - 8), "l1": abs(value - 8)}, 8),
        ("true", lambda value: {"psnr": -abs(value - 2), "l1": abs(value - 2)}, 2),
    ],
)
def test_proposals_are_drawn_towards_what_scored_well(definition, multi_objective, score, best):
    known = records([n / 2 for n in range(21)], score)
    proposed = [values[L1] for values in propose(definition(multi_objective=multi_objective), known, 12)]
    assert sum(abs(value - best) < 2 for value in proposed) > 8  # of 12; five would be chance


def ended(values, status, step=12, **scores):
    return Record("900", "x", values, 0, status, step, scores, 1.0)


@pytest.mark.parametrize("multi_objective", ["false", "true"])
@pytest.mark.parametrize(
    "record",
    [
        ended({L1: 9.0}, "failed", 3, psnr=99.0, l1=0.0),
        ended({L1: 90.0}, "finished", psnr=99.0, l1=0.0),  # a fixed point beyond the bounds
        ended({L1: 90.0}, "diverged", 3),
        ended({}, "finished", psnr=99.0, l1=0.0),  # a fixed point that leaves the preset's value
    ],
)
def test_what_is_no_result_within_the_space_teaches_nothing(definition, multi_objective, record):
    sweep = definition(multi_objective=multi_objective)
    known = records([n / 2 for n in range(21)], lambda value: {"psnr": -abs(value - 2), "l1": abs(value - 2)})
    proposed = [values[L1] for values in propose(sweep, [*known, record], 12)]
    other = ended({L1: 5.0}, "failed", 3)  # moves the seed as the first does
    assert proposed == [values[L1] for values in propose(sweep, [*known, other], 12)]


@pytest.mark.parametrize("multi_objective", ["false", "true"])
@pytest.mark.parametrize(
    ("status", "scores"),
    [
        ("diverged", {}),
        ("diverged", {"psnr": 99.0, "l1": 0.0}),  # of an evaluation before
        ("finished", {"psnr": float("nan"), "l1": 0.0}),
        ("finished", {"psnr": float("inf"), "l1": float("nan")}),
    ],
)
def test_trials_without_a_result_keep_the_search_away(definition, multi_objective, status, scores):
    """Scores rise up to 6; beyond it no trial has one. In 40 trials made one after another, a search that learns
    nothing from that asks for 30 of those."""

    def made(number, value):
        if value > 6:
            return replace(ended({L1: value}, status, **scores), id=f"{number:03d}")
        return replace(ended({L1: value}, "finished", psnr=value, l1=-value), id=f"{number:03d}")

    sweep, known = definition(multi_objective=multi_objective), []
    for number in range(40):
        known.append(made(number, propose(sweep, known, 1)[0][L1]))

    values = [record.values[L1] for record in known]
    assert sum(value > 6 for value in values) < 20
    assert max(value for value in values if value <= 6) > 5.5


def test_trials_that_diverged_before_any_finished_are_no_obstacle(definition):
    known = [replace(ended({L1: n / 2}, "diverged"), id=f"{n:03d}") for n in range(12)]
    for multi_objective in ("false", "true"):
        assert len(propose(definition(multi_objective=multi_objective), known, 3)) == 3


def test_a_fixed_point_outside_of_the_choices_teaches_nothing(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "preset: tiny\ntrials: 40\nmetrics: {psnr: max}\nvary: {training.accumulate: {choice: [1, 2]}}\n"
        "search: {kind: tpe}\n"
    )
    point = ended({"training.accumulate": 5}, "finished", psnr=20.0)
    assert propose(load_sweep(str(path)), [point], 1)[0]["training.accumulate"] in (1, 2)


def test_trials_that_halving_stopped_do_not_attract_by_their_early_scores(definition):
    """Finished ones score best at 2; those that were stopped at 9 had twice that."""
    known = records([n / 2 for n in range(21)], lambda value: {"psnr": 10 - abs(value - 2)})
    stopped = [replace(ended({L1: 8.8 + n / 10}, "stopped", 4, psnr=20.0), id=f"90{n}") for n in range(4)]

    def near_nine(*others):
        return sum(abs(values[L1] - 9) < 1 for values in propose(definition(), [*known, *others], 12))

    assert near_nine(*stopped) == 0
    assert near_nine(*(replace(record, status="finished") for record in stopped)) > 5  # of 12; two are chance


def test_neighbouring_seeds_search_elsewhere(definition):
    """As a sum, a seed and the number of records would give the search of seed 1 the draws of seed 0 one point on."""

    def drawn(seed):
        known = records([1.0, 2.0, 3.0], lambda value: {"psnr": value, "l1": value})
        return {propose(definition(seed=seed), known[:made], 1)[0][L1] for made in range(4)}

    assert not drawn(0) & drawn(1)
