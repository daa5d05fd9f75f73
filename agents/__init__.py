"""Agents: ways to decide when to leave, behind one protocol."""

from typing import TYPE_CHECKING, Any

if __name__ == "agents":
    raise ImportError("this folder is the package cee_gym.agents: import it by that name")

if TYPE_CHECKING:
    from cee_gym.agents.base import Agent, load_agent
    from cee_gym.agents.expected_return import ExpectedReturn
    from cee_gym.agents.reinforce import Reinforce

# By command-line name.
AGENTS = {
    "reinforce": "cee_gym.agents.reinforce:Reinforce",
    "expected-return": "cee_gym.agents.expected_return:ExpectedReturn",
}

_WHERE = {
    "Agent": "cee_gym.agents.base",
    "load_agent": "cee_gym.agents.base",
    "Reinforce": "cee_gym.agents.reinforce",
    "ExpectedReturn": "cee_gym.agents.expected_return",
}

__all__ = ["AGENTS", "Agent", "ExpectedReturn", "Reinforce", "load_agent"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_WHERE[name]), name)
