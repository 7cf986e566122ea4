"""A search that learns: proposals within bounds, the same for the same results, drawn towards what scored well."""

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


def test_trials_without_a_score_teach_nothing(definition):
    diverged = [Record("000", "x", {L1: 9.0}, 0, "diverged", 3, {}, 1.0)]
    assert propose(definition(), diverged, 1) == propose(definition(), [*diverged], 1)
    assert len(propose(definition(), diverged, 2)) == 2
