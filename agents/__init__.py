"""Agents: ways to decide when to leave, behind one protocol."""

from typing import TYPE_CHECKING, Any

if __name__ == "agents":
    raise ImportError("this folder is the package cee_gym.agents: import it by that name")

if TYPE_CHECKING:
    from cee_gym.agents.base import Agent, load_agent
    from cee_gym.agents.expected_return import ExpectedReturn
    from cee_gym.agents.longstaff_schwartz import LongstaffSchwartz
    from cee_gym.agents.reinforce import Reinforce
    from cee_gym.agents.rules import Confidence, Entropy, FixedLayer, Patience, RandomExit

# By command-line name.
AGENTS = {
    "reinforce": "cee_gym.agents.reinforce:Reinforce",
    "expected-return": "cee_gym.agents.expected_return:ExpectedReturn",
    "longstaff-schwartz": "cee_gym.agents.longstaff_schwartz:LongstaffSchwartz",
    "confidence": "cee_gym.agents.rules:Confidence",
    "entropy": "cee_gym.agents.rules:Entropy",
    "patience": "cee_gym.agents.rules:Patience",
    "fixed-layer": "cee_gym.agents.rules:FixedLayer",
    "random": "cee_gym.agents.rules:RandomExit",
}

_WHERE = {
    "Agent": "base",
    "load_agent": "base",
    "Confidence": "rules",
    "Entropy": "rules",
    "ExpectedReturn": "expected_return",
    "FixedLayer": "rules",
    "LongstaffSchwartz": "longstaff_schwartz",
    "Patience": "rules",
    "RandomExit": "rules",
    "Reinforce": "reinforce",
}

__all__ = [
    "AGENTS",
    "Agent",
    "Confidence",
    "Entropy",
    "ExpectedReturn",
    "FixedLayer",
    "LongstaffSchwartz",
    "Patience",
    "RandomExit",
    "Reinforce",
    "load_agent",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"cee_gym.agents.{_WHERE[name]}"), name)
