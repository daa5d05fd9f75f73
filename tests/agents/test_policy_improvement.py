"""One step of policy iteration from the best threshold, as an agent."""

import numpy as np
import pytest

from cee_gym.agents import PolicyImprovement, load_agent, make_agent
from cee_gym.agents.presets import OBSERVE
from cee_gym.agents.registry import preset_for
from cee_gym.envs import EarlyExitEnv
from cee_gym.errors import CeeGymError
from cee_gym.policies.rules import Confidence
from tests.made_traces import write_trace
from tests.small_problems import StepsOnly, known_problem

PATH = preset_for("policy-improvement").observe


def test_it_reaches_the_known_optimum_of_a_small_problem(tmp_path) -> None:
    env, best = known_problem(tmp_path)
    policy = PolicyImprovement().learn(env).policy
    layers = policy.exit_layers(policy.scores_on(env.problem))
    realised = env.problem.rewards(0.0)[np.arange(len(layers)), layers - 1].mean()
    assert realised == pytest.approx(best)


def test_it_is_read_back_as_it_was(tmp_path) -> None:
    env = EarlyExitEnv(trace=write_trace(tmp_path / "t", n=60), observe=PATH)
    agent = PolicyImprovement().learn(env)
    agent.save(tmp_path / "agent")
    again = load_agent(tmp_path / "agent")
    assert isinstance(again, PolicyImprovement)
    observations = env.problem.observe()
    np.testing.assert_array_equal(
        again.policy.scores(observations), agent.policy.scores(observations)
    )


def test_with_a_range_of_prices_it_leaves_earlier_where_a_layer_costs_more() -> None:
    observe = (*PATH, "alpha")
    train = EarlyExitEnv("EarlyExit-BERT-SST-2", alpha=(0.0, 0.1), observe=observe)
    policy = PolicyImprovement().learn(train).policy
    depth = [
        policy.at(alpha=alpha).exit_layers(policy.at(alpha=alpha).scores_on(train.problem)).mean()
        for alpha in (0.0, 0.01, 0.03, 0.1)
    ]
    assert depth == sorted(depth, reverse=True)
    assert depth[0] > depth[-1] + 1


def test_it_needs_the_tables(tmp_path) -> None:
    env = StepsOnly(EarlyExitEnv(trace=write_trace(tmp_path / "t")))
    with pytest.raises(CeeGymError, match="recorded environment"):
        PolicyImprovement().learn(env)


def test_one_instance_is_too_few(tmp_path) -> None:
    env = EarlyExitEnv(trace=write_trace(tmp_path / "t", n=1))
    with pytest.raises(CeeGymError, match="1 instance is too few"):
        PolicyImprovement().learn(env)


def test_it_is_never_below_the_threshold_that_it_starts_from(capsys) -> None:
    # The built-in task is made so that the path misleads: there a linear function of it is worse.
    for id, alpha, falls_back in (
        ("EarlyExit-ToyBERT-Clauses", 0.035, True),
        ("EarlyExit-BERT-SST-2", 0.01, False),
    ):
        env = EarlyExitEnv(id, observe=OBSERVE, alpha=alpha)
        rule = make_agent("confidence").learn(env, 0).policy
        policy = PolicyImprovement().learn(env).policy
        rewards = env.problem.rewards(alpha)
        rows = np.arange(len(rewards))
        earned, before = (
            rewards[rows, one.exit_layers(one.scores_on(env.problem)) - 1].mean()
            for one in (policy, rule)
        )
        assert earned >= before
        assert isinstance(policy.score, Confidence) is falls_back
        assert ("the policy is the threshold" in capsys.readouterr().err) is falls_back


def test_what_fell_back_is_read_back_and_can_learn_again(tmp_path) -> None:
    env = EarlyExitEnv("EarlyExit-ToyBERT-Clauses", observe=OBSERVE, alpha=0.035)
    agent = PolicyImprovement().learn(env)
    agent.save(tmp_path / "agent")
    again = load_agent(tmp_path / "agent")
    assert again.policy.threshold == agent.policy.threshold
    assert again.learn(env).policy.threshold == agent.policy.threshold
