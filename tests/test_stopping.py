"""Regression backwards, and the ridge regression it is made of."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge, RidgeCV

from cee_gym.problem import open_problem
from cee_gym.returns import best_threshold, first_exit
from cee_gym.stopping import (
    PENALTIES,
    StatesByRows,
    Sums,
    improve_on_threshold,
    regress_backwards,
    ridge,
    ridge_by_leaving_one_out,
)


@pytest.mark.parametrize(
    ("rows", "width", "noise"), [(300, 20, 0.1), (300, 20, 3.0), (60, 100, 1.0)]
)
def test_the_ridge_is_that_of_scikit_learn(rows, width, noise) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(2, 3, size=(rows, width))
    x[:, 3] = 1.0  # a part that is constant, as alpha is
    y = x @ rng.normal(size=width) + noise * width * rng.normal(size=rows)
    theirs = RidgeCV(alphas=PENALTIES).fit(x, y)
    ours = ridge_by_leaving_one_out(Sums.of(x, y), [(x[:50], y[:50]), (x[50:], y[50:])])
    assert ours.penalty == pytest.approx(theirs.alpha_)
    np.testing.assert_allclose(ours.weight, theirs.coef_, rtol=1e-6, atol=1e-9)
    assert ours.bias == pytest.approx(theirs.intercept_)
    fixed, other = ridge(Sums.of(x, y), 7.0), Ridge(alpha=7.0).fit(x, y)
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


def in_parts(states: np.ndarray, longest: list[int]) -> StatesByRows:
    """States that are read from an array, and how many rows at a time at most."""

    def read(rows: slice, layer: int | None) -> np.ndarray:
        longest.append(len(states[rows]))
        return states[rows] if layer is None else states[rows, layer]

    return StatesByRows(states.shape, read)


@pytest.mark.parametrize("most_in_memory", [0, 10**9])
@pytest.mark.parametrize("folds", [1, 5])
def test_read_by_rows_the_result_is_the_same(monkeypatch, most_in_memory, folds) -> None:
    rng = np.random.default_rng(0)
    states = rng.normal(50, 2, size=(300, 4, 6)).astype(np.float32)
    states[..., 2] = 1.3  # a part that is constant, as alpha is
    rewards = rng.random((300, 4)) + 0.2 * (states[..., 0] > 50)
    scores = rng.random((300, 4))
    whole = regress_backwards(states, rewards, folds, seed=0)
    improved = improve_on_threshold([states, states], scores, np.stack([rewards, 0.9 * rewards]))
    monkeypatch.setattr("cee_gym.stopping._BYTES_AT_A_TIME", 2000)
    monkeypatch.setattr("cee_gym.stopping.MOST_BYTES_IN_MEMORY", most_in_memory)
    longest: list[int] = []
    parts = in_parts(states, longest)
    found = regress_backwards(parts, rewards, folds, seed=0)
    np.testing.assert_allclose(found.weight, whole.weight, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found.bias, whole.bias, rtol=1e-6)
    assert np.array_equal(found.exits, whole.exits)
    assert np.array_equal(found.exits_of(parts), whole.exits_of(states))
    again = improve_on_threshold([parts, parts], scores, np.stack([rewards, 0.9 * rewards]))
    for one, other in zip(again, improved, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-9)
    assert max(longest) < 50


def by_steps(scores: np.ndarray, rewards: np.ndarray) -> np.ndarray:
    """What leaving at each layer earns over what the best threshold earns from the next one on."""
    leave = scores > best_threshold(scores, rewards)
    advantage = np.zeros((len(scores), scores.shape[1] - 1))
    for row, layer in np.ndindex(advantage.shape):
        later = layer + first_exit(leave[row : row + 1, layer + 1 :])[0]
        advantage[row, layer] = rewards[row, layer] - rewards[row, later]
    return advantage


@pytest.mark.parametrize("num_prices", [1, 3])
def test_improving_on_a_threshold_is_one_regression_over_all_layers(num_prices) -> None:
    rng = np.random.default_rng(0)
    states = rng.normal(3, 2, size=(num_prices, 200, 4, 5))
    scores = rng.random((200, 4)).astype(np.float32)
    rewards = rng.random((200, 4)) - rng.random(num_prices)[:, None, None] * np.arange(4)
    weight, bias = improve_on_threshold(states, scores, rewards)
    y = np.stack([by_steps(scores.astype(float), of) for of in rewards])
    x = states[:, :, :-1]
    layer = np.broadcast_to(np.eye(3)[:, 1:], (*x.shape[:3], 2))
    scaled = (x - x.mean(axis=(0, 1, 2))) / x.std(axis=(0, 1, 2))
    theirs = RidgeCV(alphas=PENALTIES).fit(
        np.concatenate([scaled, layer], axis=-1).reshape(-1, 7), y.ravel()
    )
    predicted = theirs.predict(np.concatenate([scaled, layer], axis=-1).reshape(-1, 7))
    ours = np.einsum("pnld,ld->pnl", states, weight)[:, :, :-1] + bias[:-1]
    np.testing.assert_allclose(ours.ravel(), predicted / y.std(), rtol=1e-4, atol=1e-5)
    assert bias[-1] > 0  # the last exit is forced
    assert not weight[-1].any()


def test_improving_gains_what_the_threshold_does_not_see() -> None:
    """Confidence misleads where a second feature says so: a threshold cannot tell, the step can."""
    rng = np.random.default_rng(0)
    scores = rng.random((4000, 3))
    misleads = rng.random((4000, 1)) < 0.5
    right = np.where(misleads, 1 - scores, scores)
    right[:, -1] = 0.7
    rewards = (rng.random((4000, 3)) < right) - 0.01 * np.arange(3)
    seen = np.stack([scores, np.broadcast_to(misleads, scores.shape), scores * misleads], axis=-1)
    train, other = slice(0, 2000), slice(2000, None)
    weight, bias = improve_on_threshold(seen[None, train], scores[train], rewards[None, train])
    learned = first_exit(np.einsum("nld,ld->nl", seen[other], weight) + bias > 0)
    rule = first_exit(scores[other] > best_threshold(scores[train], rewards[train]))
    rows = np.arange(2000)
    gain = rewards[other][rows, learned - 1] - rewards[other][rows, rule - 1]
    assert gain.mean() > 5 * gain.std() / 2000**0.5


def test_with_nothing_to_gain_it_is_no_worse_than_the_threshold() -> None:
    """Confidence is the probability of being right, so a threshold is about the optimum."""
    rng = np.random.default_rng(0)
    scores = rng.random((6000, 4))
    rewards = (rng.random((6000, 4)) < scores) - 0.05 * np.arange(4)
    seen = np.stack([scores, rng.normal(size=scores.shape)], axis=-1)
    weight, bias = improve_on_threshold(seen[None, :1000], scores[:1000], rewards[None, :1000])
    learned = first_exit(np.einsum("nld,ld->nl", seen[1000:], weight) + bias > 0)
    rule = first_exit(scores[1000:] > best_threshold(scores[:1000], rewards[:1000]))
    rows = np.arange(5000)
    gain = rewards[1000:][rows, learned - 1] - rewards[1000:][rows, rule - 1]
    assert gain.mean() > -2 * gain.std() / 5000**0.5


def test_cross_fitted_on_sst2_the_step_earns_more_than_the_threshold() -> None:
    """On the rows recorded for learning, so that dev stays what it is for."""
    parts = ("confidence", "margin", "agreement", "previous")
    problem = open_problem("EarlyExit-BERT-SST-2", observe=parts)
    states, rewards = np.array(problem.observe()), problem.rewards(problem.alpha[0])
    scores = problem.trace.confidence.astype(np.float64)
    rows = np.arange(len(problem))
    gain = np.empty(len(problem))
    for own in np.array_split(np.random.default_rng(0).permutation(rows), 5):
        others = np.delete(rows, own)
        weight, bias = improve_on_threshold(
            states[None, others], scores[others], rewards[None, others]
        )
        learned = first_exit(np.einsum("nld,ld->nl", states[own], weight) + bias > 0)
        rule = first_exit(scores[own] > best_threshold(scores[others], rewards[others]))
        gain[own] = rewards[own, learned - 1] - rewards[own, rule - 1]
    assert gain.mean() > gain.std() / len(gain) ** 0.5
