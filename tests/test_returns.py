from itertools import product

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cee_gym.returns import (
    best_threshold,
    exit_distribution,
    expected_return,
    first_exit,
    hindsight_return,
)

Floats = npt.NDArray[np.float64]
SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 7))
REWARDS = st.floats(-10, 10, width=32)


@st.composite
def policies_and_rewards(draw: st.DrawFn) -> tuple[Floats, Floats]:
    shape = draw(SHAPES)
    return (
        draw(arrays(np.float64, shape, elements=st.floats(0, 1))),
        draw(arrays(np.float64, shape, elements=REWARDS)),
    )


def enumerate_decisions(leave: Floats) -> Floats:
    """How the exit layer of one instance is distributed, over all sequences of decisions."""
    depth = len(leave)
    distribution = np.zeros(depth)
    for decisions in product((True, False), repeat=depth - 1):
        probability = 1.0
        for p, exits in zip(leave, decisions, strict=False):
            probability *= p if exits else 1 - p
        layer = decisions.index(True) if True in decisions else depth - 1
        distribution[layer] += probability
    return distribution


@given(policies_and_rewards())
def test_exits_are_distributed_as_all_sequences_of_decisions_say(
    case: tuple[Floats, Floats],
) -> None:
    policy, _ = case
    expected = np.stack([enumerate_decisions(row) for row in policy])
    np.testing.assert_allclose(exit_distribution(policy), expected, atol=1e-12)


@given(policies_and_rewards())
def test_every_instance_leaves_exactly_once(case: tuple[Floats, Floats]) -> None:
    distribution = exit_distribution(case[0])
    assert (distribution >= 0).all()
    np.testing.assert_allclose(distribution.sum(axis=1), 1.0, atol=1e-12)


@given(policies_and_rewards())
def test_expected_return_is_the_mean_over_all_sequences_of_decisions(
    case: tuple[Floats, Floats],
) -> None:
    policy, reward = case
    expected = [enumerate_decisions(p) @ r for p, r in zip(policy, reward, strict=True)]
    np.testing.assert_allclose(expected_return(policy, reward), expected, atol=1e-10)


@given(policies_and_rewards())
def test_nobody_does_better_than_with_hindsight(case: tuple[Floats, Floats]) -> None:
    policy, reward = case
    assert (hindsight_return(reward) >= expected_return(policy, reward) - 1e-9).all()


@given(policies_and_rewards())
def test_leaving_at_the_best_layer_attains_hindsight(case: tuple[Floats, Floats]) -> None:
    _, reward = case
    policy = np.eye(reward.shape[1])[reward.argmax(axis=1)]
    np.testing.assert_array_equal(expected_return(policy, reward), hindsight_return(reward))


def test_sampled_exits_are_as_frequent_as_the_distribution_says() -> None:
    policy = np.array([0.2, 0.5, 0.1, 0.9])
    leave = np.random.default_rng(0).random((40_000, 4)) < policy
    frequency = np.bincount(first_exit(leave), minlength=5)[1:] / len(leave)
    np.testing.assert_allclose(frequency, exit_distribution(policy[None])[0], atol=0.01)


@pytest.mark.parametrize("last", [0.0, 0.3, 1.0, np.nan])
def test_the_last_exit_is_forced_whatever_the_policy_says(last: float) -> None:
    policy = np.array([[0.25, 0.0, last]])
    np.testing.assert_array_equal(exit_distribution(policy), [[0.25, 0.0, 0.75]])
    assert first_exit(np.array([[False, False, False]])) == first_exit(
        np.array([[False, False, True]])
    )


def test_one_layer_is_left_at_once() -> None:
    np.testing.assert_array_equal(exit_distribution(np.zeros((2, 1))), np.ones((2, 1)))
    np.testing.assert_array_equal(first_exit(np.zeros((2, 1), dtype=bool)), [1, 1])


def test_tables_in_float32_are_summed_in_float64_and_left_alone() -> None:
    rng = np.random.default_rng(0)
    policy = rng.random((3, 5), dtype=np.float32)
    reward = rng.normal(size=(3, 5)).astype(np.float32)
    before = policy.copy(), reward.copy()
    value = expected_return(policy, reward)
    assert value.dtype == hindsight_return(reward).dtype == np.float64
    np.testing.assert_allclose(
        value, expected_return(policy.astype(np.float64), reward.astype(np.float64)), rtol=1e-12
    )
    np.testing.assert_array_equal(policy, before[0])
    np.testing.assert_array_equal(reward, before[1])


@given(arrays(np.bool_, SHAPES))
def test_first_exit_is_the_first_layer_that_says_so(leave: npt.NDArray[np.bool_]) -> None:
    depth = leave.shape[1]
    expected = [row.index(True) + 1 if True in row else depth for row in leave.tolist()]
    assert first_exit(leave).tolist() == expected


@pytest.mark.parametrize("seed", range(5))
def test_the_best_threshold_is_best_of_all(seed) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(5, size=(30, 4)) / 4  # with many that are equal
    rewards = rng.normal(size=(30, 4)) - 0.3 * rng.integers(-3, 4) * np.arange(4)

    def earned(threshold: float) -> float:
        return float(rewards[np.arange(30), first_exit(scores > threshold) - 1].mean())

    best = max(map(earned, (-1, 0.1, 0.3, 0.6, 0.9, 1)))
    assert earned(best_threshold(scores, rewards)) == pytest.approx(best)
