"""Rows are shared out without overlap, whatever the way."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cee_gym.errors import DataError
from cee_gym.training.partition import partition

WAYS = ("held_out", "cross_fit", "fitted")


@given(n=st.integers(20, 300), seed=st.integers(0, 5), way=st.sampled_from(WAYS))
def test_no_row_is_lost_and_calibration_is_seen_by_nobody(n: int, seed: int, way: str) -> None:
    shares = partition(n, way, seed=seed)  # type: ignore[arg-type]
    used = np.concatenate([shares.policy, shares.calibration, *shares.fit.values()])
    assert set(used) == set(range(n))
    for rows in (shares.policy, *shares.fit.values()):
        assert not set(rows) & set(shares.calibration)
        assert len(set(rows)) == len(rows)


@given(n=st.integers(20, 300), seed=st.integers(0, 5), way=st.sampled_from(WAYS[:2]))
def test_no_row_is_traced_by_a_backbone_fitted_to_it(n: int, seed: int, way: str) -> None:
    shares = partition(n, way, seed=seed)  # type: ignore[arg-type]
    for row, name in zip(shares.policy, shares.traced_by, strict=True):
        assert row not in shares.fit[name]


def test_the_papers_way_traces_the_rows_it_was_fitted_to() -> None:
    shares = partition(100, "fitted")
    np.testing.assert_array_equal(shares.policy, shares.fit["deployed"])


def test_cross_fitting_deploys_a_backbone_fitted_to_all_policy_rows() -> None:
    shares = partition(100, "cross_fit", folds=4)
    np.testing.assert_array_equal(shares.policy, shares.fit["deployed"])
    folds = [set(shares.policy) - set(shares.fit[f"fold-{k}"]) for k in range(1, 5)]
    assert set.union(*folds) == set(shares.policy)
    assert sum(map(len, folds)) == len(shares.policy)


def test_shares_are_as_asked_for() -> None:
    shares = partition(1000, "held_out", held_out=0.2, calibration=0.1)
    assert (len(shares.policy), len(shares.calibration), len(shares.fit["deployed"])) == (
        200,
        100,
        700,
    )


def test_too_few_rows_and_unknown_ways_are_refused() -> None:
    with pytest.raises(DataError, match="too few"):
        partition(2, "held_out")
    with pytest.raises(DataError, match="cross_fit"):
        partition(100, "crossfit")  # type: ignore[arg-type]


def test_more_folds_than_rows_are_refused() -> None:
    with pytest.raises(DataError, match="too few for 90 folds"):
        partition(80, "cross_fit", folds=90)
