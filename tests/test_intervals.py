"""Errors and parts where rows come in groups."""

import numpy as np
import pytest

from cee_gym.intervals import error_of_ratio, parts_of


def test_of_single_rows_it_is_that_of_a_mean() -> None:
    values = np.random.default_rng(0).random(50)
    own = values.std(ddof=1) / 50**0.5
    assert error_of_ratio(values, np.ones(50, dtype=int)) == pytest.approx(own)


def test_tokens_that_say_the_same_are_one_row() -> None:
    rng = np.random.default_rng(0)
    values = rng.random(40)
    counts = np.full(40, 25)
    assert error_of_ratio(values * 25, counts) == pytest.approx(
        error_of_ratio(values, np.ones(40, dtype=int))
    )
    assert error_of_ratio(np.ones(1), np.ones(1, dtype=int)) == 0


def test_a_group_comes_into_one_part() -> None:
    groups = np.random.default_rng(0).integers(0, 12, 200)
    parts = parts_of(200, 5, 0, groups)
    assert sorted(np.concatenate(parts)) == list(range(200))
    assert len(parts) == 5
    for one in range(5):
        for other in range(one):
            assert not set(groups[parts[one]]) & set(groups[parts[other]])
    assert len(parts_of(3, 5, 0)) == 3
