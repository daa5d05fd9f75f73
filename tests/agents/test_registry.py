"""Agents by name, and what a module of the user's own adds in one file."""

import subprocess
import sys
from pathlib import Path

import pytest

from cee_gym.agents import LongstaffSchwartz, Preset, RuleAgent, SB3Agent, make_agent
from cee_gym.agents.registry import (
    agent_names,
    describe,
    full_agent_name,
    hyperparameter_defaults,
    hyperparameter_ranges,
    preset_for,
)
from cee_gym.errors import CeeGymError
from tests.made_traces import write_trace

MINE = '''
"""A rule, an agent and a part of an observation of the user's own."""

from dataclasses import dataclass

import numpy as np

from cee_gym.agents import ExpectedReturn, Preset, register_agent
from cee_gym.observation import register_observation
from cee_gym.policies.score import register_policy
from cee_gym.policies.rules import Rule
from cee_gym.settings import Range, number


@register_policy("ratio")
@dataclass(kw_only=True)
class Ratio(Rule):
    """Leaves where the second class is far less probable than the best."""

    threshold: float = number(0.5, 0, 1, search=Range(0.0, 1.0))
    reads = ("probs",)

    def scores(self, observations, layout):
        best = np.sort(observations[..., layout["probs"]], axis=-1)
        return 1 - best[..., -2] / best[..., -1]


@register_observation("lead", width=1, low=0.0, high=1.0)
def lead(seen):
    best = seen.xp.sort(seen.probs, axis=-1)
    return best[..., -1:] - best[..., -2:-1]


@register_agent("patient")
@dataclass(kw_only=True, eq=False)
class Patient(ExpectedReturn):
    """Pays a little for every layer it runs."""

    bonus: float = number(0.1, 0, 10, search=[0.0, 0.1])

    def preset(self):
        return Preset(observe=("layer", "lead"), total_timesteps=500)

    def objective(self, problem, rows, rewards):
        return rewards + self.bonus
'''

SAVE = """
from cee_gym.agents import make_agent
from cee_gym.agents.registry import hyperparameter_ranges, preset_for
from cee_gym.envs import EarlyExitEnv
import numpy as np

for name, setting in (("ratio", {"threshold": 0.25}), ("patient", {"bonus": 0.5})):
    full = f"mine:{name}"
    agent = make_agent(full, **setting)
    # A rule chooses its threshold in learning, where none is given.
    assert ("bonus" in hyperparameter_ranges(full)) == (name == "patient")
    assert "threshold" not in hyperparameter_ranges(full)
    preset = preset_for(full)
    assert preset.observe == {"ratio": ("probs",), "patient": ("layer", "lead")}[name]
    env = EarlyExitEnv(trace="trace", observe=preset.observe)
    agent.learn(env, 500).save(name)
    np.save(f"{name}.npy", agent.policy.scores_on(env.problem))
"""

LOAD = """
from cee_gym.agents import load_agent
from cee_gym.policies.base import ExitPolicy
from cee_gym.problem import Problem
from cee_gym.traces import Trace
import numpy as np, sys

for name, setting in (("ratio", {"threshold": 0.25}), ("patient", {"bonus": 0.5})):
    policy = ExitPolicy.load(name)
    problem = Problem(Trace.open("trace"), observe=policy.observe)
    np.testing.assert_array_equal(policy.scores_on(problem), np.load(f"{name}.npy"))
    if len(sys.argv) > 1:
        agent = load_agent(name)
        assert agent.name == name
        assert agent.hyperparameters().items() >= setting.items()
        assert agent.policy.observe == policy.observe
        assert type(agent).__module__ == {"ratio": "cee_gym.agents.rule", "patient": "mine"}[name]
        assert type(policy.score).__module__ == {"ratio": "mine"}.get(
            name, "cee_gym.policies.per_layer"
        )
        policy.for_budget(saved_layers=0.5, on=problem)
"""


def run(folder: Path, code: str, *arguments: str) -> str:
    """What a fresh process in this folder says where it fails."""
    script = folder / "elsewhere" / "script.py"  # so that the folder is not on its path by itself
    script.parent.mkdir(exist_ok=True)
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        cwd=folder,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr if done.returncode else ""


def test_one_file_adds_an_agent_a_rule_and_a_part_that_other_processes_find(tmp_path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    write_trace(tmp_path / "trace")
    assert run(tmp_path, SAVE) == ""
    assert run(tmp_path, LOAD) == ""  # by the policy alone
    assert run(tmp_path, LOAD, "agents too") == ""
    # Without the file they are refused in a line.
    (tmp_path / "mine.py").unlink()
    said = run(tmp_path, LOAD)
    assert "CeeGymError: module mine cannot be imported" in said


def test_every_agent_is_made_with_its_defaults_and_says_what_it_does() -> None:
    for name in agent_names():
        agent = make_agent(name)
        assert agent.name == name
        assert agent.hyperparameters() == hyperparameter_defaults(name)
        assert describe(name).endswith(".")
        assert full_agent_name(name) == name


def test_a_rule_an_algorithm_and_an_agent_are_made_by_name() -> None:
    rule = make_agent("confidence", threshold=0.7)
    assert isinstance(rule, RuleAgent)
    assert rule.hyperparameters() == {"threshold": 0.7}
    assert isinstance(make_agent("longstaff-schwartz", folds=3), LongstaffSchwartz)
    assert isinstance(make_agent("sb3:ppo"), SB3Agent)
    assert full_agent_name("sb3:ppo") == "sb3:ppo"


def test_a_rule_has_nothing_to_search_and_observes_what_it_reads() -> None:
    assert hyperparameter_ranges("pcee") == {}
    assert hyperparameter_defaults("pcee") == {"threshold": None, "patience": None}
    assert preset_for("pcee") == Preset(observe=("entropy",))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("reinforc", "unknown agent 'reinforc': did you mean reinforce"),
        ("confidenc", "unknown agent 'confidenc': did you mean confidence"),
        ("per-layer", "unknown agent 'per-layer'"),  # a kind of policy that an agent learns
        ("json:reinforce", "unknown agent 'reinforce' in json"),
        ("json:confidence", "unknown exit policy 'confidence' in json"),
        ("json:mine", "unknown agent 'mine' in json"),
        ("no_such:agent", "module no_such cannot be imported"),
        ("__main__:mine", "defined in a script that was run by itself"),
        ("", "unknown agent ''"),
    ],
)
def test_unknown_names_are_one_line(name, said) -> None:
    for asked in (make_agent, hyperparameter_defaults, hyperparameter_ranges):
        with pytest.raises(CeeGymError, match=said) as caught:
            asked(name)
        assert "\n" not in str(caught.value)
    with pytest.raises(CeeGymError, match=said):
        preset_for(name)


def test_misspelt_hyper_parameters_are_answered_with_the_nearest() -> None:
    with pytest.raises(CeeGymError, match="reinforce has no hyper-parameter 'rollout': did you"):
        make_agent("reinforce", rollout=3)
    with pytest.raises(CeeGymError, match="confidence has no hyper-parameter 'treshold'"):
        make_agent("confidence", treshold=0.5)
