"""Agents: ways to decide when to leave, behind one protocol."""

from typing import TYPE_CHECKING, Any

if __name__ == "agents":
    raise ImportError("this folder is the package cee_gym.agents: import it by that name")

if TYPE_CHECKING:
    from cee_gym.agents.base import Agent, load_agent, make_agent
    from cee_gym.agents.cat import CAT
    from cee_gym.agents.constrained import Constrained
    from cee_gym.agents.expected_return import ExpectedReturn
    from cee_gym.agents.learning_to_exit import LearningToExit
    from cee_gym.agents.longstaff_schwartz import LongstaffSchwartz
    from cee_gym.agents.ppo import PPO
    from cee_gym.agents.reinforce import Reinforce
    from cee_gym.agents.sb3_agent import SB3Agent
    from cee_gym.policies.rules import (
        PCEE,
        Confidence,
        Entropy,
        FixedLayer,
        Patience,
        RandomExit,
        Saturation,
    )

# By command-line name.
AGENTS = {
    "reinforce": "cee_gym.agents.reinforce:Reinforce",
    "ppo": "cee_gym.agents.ppo:PPO",
    "expected-return": "cee_gym.agents.expected_return:ExpectedReturn",
    "constrained": "cee_gym.agents.constrained:Constrained",
    "longstaff-schwartz": "cee_gym.agents.longstaff_schwartz:LongstaffSchwartz",
    "confidence": "cee_gym.policies.rules:Confidence",
    "entropy": "cee_gym.policies.rules:Entropy",
    "patience": "cee_gym.policies.rules:Patience",
    "pcee": "cee_gym.policies.rules:PCEE",
    "saturation": "cee_gym.policies.rules:Saturation",
    "learning-to-exit": "cee_gym.agents.learning_to_exit:LearningToExit",
    "cat": "cee_gym.agents.cat:CAT",
    "fixed-layer": "cee_gym.policies.rules:FixedLayer",
    "random": "cee_gym.policies.rules:RandomExit",
}

_WHERE = {
    "Agent": "base",
    "load_agent": "base",
    "make_agent": "base",
    "CAT": "cat",
    "Confidence": "rules",
    "Constrained": "constrained",
    "Entropy": "rules",
    "ExpectedReturn": "expected_return",
    "FixedLayer": "rules",
    "LearningToExit": "learning_to_exit",
    "LongstaffSchwartz": "longstaff_schwartz",
    "PCEE": "rules",
    "PPO": "ppo",
    "Patience": "rules",
    "RandomExit": "rules",
    "Reinforce": "reinforce",
    "SB3Agent": "sb3_agent",
    "Saturation": "rules",
}

__all__ = [
    "AGENTS",
    "CAT",
    "PCEE",
    "PPO",
    "Agent",
    "Confidence",
    "Constrained",
    "Entropy",
    "ExpectedReturn",
    "FixedLayer",
    "LearningToExit",
    "LongstaffSchwartz",
    "Patience",
    "RandomExit",
    "Reinforce",
    "SB3Agent",
    "Saturation",
    "load_agent",
    "make_agent",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    folder = "policies" if _WHERE[name] == "rules" else "agents"
    return getattr(import_module(f"cee_gym.{folder}.{_WHERE[name]}"), name)
