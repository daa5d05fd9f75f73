"""What an agent may use of an environment: its problem, or only its steps.

An agent that learns from the tables of a recorded environment does not see what a wrapper around it
changes. So wrappers that only watch are looked through; those that change rewards are honoured, by
agents that learn from steps alone; those that change observations or the course of an episode are
refused, since a deployed policy would not find there what it was learned on.
"""

from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
from gymnasium.vector import SyncVectorEnv, VectorRewardWrapper, VectorWrapper

from cee_gym.errors import CeeGymError
from cee_gym.observation import Layout
from cee_gym.problem import Problem

VectorEnv = gym.vector.VectorEnv[Any, Any, Any]
AnyEnv = gym.Env[Any, Any] | VectorEnv

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
        CeeGymError: if it is none of cee-gym's or a vector of different ones, its rewards are
            vectors, it has a single layer, or a wrapper changes its observations or episodes.
    """
    inner: Any = env.unwrapped
    if isinstance(inner, SyncVectorEnv):
        found, *others = map(access, inner.envs)
        if any(other != found for other in others):
            raise CeeGymError(
                "the environments of this vector environment differ in what they observe or pay: "
                "make them all with the same arguments"
            )
    else:
        found = _access_to(inner)
    return replace(found, problem=None) if _changes_rewards(env) else found


def _access_to(env: Any) -> Access:
    """What a single or vector environment without wrappers lets an agent use."""
    try:
        layout, alpha_range, num_layers = dict(env.layout), env.alpha_range, env.num_layers
    except AttributeError:
        raise CeeGymError(f"agents learn in the environments of cee-gym, not in {env}") from None
    if hasattr(env, "reward_space"):
        raise CeeGymError(
            "the rewards of this environment are vectors, and the agents here take numbers: make "
            "it without vector_reward, and alpha weighs them"
        )
    if num_layers < 2:
        raise CeeGymError(
            "this environment has one layer, so there is nothing to decide: use a backbone of at "
            "least two"
        )
    problem: Problem | None = getattr(env, "problem", None)
    known: str | None = getattr(env, "fingerprint", None)  # of a live model
    model = known if problem is None else problem.trace.header.model
    return Access(layout, alpha_range, model, problem)


def needs_problem(name: str, env: AnyEnv) -> CeeGymError:
    """The error of an agent that cannot learn where only one state is shown at a time."""
    return CeeGymError(
        f"{name} learns from all exits of an instance at once, which {env} does not show: use a "
        "recorded environment, without wrappers that change rewards (give it a Reward instead), or "
        "the agent 'reinforce' or 'ppo'"
    )


def _changes_rewards(env: Any) -> bool:
    """Whether a wrapper around an environment changes rewards; refuses what changes more."""
    changed = False
    while isinstance(env, gym.Wrapper | VectorWrapper):
        kind = type(env)
        known = kind.__module__.partition(".")[0] in ("gymnasium", "stable_baselines3")
        if not (known and kind.__name__ in _WATCHERS):
            changed = True
            rewards = isinstance(env, gym.RewardWrapper | VectorRewardWrapper)
            if not rewards and not (known and kind.__name__ == "NormalizeReward"):
                raise CeeGymError(
                    f"{kind.__name__} changes what an agent observes or does or when an episode "
                    "ends, and a deployed policy would not find that again: leave it out; what is "
                    "observed is chosen by observe=..., and a part of your own is added by "
                    "register_observation"
                )
        env = env.env
    return changed
