"""A rule as an agent."""

import numpy as np
import pytest

from cee_gym.agents import RuleAgent, load_agent, make_agent
from cee_gym.envs import EarlyExitEnv
from cee_gym.errors import CeeGymError
from cee_gym.policies.rules import (
    PCEE,
    Confidence,
    Entropy,
    FixedLayer,
    Margin,
    Patience,
    Saturation,
)
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


RULES = {
    "confidence": [Confidence(threshold=x) for x in np.linspace(0, 1, 400)],
    "margin": [Margin(threshold=x) for x in np.linspace(0, 1, 400)],
    "entropy": [Entropy(threshold=x) for x in np.linspace(0, 1, 400)],
    "saturation": [Saturation(threshold=x) for x in np.linspace(-1, 1, 400)],
    "patience": [Patience(patience=n) for n in (1, 2, 3, 4)],
    "pcee": [PCEE(threshold=x, patience=n) for n in (1, 2, 3) for x in np.linspace(0, 1, 200)],
    "fixed-layer": [FixedLayer(layer=n) for n in (1, 2, 3, 4)],
}
ALL = ("hidden", "layer", "probs", "entropy", "confidence", "margin")


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("alpha", [0.0, 0.05, 0.2, (0.0, 0.1)])
def test_it_chooses_the_number_that_earns_most(tmp_path, name, alpha) -> None:
    env = EarlyExitEnv(trace=write_trace(tmp_path / "t", n=120), observe=ALL, alpha=alpha)
    rewards = env.problem.rewards(np.mean(alpha))

    def earned(policy) -> float:
        exits = policy.exit_layers(policy.scores_on(env.problem))
        return rewards[np.arange(len(exits)), exits - 1].mean()

    agent = make_agent(name).learn(env)
    tried = max(earned(rule.policy(env)) for rule in RULES[name])
    assert earned(agent.policy) >= tried - 1e-12
    if name in ("patience", "fixed-layer"):  # of which all were tried
        assert earned(agent.policy) == pytest.approx(tried)


def test_a_number_that_is_given_stays(tmp_path) -> None:
    env = EarlyExitEnv(trace=write_trace(tmp_path / "t", n=60), observe=ALL)
    two = make_agent("patience", patience=2).learn(env).policy
    assert two.threshold == Patience(patience=2).policy(env).threshold
    half = make_agent("pcee", patience=3).learn(env)
    assert half.policy.score == PCEE(patience=3)
    assert half.hyperparameters() == {"threshold": None, "patience": 3}
    other = make_agent("pcee", threshold=0.4).learn(env)
    assert other.policy.threshold == pytest.approx(0.6)
    assert other.hyperparameters() == {"threshold": 0.4, "patience": None}


def test_it_is_read_back_with_what_it_chose(tmp_path) -> None:
    env = EarlyExitEnv(trace=write_trace(tmp_path / "t", n=60), observe=ALL)
    agent = make_agent("pcee").learn(env)
    agent.save(tmp_path / "agent")
    again = load_agent(tmp_path / "agent")
    assert again.policy.threshold == agent.policy.threshold
    assert again.policy.score == agent.policy.score
    assert again.hyperparameters() == agent.hyperparameters()


@pytest.mark.parametrize(
    ("name", "said"), [("confidence", "its threshold"), ("pcee", "its threshold and patience")]
)
def test_without_a_recording_there_is_nothing_to_choose_by(tmp_path, name, said) -> None:
    env = EarlyExitEnv(trace=write_trace(tmp_path / "t", n=60), observe=ALL)
    with pytest.raises(CeeGymError, match=f"{name} chooses {said} by what a recording"):
        make_agent(name).learn(StepsOnly(env))


def test_it_names_what_its_rule_lacks(env) -> None:
    with pytest.raises(CeeGymError, match="patience reads probs: observe it"):
        RuleAgent(Patience()).learn(env)
    with pytest.raises(CeeGymError, match="call learn first"):
        _ = RuleAgent(Patience()).policy


def test_its_policy_knows_the_model_of_the_recording(env) -> None:
    model = env.problem.trace.header.model
    assert make_agent("confidence").learn(env).policy.model == model
