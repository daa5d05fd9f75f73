"""Intervals, against scipy and against the formulas of rliable."""

import numpy as np
import pytest
from scipy import stats

from cee_gym.evaluation.resampling import (
    Interval,
    in_words,
    interquartile_mean,
    over_seeds,
    paired_difference,
    probability_of_improvement,
)


def test_a_paired_interval_is_that_of_scipys_bootstrap() -> None:
    rng = np.random.default_rng(1)
    first = rng.random(400) < 0.8
    second = first ^ (rng.random(400) < 0.1)
    found = paired_difference(first.astype(float), second.astype(float))
    difference = first.astype(float) - second
    theirs = stats.bootstrap(
        (difference,), np.mean, method="percentile", n_resamples=2000, rng=np.random.default_rng(2)
    ).confidence_interval
    assert found.mean == pytest.approx(difference.mean())
    assert found.low == pytest.approx(theirs.low, abs=0.006)
    assert found.high == pytest.approx(theirs.high, abs=0.006)


def test_rows_of_one_group_are_drawn_together() -> None:
    rng = np.random.default_rng(0)
    of_text = rng.normal(size=50)
    first = np.repeat(of_text, 20)  # every token of a text is alike
    groups = np.repeat(np.arange(50), 20)
    apart = paired_difference(first, np.zeros(1000))
    together = paired_difference(first, np.zeros(1000), groups=groups)
    assert together.mean == pytest.approx(apart.mean)
    wide = (together.high - together.low) / (apart.high - apart.low)
    assert wide == pytest.approx(20**0.5, rel=0.15)


def test_the_interquartile_mean_is_that_of_the_middle_half() -> None:
    scores = np.random.default_rng(0).normal(size=(8, 3))
    middle = np.sort(scores.ravel())[6:18]
    assert interquartile_mean(scores) == pytest.approx(middle.mean())


def test_the_probability_of_improvement_is_mann_and_whitneys() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.integers(5, size=(6, 4)) + 0.0, rng.integers(5, size=(3, 4)) + 0.0
    u = [stats.mannwhitneyu(first[:, t], second[:, t]).statistic / 18 for t in range(4)]
    assert probability_of_improvement(first, second) == pytest.approx(np.mean(u))


def test_seeds_are_drawn_for_each_task_by_itself() -> None:
    scores = np.array([[0.0, 10.0], [1.0, 11.0], [2.0, 12.0]])
    found = over_seeds(lambda drawn: float(drawn.mean()), scores)
    assert found.mean == 6
    assert 5 <= found.low < 5.5 < 6.5 < found.high <= 7
    same = over_seeds(lambda drawn: float(drawn.mean()), np.ones((3, 2)))
    assert same == (1, 1, 1)


def test_what_is_seen_is_said() -> None:
    said = in_words(
        {
            "a": Interval(0.01, 0.005, 0.02),
            "b": Interval(-0.01, -0.02, -0.001),
            "c": Interval(0.01, -0.01, 0.03),
        }
    )
    assert [line.split(",")[0] for line in said] == [
        *("a: it is ahead", "b: it is behind", "c: no difference can be seen")
    ]
    assert "+1.00 points (+0.50 to +2.00)" in said[0]
