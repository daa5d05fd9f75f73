"""Every agent has a preset it can learn with, and ranges that hold the preset."""

import pytest

from cee_gym.agents import Preset, make_agent
from cee_gym.agents.presets import FAMILIES
from cee_gym.agents.registry import (
    RULES,
    agent_names,
    hyperparameter_defaults,
    hyperparameter_ranges,
    preset_for,
)
from cee_gym.agents.sb3_agent import PRESETS, RANGES
from cee_gym.envs import EarlyExitEnv
from cee_gym.envs.registration import BENCHMARKS
from tests.made_traces import write_trace

ALL = [*agent_names(), *PRESETS]


def presets_of(agent: str) -> dict[str, Preset]:
    return {"default": PRESETS[agent]} if agent in PRESETS else dict(make_agent(agent).presets())


EVERY = [(agent, family) for agent in ALL for family in presets_of(agent)]


@pytest.mark.parametrize(("agent", "family"), EVERY)
def test_an_agent_learns_with_its_preset(tmp_path, agent, family) -> None:
    preset = presets_of(agent)[family]
    env = EarlyExitEnv(trace=write_trace(tmp_path / "t"), observe=preset.observe)
    made = make_agent(agent, **preset.hyperparameters).learn(env, 300)
    assert made.policy.observe == preset.observe
    assert made.hyperparameters().items() >= preset.hyperparameters.items()


@pytest.mark.parametrize("agent", ALL)
def test_every_agent_has_a_preset_for_any_task(agent) -> None:
    assert "default" in presets_of(agent)
    assert preset_for(agent, "of one's own") == presets_of(agent)["default"]


@pytest.mark.parametrize(("agent", "family"), EVERY)
def test_ranges_hold_the_preset(agent, family) -> None:
    known = hyperparameter_defaults(agent)
    for key, values in hyperparameter_ranges(agent).items():
        start = presets_of(agent)[family].hyperparameters.get(key, known[key])
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


def test_families_are_of_known_tasks() -> None:
    assert set(FAMILIES) <= set(BENCHMARKS.values())
    named = {family for _, family in EVERY} - {"default"}
    assert named <= set(FAMILIES.values())


def test_a_task_takes_its_familys_preset_where_there_is_one() -> None:
    presets = presets_of("reinforce")
    assert preset_for("reinforce", "sst2") == presets["many rows"] != presets["default"]
    assert preset_for("reinforce", "rte") == presets["default"]
    assert preset_for("ppo", "sst2") == presets_of("ppo")["default"]


def test_parts_that_are_given_win() -> None:
    preset = Preset(hyperparameters={"start": "confidence", "batch_size": 8})
    assert preset.observing(None) is preset
    seen = preset.observing(("layer", "confidence"))
    assert seen.observe == ("layer", "confidence")
    assert seen.hyperparameters == preset.hyperparameters
    assert preset.observing(("layer", "hidden")).hyperparameters == {"batch_size": 8}
