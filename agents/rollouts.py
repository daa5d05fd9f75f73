"""Runs K episodes of each instance in an environment that is not recorded."""

from collections.abc import Callable
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from cee_gym.agents.access import AnyEnv
from cee_gym.envs import CONTINUE, EXIT
from cee_gym.errors import CeeGymError
from cee_gym.policies.score import Floats

# From the observations [n, D] of some rollouts, and a uniform number each, to whether they leave.
Decide = Callable[[Floats, Floats], npt.NDArray[np.bool_]]


@dataclass(frozen=True)
class Episodes:
    """B instances, K rollouts each.

    Attributes:
        observations: float32 `[B, L, D]`; 0 at layers that no rollout of the instance reached.
        exits: int64 `[B, K]`, from 0.
        returns: float32 `[B, K]`.
        correct: bool `[B, K]`.
        instances: int64 `[B]`.
    """

    observations: Floats
    exits: npt.NDArray[np.int64]
    returns: Floats
    correct: npt.NDArray[np.bool_]
    instances: npt.NDArray[np.int64]


def play(
    env: AnyEnv,
    uniforms: Floats,
    decide: Decide,
    instances: npt.NDArray[np.int64] | None = None,
    seed: int | None = None,
) -> Episodes:
    """Runs K episodes of each of B instances.

    Args:
        env: a scalar environment, or a vector environment whose autoreset is disabled.
        uniforms: `[B, K, L]` in [0, 1), one per decision.
        decide: whether to leave.
        instances: int64 `[B]`; drawn by the environment where None.
        seed: of the environment's draws; None lets it go on as it is.

    Raises:
        CeeGymError: if the environment resets by itself.
    """
    if isinstance(env, gym.Env):
        scalar = env
        env = SyncVectorEnv([lambda: scalar], autoreset_mode=AutoresetMode.DISABLED)
    if env.metadata["autoreset_mode"] != AutoresetMode.DISABLED:
        raise CeeGymError(
            "rollouts of the same instance need a vector environment with "
            f"autoreset_mode='Disabled', not {env.metadata['autoreset_mode'].value}"
        )
    num_instances, num_rollouts, num_layers = uniforms.shape
    (width,) = env.single_observation_space.shape or ()
    played = Episodes(
        observations=np.zeros((num_instances, num_layers, width), dtype=np.float32),
        exits=np.zeros((num_instances, num_rollouts), dtype=np.int64),
        returns=np.zeros((num_instances, num_rollouts), dtype=np.float32),
        correct=np.zeros((num_instances, num_rollouts), dtype=np.bool_),
        instances=np.full(num_instances, -1) if instances is None else instances.copy(),
    )
    # All rollouts of an instance pay the same price of a layer: that of the first.
    alpha: list[float | None] = [None] * num_instances
    num_jobs = num_instances * num_rollouts
    job = np.full(env.num_envs, -1)  # which rollout of which instance each sub-environment is in
    layer = np.zeros(env.num_envs, dtype=np.int64)
    observations, _ = env.reset(seed=seed)
    next_job = 0
    free = np.ones(env.num_envs, dtype=np.bool_)
    while True:
        # Sub-environments with nothing left to do run on and are not looked at: each must be reset
        # all the same.
        for sub in np.flatnonzero(free):
            job[sub] = next_job if next_job < num_jobs else -1
            row = job[sub] // num_rollouts
            options: dict[str, object] = {"reset_mask": np.arange(env.num_envs) == sub}
            if job[sub] >= 0 and played.instances[row] >= 0:
                options["instance"] = int(played.instances[row])
            if job[sub] >= 0 and alpha[row] is not None:
                options["alpha"] = alpha[row]
            observations, info = env.reset(options=options)
            if job[sub] >= 0:
                played.instances[row] = info["instance"][sub]
                alpha[row] = float(info["alpha"][sub])
                next_job += 1
        layer[free] = 0
        busy = job >= 0
        if not busy.any():
            return played
        row, rollout = job[busy] // num_rollouts, job[busy] % num_rollouts
        played.observations[row, layer[busy]] = observations[busy]
        leave = np.ones(env.num_envs, dtype=np.bool_)
        leave[busy] = decide(observations[busy], uniforms[row, rollout, layer[busy]])
        observations, rewards, free, _, info = env.step(np.where(leave, EXIT, CONTINUE))
        played.returns[row, rollout] += rewards[busy]
        ended = busy & free
        row, rollout = job[ended] // num_rollouts, job[ended] % num_rollouts
        played.exits[row, rollout] = layer[ended]
        if ended.any():
            played.correct[row, rollout] = info["correct"][ended]
        layer += 1
