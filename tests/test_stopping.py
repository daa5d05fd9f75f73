"""Regression backwards, and the ridge regression it is made of."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge, RidgeCV

from cee_gym.stopping import PENALTIES, regress_backwards, ridge, ridge_by_leaving_one_out


@pytest.mark.parametrize(
    ("rows", "width", "noise"), [(300, 20, 0.1), (300, 20, 3.0), (60, 100, 1.0)]
)
def test_the_ridge_is_that_of_scikit_learn(rows, width, noise) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(2, 3, size=(rows, width))
    x[:, 3] = 1.0  # a part that is constant, as alpha is
    y = x @ rng.normal(size=width) + noise * width * rng.normal(size=rows)
    theirs = RidgeCV(alphas=PENALTIES).fit(x, y)
    ours = ridge_by_leaving_one_out(x, y)
    assert ours.penalty == pytest.approx(theirs.alpha_)
    np.testing.assert_allclose(ours.weight, theirs.coef_, rtol=1e-6, atol=1e-9)
    assert ours.bias == pytest.approx(theirs.intercept_)
    fixed, other = ridge(x, y, 7.0), Ridge(alpha=7.0).fit(x, y)
    np.testing.assert_allclose(fixed.weight, other.coef_, rtol=1e-6, atol=1e-9)
    assert fixed.bias == pytest.approx(other.intercept_)


def test_it_finds_the_optimal_stopping_rule_of_a_linear_problem() -> None:
    """Leaving now pays x, leaving later 0 in the mean: the optimum is to leave where x > 0."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 1))
    states = np.stack([x, np.zeros_like(x)], axis=1)
    noise = rng.normal(size=(4000, 2))
    rewards = np.concatenate([x, np.zeros_like(x)], axis=1) + noise
    found = regress_backwards(states, rewards, folds=5, seed=0)
    assert found.weight[0, 0] > 0
    assert abs(found.bias[0] / found.weight[0, 0]) < 0.1  # the boundary
    assert found.bias[1] > 0  # the last exit is forced


def test_noise_is_not_mistaken_for_foresight() -> None:
    """With more features than instances an instance that judged itself would seem to gain a lot."""
    rng = np.random.default_rng(0)
    states, rewards = rng.normal(size=(80, 3, 200)), rng.normal(size=(80, 3))
    fresh_states, fresh = rng.normal(size=(4000, 3, 200)), rng.normal(size=(4000, 3))
    found = regress_backwards(states, rewards, folds=5, seed=0)
    left = found.exits_of(fresh_states) - 1
    assert abs(fresh[np.arange(4000), left].mean()) < 0.06
    # The ridge has found that there is nothing to find.
    assert np.abs(np.einsum("nld,ld->nl", states, found.weight))[:, :2].mean() < 0.5


def test_who_judges_himself_gains_from_noise() -> None:
    rng = np.random.default_rng(0)
    states, rewards = rng.normal(size=(200, 3, 50)), rng.normal(size=(200, 3))

    def earned(folds: int) -> float:
        exits = regress_backwards(states, rewards, folds, seed=0).exits
        return float(rewards[np.arange(200), exits - 1].mean())

    assert earned(1) > 0.2
    assert abs(earned(5)) < 0.15
