"""Every agent has a preset it can learn with, and ranges that hold the preset."""

import pytest

from cee_gym.agents import AGENTS
from cee_gym.agents.base import hyperparameter_defaults, make_agent
from cee_gym.agents.presets import FAMILIES, PRESETS, RANGES, Preset, preset_for
from cee_gym.envs import EarlyExitEnv
from cee_gym.envs.registration import BENCHMARKS
from tests.made_traces import write_trace

EVERY = [(agent, family) for agent, presets in PRESETS.items() for family in presets]


@pytest.mark.parametrize(("agent", "family"), EVERY)
def test_an_agent_learns_with_its_preset(tmp_path, agent, family) -> None:
    preset = PRESETS[agent][family]
    env = EarlyExitEnv(trace=write_trace(tmp_path / "t"), observe=preset.observe)
    made = make_agent(agent, **preset.hyperparameters).learn(env, 300)
    assert made.observe == preset.observe
    assert made.hyperparameters().items() >= preset.hyperparameters.items()


@pytest.mark.parametrize("agent", AGENTS)
def test_every_agent_has_a_preset(agent) -> None:
    assert "default" in PRESETS[agent]


@pytest.mark.parametrize(("agent", "family"), [pair for pair in EVERY if pair[0] in RANGES])
def test_ranges_hold_the_preset(agent, family) -> None:
    known = hyperparameter_defaults(agent)
    for key, values in RANGES[agent].items():
        start = PRESETS[agent][family].hyperparameters.get(key, known[key])
        if isinstance(values, list):
            assert start in values, key
        else:
            assert values.low <= start <= values.high, key
            whole = isinstance(values.low, int) and isinstance(values.high, int)
            assert whole == isinstance(known[key], int), key


def test_families_are_of_known_tasks() -> None:
    assert set(FAMILIES) <= set(BENCHMARKS.values())
    named = {family for presets in PRESETS.values() for family in presets} - {"default"}
    assert named <= set(FAMILIES.values())


def test_a_task_takes_its_familys_preset_where_there_is_one(monkeypatch) -> None:
    one, other = Preset(total_timesteps=1), Preset(total_timesteps=2)
    monkeypatch.setitem(PRESETS, "reinforce", {"default": one, "many rows": other})
    assert preset_for("reinforce", "sst2") is other
    assert preset_for("reinforce", "rte") is one
    assert preset_for("reinforce", "of one's own") is one
    assert preset_for("no-such-agent", "rte") == Preset()


def test_parts_that_are_given_win() -> None:
    preset = Preset(hyperparameters={"start": "confidence", "batch_size": 8})
    assert preset.observing(None) is preset
    seen = preset.observing(("layer", "confidence"))
    assert seen.observe == ("layer", "confidence")
    assert seen.hyperparameters == preset.hyperparameters
    assert preset.observing(("layer", "hidden")).hyperparameters == {"batch_size": 8}
