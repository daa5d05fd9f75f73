"""Agents: ways to learn an exit policy, behind one protocol."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if __name__ == "agents":
    raise ImportError("this folder is the package cee_gym.agents: import it by that name")

if TYPE_CHECKING:
    from cee_gym.agents.base import Agent, load_agent
    from cee_gym.agents.cat import CAT
    from cee_gym.agents.constrained import Constrained
    from cee_gym.agents.expected_return import ExpectedReturn
    from cee_gym.agents.learning_to_exit import LearningToExit
    from cee_gym.agents.longstaff_schwartz import LongstaffSchwartz
    from cee_gym.agents.policy_improvement import PolicyImprovement
    from cee_gym.agents.ppo import PPO
    from cee_gym.agents.presets import Preset
    from cee_gym.agents.registry import make_agent, register_agent
    from cee_gym.agents.reinforce import Reinforce
    from cee_gym.agents.rule import RuleAgent
    from cee_gym.agents.sb3_agent import SB3Agent

# Imported when first used: most need torch.
_WHERE = {
    "CAT": "cat",
    "PPO": "ppo",
    "Agent": "base",
    "Constrained": "constrained",
    "ExpectedReturn": "expected_return",
    "LearningToExit": "learning_to_exit",
    "LongstaffSchwartz": "longstaff_schwartz",
    "PolicyImprovement": "policy_improvement",
    "Preset": "presets",
    "Reinforce": "reinforce",
    "RuleAgent": "rule",
    "SB3Agent": "sb3_agent",
    "load_agent": "base",
    "make_agent": "registry",
    "register_agent": "registry",
}

__all__ = [
    "CAT",
    "PPO",
    "Agent",
    "Constrained",
    "ExpectedReturn",
    "LearningToExit",
    "LongstaffSchwartz",
    "PolicyImprovement",
    "Preset",
    "Reinforce",
    "RuleAgent",
    "SB3Agent",
    "load_agent",
    "make_agent",
    "register_agent",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"cee_gym.agents.{_WHERE[name]}"), name)
