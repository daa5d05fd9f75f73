"""What an agent may use of an environment: its problem, or only its steps.

An agent that learns from the tables of a recorded environment does not see what a wrapper around it
changes. So wrappers that only watch are looked through; those that change rewards are honoured, by
agents that learn from steps alone; those that change observations or the course of an episode are
refused, since a deployed policy would not find there what it was learned on.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
from gymnasium.vector import SyncVectorEnv, VectorEnv, VectorWrapper

from cee_gym.errors import CeeGymError
from cee_gym.observation import Layout
from cee_gym.problem import Problem

AnyEnv = gym.Env[Any, Any] | VectorEnv[Any, Any, Any]

# They change neither observations nor rewards nor when an episode ends.
_WATCHERS = {
    "PassiveEnvChecker",
    "OrderEnforcing",
    "RecordEpisodeStatistics",
    "RecordVideo",
    "HumanRendering",
    "RenderCollection",
    "Monitor",
}
_CHANGE_REWARDS = {"NormalizeReward"}  # the others are of the classes of reward wrappers


@dataclass(frozen=True)
class Access:
    """What an environment lets an agent use.

    Attributes:
        layout: the columns of each part of its observations.
        alpha_range: the lowest and highest price of one layer.
        model: the fingerprint of the weights behind it; None where that is not known.
        problem: what it pays, for all states at once; None where only its steps tell.
    """

    layout: Layout
    alpha_range: tuple[float, float]
    model: str | None
    problem: Problem | None


def access(env: AnyEnv) -> Access:
    """What this environment lets an agent use.

    Raises:
        CeeGymError: if it is none of cee-gym's, its rewards are vectors, or a wrapper changes its
            observations or episodes.
    """
    inner: Any = env.unwrapped
    wrappers = list(_wrappers(env))
    if isinstance(inner, SyncVectorEnv):
        wrappers += _wrappers(inner.envs[0])
        inner = inner.envs[0].unwrapped
    if hasattr(inner, "reward_space"):
        raise CeeGymError(
            "the rewards of this environment are vectors, and the agents here take numbers: make "
            "it without vector_reward, and alpha weighs them"
        )
    try:
        layout, alpha_range = dict(inner.layout), inner.alpha_range
    except AttributeError:
        raise CeeGymError(f"agents learn in the environments of cee-gym, not in {env}") from None
    changed = False
    for wrapper in wrappers:
        if not _only_watches(wrapper):
            changed = True
            if not _changes_rewards(wrapper):
                raise CeeGymError(
                    f"{type(wrapper).__name__} changes what an agent observes or when an episode "
                    "ends, and a deployed policy would not find that again: leave it out; what is "
                    "observed is chosen by observe=..., and a part of your own is added by "
                    "register_observation"
                )
    problem: Problem | None = getattr(inner, "problem", None)
    model = problem.trace.header.model if problem is not None else None
    return Access(layout, alpha_range, model, None if changed else problem)


def needs_problem(name: str, env: AnyEnv) -> CeeGymError:
    """The error of an agent that cannot learn where only one state is shown at a time."""
    return CeeGymError(
        f"{name} learns from all rewards of an instance at once, which {env} does not tell: use a "
        "recorded environment, without wrappers that change rewards (give it a Reward instead), or "
        "the agent 'reinforce' or 'ppo'"
    )


def check_no_wrappers(env: AnyEnv, who: str) -> None:
    """Refuses wrappers that do more than watch.

    Raises:
        CeeGymError: naming the wrapper.
    """
    for wrapper in _wrappers(env):
        if not _only_watches(wrapper):
            raise CeeGymError(
                f"{who} steps the environment under {type(wrapper).__name__} and would pass over "
                "what that does: leave it out, or put one of Stable-Baselines3's own around"
            )


def _wrappers(env: Any) -> Iterator[Any]:
    while isinstance(env, gym.Wrapper | VectorWrapper):
        yield env
        env = env.env


def _only_watches(wrapper: Any) -> bool:
    kind = type(wrapper)
    known = kind.__module__.partition(".")[0] in ("gymnasium", "stable_baselines3")
    return known and kind.__name__ in _WATCHERS


def _changes_rewards(wrapper: Any) -> bool:
    kinds = gym.RewardWrapper | gym.vector.VectorRewardWrapper
    return isinstance(wrapper, kinds) or type(wrapper).__name__ in _CHANGE_REWARDS
