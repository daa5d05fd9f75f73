"""Stable-Baselines3 on our vector environment, whole batches at a time.

Stable-Baselines3 takes no Gymnasium `VectorEnv`; its own `DummyVecEnv` steps one environment after
another in Python. `make_sb3_vec_env` gives it ours:

    PPO("MlpPolicy", make_sb3_vec_env("EarlyExit-BERT-RTE", 256), gamma=1.0).learn(100_000)
"""

import time
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from cee_gym.agents.access import VectorEnv, access
from cee_gym.envs import EarlyExitVectorEnv
from cee_gym.envs.episode import check_options
from cee_gym.errors import CeeGymError


def make_sb3_vec_env(
    env: str | VectorEnv, num_envs: int = 64, *, seed: int | None = None, **kwargs: Any
) -> "SB3VecEnv":
    """A Stable-Baselines3 `VecEnv` over our vector environment.

    Args:
        env: an id, or an `EarlyExitVectorEnv` with autoreset mode SameStep, or wrappers around one
            that watch it or change its rewards.
        num_envs: how many, where an id is given.
        seed: of the draws; environment i takes seed + i.
        **kwargs: of the environment, where an id is given.

    Raises:
        CeeGymError: if the environment is not ours, resets at another time, has vector rewards, or
            a wrapper changes its observations or episodes.
    """
    made = gym.make_vec(env, num_envs, **kwargs) if isinstance(env, str) else env
    if not isinstance(made.unwrapped, EarlyExitVectorEnv):
        raise CeeGymError(
            f"make_sb3_vec_env takes a vector environment over a recording, not {env}"
        )
    access(made)
    if made.metadata["autoreset_mode"] != AutoresetMode.SAME_STEP:
        raise CeeGymError(
            "Stable-Baselines3 resets in the same step: use autoreset_mode='SameStep'"
        )
    adapted = SB3VecEnv(made)
    if seed is not None:
        adapted.seed(seed)
    return adapted


class SB3VecEnv(VecEnv):
    """`EarlyExitVectorEnv` by the conventions of Stable-Baselines3.

    Infos are those of its `Monitor` (`episode` with return, length and time) beside our own; an
    episode's length is its exit layer, and `is_success` whether the prediction was right.

    Args:
        env: what `make_sb3_vec_env` takes.
    """

    def __init__(self, env: VectorEnv) -> None:
        self.env = env
        self._actions: npt.NDArray[np.int64] = np.zeros(env.num_envs, dtype=np.int64)
        self._returns = np.zeros(env.num_envs)
        self._start = time.perf_counter()
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self.metadata = env.metadata

    def reset(self) -> npt.NDArray[np.float32]:
        """Observations float32 `[n, D]`."""
        seeds = list(self._seeds)
        options: dict[str, Any] = {}
        for option in self._options:
            check_options(option, ("instance", "alpha"))
        for key in ("instance", "alpha"):
            if any(key in option for option in self._options):
                if not all(key in option for option in self._options):
                    raise CeeGymError(f"option {key!r} must be given to all environments, or none")
                options[key] = np.array([option[key] for option in self._options])
        given: Any = seeds if any(seed is not None for seed in seeds) else None
        observations, infos = self.env.reset(seed=given, options=options)
        self._returns[:] = 0
        self.reset_infos = [
            {key: infos[key][i].item() for key in ("instance", "alpha")}
            for i in range(self.num_envs)
        ]
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """Takes the actions, int `[n]`."""
        self._actions = np.asarray(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Observations, rewards float32 `[n]`, dones bool `[n]` and a dict for each environment."""
        observations, rewards, dones, _, batch = self.env.step(self._actions)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        self._returns += rewards
        ended = np.flatnonzero(dones)
        if len(ended):
            final, left = batch["final_info"], batch["final_obs"]
            columns = {
                key: values[ended].tolist()
                for key, values in final.items()
                if isinstance(values, np.ndarray) and not key.startswith("_")
            }
            parts = final["reward_components"]
            quality, price = parts["quality"][ended].tolist(), parts["price"][ended].tolist()
            earned, elapsed = self._returns[ended].tolist(), time.perf_counter() - self._start
            self._returns[ended] = 0
            for row, env in enumerate(ended.tolist()):
                infos[env] = {
                    **{key: values[row] for key, values in columns.items()},
                    "reward_components": {"quality": quality[row], "price": price[row]},
                    "terminal_observation": left[env],
                    "TimeLimit.truncated": False,
                    "episode": {
                        "r": earned[row],
                        "l": columns["exit_layer"][row],
                        "t": round(elapsed, 6),
                    },
                }
                self.reset_infos[env] = {
                    key: batch[key][env].item() for key in ("instance", "alpha")
                }
        return observations, rewards.astype(np.float32), dones, infos

    def close(self) -> None:
        """Closes the environment."""
        self.env.close()

    def get_images(self) -> Sequence[npt.NDArray[np.uint8] | None]:
        """A picture of each environment."""
        frames: Any = self.env.render()
        return list(frames)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The attribute of our vector environment, once for each index."""
        return [getattr(self.env.unwrapped, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Refuses: the environments are one, and share their attributes."""
        raise CeeGymError(f"{attr_name} cannot be set for single environments: they are one array")

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **kwargs: Any
    ) -> list[Any]:
        """Refuses, as `set_attr` does."""
        raise CeeGymError(f"{method_name} cannot be called on one environment: they are one array")

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Whether each has a wrapper: only `Monitor`'s values are in the infos."""
        return [issubclass(wrapper_class, Monitor) for _ in self._get_indices(indices)]
