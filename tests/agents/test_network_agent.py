"""What the agents share that learn a network for every layer, and what they reach."""

import numpy as np
import pytest
import torch

from cee_gym.agents import CAT, PPO, Constrained, ExpectedReturn, LongstaffSchwartz, Reinforce
from cee_gym.envs import EarlyExitEnv
from cee_gym.errors import CeeGymError
from cee_gym.returns import first_exit
from tests.made_traces import write_trace
from tests.small_problems import StepsOnly, earned, known_problem, started


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 0},
        {"batch_size": 2.5},
        {"batch_size": float("nan")},
        {"hidden_width": -1},
        {"hidden_width": 10**12},
        {"learning_rate": -1.0},
        {"learning_rate": float("nan")},
        {"learning_rate": float("inf")},
        {"learning_rate": "fast"},
        {"weight_decay": float("inf")},
        {"seed": -1},
        {"seed": 1e30},
        {"seed": 10**30},
        {"seed": True},
    ],
)
def test_hyper_parameters_out_of_range_are_refused(settings) -> None:
    with pytest.raises(CeeGymError, match=f"{next(iter(settings))} must be"):
        Reinforce(**settings)


@pytest.mark.parametrize("kind", [Reinforce, PPO, CAT])
def test_a_batch_may_be_larger_than_what_there_is(tmp_path, kind) -> None:
    kind(batch_size=10**12).learn(EarlyExitEnv(trace=write_trace(tmp_path / "t")), 200)


@pytest.mark.parametrize("kind", [Reinforce, ExpectedReturn, Constrained, LongstaffSchwartz, CAT])
def test_the_highest_seed_will_do(tmp_path, kind) -> None:
    env = EarlyExitEnv(trace=write_trace(tmp_path / "t"))
    for _ in range(2):
        kind(seed=2**32 - 1).learn(env, 200)


def test_an_unknown_start_is_refused() -> None:
    with pytest.raises(CeeGymError, match="start 'patience' is unknown: use 'equally_likely' or"):
        Reinforce(start="patience")


@pytest.mark.parametrize("kind", [ExpectedReturn, Reinforce])
def test_a_policy_that_diverges_is_no_result(tmp_path, kind) -> None:
    env, _ = known_problem(tmp_path)
    agent = kind()
    agent.learning_rate = 1e30  # more than it can be constructed with
    with pytest.raises(CeeGymError, match="lower learning_rate"):
        agent.learn(env, 10_000)
    with pytest.raises(CeeGymError, match="call learn first"):
        _ = agent.policy


@pytest.mark.parametrize("kind", [ExpectedReturn, Reinforce])
def test_agents_reach_the_known_optimum_of_a_small_problem(tmp_path, kind) -> None:
    env, best = known_problem(tmp_path)
    agent = kind(learning_rate=1e-2, batch_size=16, seed=0).learn(env, 150_000)
    assert best - earned(agent.policy, env.problem) < 0.02
    # The best single layer is far from it, so the states were used.
    assert best - env.problem.rewards(0.0).mean(axis=0).max() > 0.2


@pytest.mark.parametrize("kind", [ExpectedReturn, Constrained, LongstaffSchwartz])
def test_an_environment_without_tables_is_refused_where_they_are_needed(tmp_path, kind) -> None:
    env = StepsOnly(EarlyExitEnv(trace=write_trace(tmp_path / "t")))
    with pytest.raises(CeeGymError, match="recorded environment"):
        kind().learn(env, 10)


@pytest.mark.parametrize("kind", [Reinforce, PPO, CAT])
def test_the_part_layer_is_needed_and_another_one(tmp_path, kind) -> None:
    trace = write_trace(tmp_path / "t")
    for observe in (("hidden",), ("layer",)):
        with pytest.raises(CeeGymError, match="observe 'layer'"):
            kind().learn(EarlyExitEnv(trace=trace, observe=observe), 100)


@pytest.mark.parametrize("alpha", [0.3, (0.2, 0.6)])
def test_a_start_from_confidence_is_the_best_confidence_rule(tmp_path, alpha) -> None:
    env = EarlyExitEnv(
        trace=write_trace(tmp_path / "t", n=200),
        alpha=alpha,
        observe=("confidence", "layer", "hidden", "alpha"),
        reward="cross_entropy",
    )
    problem, rows = env.problem, np.arange(200)
    policy = started(ExpectedReturn(start="confidence"), env).policy
    confidence = problem.trace.confidence
    shares = []
    for price in np.linspace(*problem.alpha, 3):
        leave = policy.scores_on(problem, price) > 0.5
        np.testing.assert_array_equal(leave, confidence >= confidence[leave].min())
        shares.append(leave.mean())
        rewards = problem.rewards(price)
        realised = rewards[rows, first_exit(leave) - 1].mean()
        others = [
            rewards[rows, first_exit(confidence > threshold) - 1].mean()
            for threshold in np.quantile(confidence, np.linspace(0, 1, 20))
        ]
        # The best of a grid at one price; in a range a line through five of them.
        assert realised >= max(others) - 1e-3 or problem.alpha[0] < problem.alpha[1]
    assert shares == sorted(shares)
    assert (shares[0] < shares[-1]) == (problem.alpha[0] < problem.alpha[1])


def test_learning_from_the_confidence_rule_keeps_what_it_earns(tmp_path) -> None:
    env = EarlyExitEnv(
        trace=write_trace(tmp_path / "t", n=200), observe=("confidence", "layer"), alpha=0.1
    )
    agent = started(ExpectedReturn(start="confidence"), env)
    before = earned(agent.policy, env.problem, 0.1)
    assert earned(agent.learn(env, 50_000).policy, env.problem, 0.1) > before


def test_a_start_from_confidence_needs_confidence(tmp_path) -> None:
    env = EarlyExitEnv(trace=write_trace(tmp_path / "t"))
    with pytest.raises(CeeGymError, match="observe 'confidence' too"):
        Reinforce(start="confidence").learn(env, 10)


def test_alpha_in_the_observation_is_the_one_that_is_paid(tmp_path) -> None:
    env = EarlyExitEnv(
        trace=write_trace(tmp_path / "a", n=200),
        observe=("layer", "confidence", "alpha"),
        alpha=(0.0, 2.0),
        reward="cross_entropy",
    )
    agent = ExpectedReturn(learning_rate=1e-2, batch_size=50).learn(env, 100_000)
    cheap, dear = (agent.policy.scores_on(env.problem, alpha)[:, 0].mean() for alpha in (0.0, 2.0))
    assert dear > 0.9 > cheap + 0.3


def test_it_does_not_touch_the_random_numbers_of_others(tmp_path) -> None:
    env = EarlyExitEnv(trace=write_trace(tmp_path / "t"))
    state = torch.get_rng_state()
    Reinforce(batch_size=8).learn(env, 500)
    assert torch.equal(torch.get_rng_state(), state)
