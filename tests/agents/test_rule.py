"""A rule as an agent."""

import numpy as np
import pytest

from cee_gym.agents import RuleAgent, make_agent
from cee_gym.envs import EarlyExitEnv
from cee_gym.errors import CeeGymError
from cee_gym.policies.rules import Confidence, Patience
from tests.made_traces import write_trace
from tests.small_problems import StepsOnly


@pytest.fixture
def env(tmp_path) -> EarlyExitEnv:
    return EarlyExitEnv(trace=write_trace(tmp_path / "t"), observe=("layer", "confidence"))


def test_its_policy_is_that_of_the_rule_in_any_environment(env) -> None:
    expected = Confidence(threshold=0.6).policy(env)
    for given in (env, StepsOnly(env)):
        policy = make_agent("confidence", threshold=0.6).learn(given).policy
        assert policy.threshold == 0.6
        assert policy.layout == expected.layout
        np.testing.assert_array_equal(
            policy.scores_on(env.problem), expected.scores_on(env.problem)
        )


def test_it_takes_no_timesteps(env) -> None:
    agent = RuleAgent(Confidence())
    assert agent.learn(env, 1_000).timesteps == 0


def test_it_names_what_its_rule_lacks(env) -> None:
    with pytest.raises(CeeGymError, match="patience reads probs: observe it"):
        RuleAgent(Patience()).learn(env)
    with pytest.raises(CeeGymError, match="call learn first"):
        _ = RuleAgent(Patience()).policy


def test_its_policy_knows_the_model_of_the_recording(env) -> None:
    model = env.problem.trace.header.model
    assert make_agent("confidence").learn(env).policy.model == model
