"""Successive halving, worked by hand: who is ended at which rung, in whatever order scores come, and after a kill."""

import math

import pytest

from inpaint.config.sweep import ASHA, load_sweep
from inpaint.sweep.halving import Halving, rungs


@pytest.fixture
def halving(tmp_path):
    """Rungs at 4, 8 and 16 of 20 steps, one half goes on; opened anew at each call, as after a kill."""

    def open_rungs(metric="psnr: max"):
        path = tmp_path / "mine.yaml"
        path.write_text(
            f"preset: tiny\ntrials: 9\nmetrics: {{{metric}}}\nvary: {{method.weights.l1: {{uniform: [0, 10]}}}}\n"
            "scheduler: {kind: asha, grace_steps: 4, reduction: 2}\n"
        )
        return Halving(load_sweep(str(path)), total_steps=20, root=str(tmp_path))

    return open_rungs


def test_rungs_are_the_grace_times_powers_of_the_reduction_below_the_end():
    assert rungs(ASHA(kind="asha", grace_steps=100, reduction=3), 2700) == [100, 300, 900]


def test_of_each_rung_the_better_half_goes_on(halving):
    found = halving()
    ended = [found.judge(trial, 4, score) is not None for trial, score in zip("abcd", (20, 18, 19, 21), strict=True)]
    assert ended == [False, True, True, False]  # a alone; b 2nd of 2; c 2nd of 3, one goes on; d best of 4
    assert found.judge("a", 8, 22) is None
    reason = found.judge("d", 8, 21)
    assert reason == "successive halving at step 8: psnr 21 is number 2 of 2, 1 of them may go on"


def test_a_smaller_error_is_better(halving):
    found = halving("l1: min")
    assert found.judge("a", 4, 3.0) is None
    assert found.judge("b", 4, 2.0) is None
    assert found.judge("c", 4, 5.0) is not None


def test_before_the_first_rung_nobody_is_judged(halving):
    assert halving().judge("a", 3, -math.inf) is None


def test_a_score_that_is_not_finite_ends_a_trial_and_counts_as_no_better_one(halving):
    found = halving()
    assert "not finite" in found.judge("a", 4, math.nan)
    assert found.judge("b", 4, 1.0) is None


def test_a_score_after_a_rung_is_judged_there_once(halving):
    found = halving()
    assert found.judge("a", 5, 20) is None
    assert found.judge("b", 5, 30) is None
    assert found.judge("a", 7, 1) is None  # it had passed


def test_after_a_kill_the_rungs_are_as_they_were(halving):
    before = halving()
    assert before.judge("a", 4, 20) is None
    ended = before.judge("b", 4, 10)
    again = halving()
    assert again.judge("b", 4, 10) == ended
    assert again.judge("b", 6, 99) == ended  # it went on a little before its end was seen
    assert again.judge("a", 4, 20) is None
    assert again.judge("c", 4, 15) is not None  # judged against those before the kill
