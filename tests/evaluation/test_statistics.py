from __future__ import annotations

import math

import numpy as np
import pytest

from inpaint.evaluation.statistics import Estimate, estimate, paired_difference


def test_a_perfect_image_is_capped_at_100_dB_or_zero_or_infinite_as_the_protocol_says_and_counted():
    scores = np.array([20.0, 30.0, math.inf, math.inf])
    capped, zero, infinite = (estimate(scores, perfect=rule) for rule in ("capped", "zero", "infinite"))
    assert (capped.mean, capped.perfect, capped.n) == (62.5, 2, 4)
    assert zero.mean == 12.5
    assert infinite.mean == math.inf
    assert infinite.perfect == 2


def test_an_undefined_score_is_left_out_and_counted_and_nothing_defined_gives_none():
    found = estimate(np.array([1.0, math.nan, 3.0]))
    assert (found.mean, found.n, found.undefined) == (2.0, 2, 1)
    assert estimate(np.array([math.nan])) is None


def test_the_interval_of_a_normal_sample_is_1_96_standard_errors_wide_on_both_sides():
    values = np.random.default_rng(1).normal(25, 4, 400)
    found = estimate(values)
    error = values.std() / 20
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.12 * error * 2)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.12 * error * 2)


def test_the_bootstrap_resamples_images_not_pairs():
    """Six copies of each image's score say nothing new, so the interval stays as wide as that of one."""
    values = np.random.default_rng(2).normal(25, 4, 50)
    once = estimate(values, images=[str(i) for i in range(50)])
    sixfold = estimate(np.repeat(values, 6), images=[str(i) for i in range(50) for _ in range(6)])
    blind = estimate(np.repeat(values, 6))
    assert sixfold.high - sixfold.low == pytest.approx(once.high - once.low, rel=0.1)
    assert blind.high - blind.low < 0.6 * (once.high - once.low)


def test_a_paired_difference_is_far_surer_than_the_two_means():
    base = np.random.default_rng(3).normal(25, 5, 60)
    found = paired_difference(base + 0.5, base)
    assert found.mean == pytest.approx(0.5)
    assert found.high - found.low < 1e-6
    both_perfect = paired_difference(np.array([math.inf, 3.0]), np.array([math.inf, 1.0]))
    assert (both_perfect.mean, both_perfect.perfect) == (1.0, 1)
    one_perfect = paired_difference(np.array([math.inf, 3.0]), np.array([2.0, 1.0]))
    assert (one_perfect.n, one_perfect.undefined) == (1, 1)


def test_an_estimate_survives_its_plain_form_even_when_infinite():
    found = Estimate(math.inf, math.inf, math.inf, 3, 1)
    assert Estimate.of(found.to_dict()) == found
    assert found.to_dict()["mean"] == "inf"
