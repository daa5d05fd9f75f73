"""Every agent has a preset it can learn with, and ranges that hold the preset."""

import pytest

from cee_gym.agents import make_agent
from cee_gym.agents.presets import OBSERVE
from cee_gym.agents.registry import (
    RULES,
    agent_names,
    hyperparameter_defaults,
    hyperparameter_ranges,
    preset_for,
)
from cee_gym.agents.sb3_agent import PRESETS, RANGES
from cee_gym.envs import EarlyExitEnv
from tests.made_traces import write_trace

ALL = [*agent_names(), *PRESETS]


@pytest.mark.parametrize("agent", ALL)
def test_an_agent_learns_with_its_preset(tmp_path, agent) -> None:
    preset = preset_for(agent)
    env = EarlyExitEnv(trace=write_trace(tmp_path / "t"), observe=preset.observe)
    made = make_agent(agent, **preset.hyperparameters).learn(env, 300)
    assert made.policy.observe == preset.observe
    assert made.hyperparameters().items() >= preset.hyperparameters.items()


def test_all_that_learn_from_what_they_are_shown_are_shown_the_same() -> None:
    """So that a comparison of agents is not one of observations."""
    reads_its_own = {*RULES, "learning-to-exit"}
    for agent in ALL:
        if agent not in reads_its_own:
            assert preset_for(agent).observe == OBSERVE, agent


@pytest.mark.parametrize("agent", ALL)
def test_ranges_hold_the_preset(agent) -> None:
    known = hyperparameter_defaults(agent)
    for key, values in hyperparameter_ranges(agent).items():
        start = preset_for(agent).hyperparameters.get(key, known[key])
        if isinstance(values, list):
            assert start in values, key
        else:
            assert values.low <= start <= values.high, key
            whole = isinstance(values.low, int) and isinstance(values.high, int)
            assert whole == isinstance(known[key], int), key


@pytest.mark.parametrize("agent", ALL)
def test_whatever_is_in_the_ranges_is_allowed(agent) -> None:
    for key, values in hyperparameter_ranges(agent).items():
        for value in values if isinstance(values, list) else values[:2]:
            assert make_agent(agent, **{key: value}).hyperparameters()[key] == value


def test_agents_that_have_something_to_search_say_so() -> None:
    assert set(RANGES) == set(PRESETS)
    # Rules choose their number in learning, and regressions have no step size.
    nothing = {agent for agent in ALL if not hyperparameter_ranges(agent)}
    assert nothing == {*RULES, "longstaff-schwartz", "policy-improvement"}
