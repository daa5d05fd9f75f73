"""One step of policy iteration from the best threshold, as an agent."""

import numpy as np
import pytest

from cee_gym.agents import PolicyImprovement, load_agent
from cee_gym.agents.registry import preset_for
from cee_gym.envs import EarlyExitEnv
from cee_gym.errors import CeeGymError
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
