"""The agents, by name."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from cee_gym.errors import CeeGymError, did_you_mean
from cee_gym.registry import Registry, import_user_module
from cee_gym.settings import Range

if TYPE_CHECKING:
    from cee_gym.agents.base import Agent
    from cee_gym.agents.presets import Preset
    from cee_gym.policies.rules import Rule

AGENTS: Registry["type[Agent]"] = Registry(
    "agent",
    {
        "reinforce": "cee_gym.agents.reinforce:Reinforce",
        "ppo": "cee_gym.agents.ppo:PPO",
        "expected-return": "cee_gym.agents.expected_return:ExpectedReturn",
        "constrained": "cee_gym.agents.constrained:Constrained",
        "policy-improvement": "cee_gym.agents.policy_improvement:PolicyImprovement",
        "longstaff-schwartz": "cee_gym.agents.longstaff_schwartz:LongstaffSchwartz",
        "learning-to-exit": "cee_gym.agents.learning_to_exit:LearningToExit",
        "cat": "cee_gym.agents.cat:CAT",
    },
)
# The rules cee-gym brings; each is an agent too, one that learns a number.
RULES = (
    "confidence",
    "margin",
    "entropy",
    "patience",
    "pcee",
    "saturation",
    "fixed-layer",
    "random",
)


def register_agent(name: str) -> Callable[["type[Agent]"], "type[Agent]"]:
    """Makes a class an agent that `--agent` and saved runs know by name."""

    def register(agent: "type[Agent]") -> "type[Agent]":
        agent.name = name
        AGENTS.add(name, agent)
        return agent

    return register


def agent_names() -> list[str]:
    """The names of all agents known so far, without those of Stable-Baselines3."""
    return [*AGENTS, *RULES]


def full_agent_name(name: str) -> str:
    """The name by which another process finds the agent: `MODULE:NAME` for a user's own."""
    from cee_gym.policies.sb3 import is_sb3
    from cee_gym.policies.score import SCORES

    if is_sb3(name):
        return name
    short = name.rpartition(":")[2]
    return (AGENTS if short in AGENTS else SCORES).full_name(name)


def make_agent(name: str, **hyperparameters: Any) -> "Agent":
    """An agent that has not learned yet.

    Args:
        name: on the command line. `"sb3:ppo"`, `"sb3-contrib:trpo"` and the like are the algorithms
            of Stable-Baselines3 and sb3-contrib; the name of a rule gives an agent that learns
            its number, where none is given; `"MODULE:NAME"` imports the module of yours that
            defines an agent or a rule.
        **hyperparameters: those that differ from their defaults.

    Raises:
        CeeGymError: if there is no such agent or hyper-parameter, or a value is out of range.
    """
    kind = _find(name)
    known = _defaults(name, kind)
    for key in hyperparameters:
        if key not in known:
            hint = did_you_mean(key, list(known))
            raise CeeGymError(f"{name} has no hyper-parameter {key!r}: {hint}")
    return kind(**hyperparameters)


def hyperparameter_defaults(name: str) -> dict[str, Any]:
    """The hyper-parameters of an agent and their defaults, all JSON-able.

    Raises:
        CeeGymError: if there is no such agent.

    >>> hyperparameter_defaults("confidence")
    {'threshold': None}
    """
    return _defaults(name, _find(name))


def hyperparameter_ranges(name: str) -> dict[str, Range | list[Any]]:
    """What a search tries of an agent's hyper-parameters, by name.

    Raises:
        CeeGymError: if there is no such agent.
    """
    from cee_gym.policies.sb3 import is_sb3

    if is_sb3(name):
        from cee_gym.agents.sb3_agent import RANGES

        return RANGES.get(name.lower(), {})
    return _find(name)().search_ranges()


def preset_for(name: str) -> "Preset":
    """The settings an agent starts from.

    Raises:
        CeeGymError: if there is no such agent.
    """
    from cee_gym.policies.sb3 import is_sb3

    if is_sb3(name):
        from cee_gym.agents import presets as start
        from cee_gym.agents.sb3_agent import PRESETS

        return PRESETS.get(name.lower(), start.Preset())
    return _find(name)().preset()


def preset_hyperparameters(name: str, observe: tuple[str, ...] | None, seed: int) -> dict[str, Any]:
    """What to construct an agent with by its preset, and with a seed where it has one.

    Args:
        name: of the agent.
        observe: the parts of an observation, where they are not the preset's.
        seed: of the agent.

    Raises:
        CeeGymError: if there is no such agent.
    """
    given = {"seed": seed} if "seed" in hyperparameter_defaults(name) else {}
    return {**given, **preset_for(name).observing(observe).hyperparameters}


def describe(name: str) -> str:
    """What an agent does, in a line."""
    from cee_gym.policies.score import SCORES

    found: type[Any] = AGENTS.get(name) if name in AGENTS else SCORES.get(name)
    return (found.__doc__ or "").splitlines()[0]


def _find(name: str) -> Callable[..., "Agent"]:
    from cee_gym.policies.sb3 import find_algorithm, is_sb3

    if is_sb3(name):
        from cee_gym.agents.sb3_agent import SB3Agent

        find_algorithm(name)
        return lambda **given: SB3Agent(name, **given)
    module, _, short = name.rpartition(":")
    if module not in ("", "__main__"):
        import_user_module(module)
    if short in AGENTS:
        return AGENTS.get(name)
    from cee_gym.policies.rules import Rule
    from cee_gym.policies.score import SCORES

    if short in SCORES and issubclass(found := SCORES.get(name), Rule):
        rule: type[Rule] = found
        return partial(_rule_agent, rule)
    if module == "__main__":
        return AGENTS.get(name)
    names = [*agent_names(), "sb3:ALGORITHM", "sb3-contrib:ALGORITHM"]
    where = f" in {module}" if module else ""
    raise CeeGymError(f"unknown agent {short!r}{where}: {did_you_mean(short, names)}")


def _rule_agent(rule: "type[Rule]", **given: Any) -> "Agent":
    """The rule as an agent, which chooses what is not given, or given as None."""
    from cee_gym.agents.rule import RuleAgent

    given = {key: value for key, value in given.items() if value is not None}
    return RuleAgent(rule(**given), [name for name in rule.chosen if name not in given])


def _defaults(name: str, kind: Callable[..., "Agent"]) -> dict[str, Any]:
    from cee_gym.policies.sb3 import defaults, is_sb3

    return defaults(name) if is_sb3(name) else kind().hyperparameters()
