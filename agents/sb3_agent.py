"""The algorithms of Stable-Baselines3 and sb3-contrib as agents.

`sb3:ppo`, `sb3:a2c`, `sb3:dqn`, `sb3-contrib:trpo` and so on: whatever those packages export that
can choose between two actions and needs no memory. Hyper-parameters are the algorithm's own. From
the algorithm in plain user code it differs in defaults (`gamma=1`, the CPU, how often it updates),
has the further curves of our own agents, and is kept as safetensors and JSON, never pickled.

The problem is undiscounted. With rewards below 0 any gamma below 1 pays for waiting.
"""

import copy
import inspect
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv
from tqdm import tqdm

from cee_gym.agents.access import AnyEnv
from cee_gym.agents.base import Agent
from cee_gym.agents.curves import record_exits, record_on_calibration
from cee_gym.agents.presets import Preset
from cee_gym.agents.sb3 import make_sb3_vec_env
from cee_gym.envs import EarlyExitVectorEnv
from cee_gym.errors import CeeGymError, first_line
from cee_gym.observation import space_of
from cee_gym.policies.base import ExitPolicy
from cee_gym.policies.sb3 import (
    SB3Score,
    defaults,
    find_algorithm,
    make_algorithm,
    preferences,
    refused,
    untrained,
)
from cee_gym.problem import Problem
from cee_gym.progress import show_progress
from cee_gym.settings import MOST_SEED, Range, check_setting

PRESETS = {
    "sb3:ppo": Preset(
        total_timesteps=100_000,
        hyperparameters={"n_steps": 8, "batch_size": 512},
    ),
    "sb3:a2c": Preset(),
    "sb3:dqn": Preset(),
    "sb3-contrib:trpo": Preset(total_timesteps=100_000),
    "sb3-contrib:qrdqn": Preset(total_timesteps=100_000),
}
_RATE = {"learning_rate": Range(1e-5, 1e-2, log=True)}
RANGES: dict[str, dict[str, Range | list[Any]]] = {
    "sb3:ppo": {
        **_RATE,
        "n_steps": [4, 8, 16],
        "batch_size": [128, 256, 512],
        "n_epochs": Range(1, 10),
        "ent_coef": Range(0.0, 0.02),
    },
    "sb3:a2c": {**_RATE, "n_steps": Range(4, 16), "ent_coef": Range(0.0, 0.02)},
    "sb3:dqn": {
        **_RATE,
        "batch_size": [32, 128, 256],
        "exploration_fraction": Range(0.05, 0.5),
        "target_update_interval": [200, 1_000, 5_000],
    },
    "sb3-contrib:trpo": {**_RATE, "n_steps": [4, 8, 16], "target_kl": Range(0.002, 0.05)},
    "sb3-contrib:qrdqn": {**_RATE, "batch_size": [32, 128, 256]},
}


class SB3Agent(Agent):
    """An algorithm of Stable-Baselines3 or sb3-contrib.

    Args:
        name: `"sb3:NAME"` or `"sb3-contrib:NAME"`; case does not matter.
        **hyperparameters: of the algorithm's constructor, as far as JSON can hold them, and
            `num_envs`, the number of environments it runs at once where it is given a single
            recorded one. A live one stays single: there `n_steps` wants to be larger.

    Raises:
        CeeGymError: if there is no such algorithm, it needs continuous actions or is recurrent, or
            it refuses a hyper-parameter.

    Attributes:
        sb3: the algorithm's own object, once it has learned.
    """

    def __init__(self, name: str, **hyperparameters: Any) -> None:
        find_algorithm(name)
        self.name = name.lower()  # type: ignore[misc]
        self._settings = defaults(name) | hyperparameters
        for key, value in self._settings.items():
            try:
                self._settings[key] = json.loads(json.dumps(value, allow_nan=False))
            except (TypeError, ValueError):
                raise CeeGymError(
                    f"{self.name}: {key} is kept with the agent as JSON, which {value!r} is not"
                ) from None
        check_setting("num_envs", self._settings["num_envs"], 1, 10_000, whole=True)
        check_setting("seed", self._settings["seed"], 0, MOST_SEED, whole=True)
        self.sb3: BaseAlgorithm | None = None
        self._env: AnyEnv | None = None
        # Tried at once, so that what does not work is known before hours of recording.
        try:
            tried = untrained(self.name, self._settings, gym.spaces.Box(0, 1, (1,)))
        except Exception as error:  # of whatever kind the value of a hyper-parameter brings about
            raise refused(self.name, error) from error
        preferences(tried.policy, torch.zeros(1, 1))
        gamma = self._settings.get("gamma", 1)
        if gamma != 1:
            warnings.warn(
                f"{self.name} with gamma={gamma}: the problem is undiscounted, and where rewards "
                "are below 0 a gamma below 1 pays for waiting; use gamma=1",
                stacklevel=2,
            )

    def hyperparameters(self) -> dict[str, Any]:
        """What to construct the agent with, JSON-able."""
        return copy.deepcopy(self._settings)

    def _vectorised(self, env: AnyEnv, problem: Problem | None) -> VecEnv | AnyEnv:
        inner: Any = env.unwrapped
        if not isinstance(env, gym.Env):
            return make_sb3_vec_env(env)
        if problem is not None:
            return make_sb3_vec_env(EarlyExitVectorEnv.of(inner, self._settings["num_envs"]))
        return env  # Stable-Baselines3 puts it into its Monitor and DummyVecEnv

    def learn(
        self,
        env: AnyEnv,
        total_timesteps: int,
        *,
        logger: Logger | None = None,
        progress_bar: bool = False,
        calibration: Problem | None = None,
    ) -> Self:
        """Lets the algorithm learn; see `Agent.learn`.

        In the same environment again it goes on as the algorithm itself does; in another one, or
        read from disk, with its policy but a fresh optimizer and empty buffers.

        Raises:
            CeeGymError: if it cannot learn there, or the policy diverges.
        """
        problem = self.bind(env)
        bar = show_progress(
            total=total_timesteps,
            desc=self.name,
            unit="step",
            disable=not progress_bar,
        )
        try:
            with bar:
                sb3 = self._prepared(env, problem)
                sb3.set_logger(logger or Logger(None, []))
                settings: dict[str, Any] = {"reset_num_timesteps": False, "log_interval": None}
                if "use_masking" in inspect.signature(sb3.learn).parameters:
                    settings["use_masking"] = False  # MaskablePPO insists on masks by default
                curves = _ExitCurves(
                    problem, total_timesteps, bar, calibration, self._current_policy
                )
                sb3.learn(total_timesteps, curves, **settings)
        except CeeGymError:
            raise
        except (AssertionError, ValueError) as error:
            self._check_finite()
            raise refused(self.name, error) from error
        self._check_finite()
        self.timesteps = sb3.num_timesteps
        self._hand_over()
        return self

    def _current_policy(self) -> ExitPolicy:
        self._hand_over()
        return self.policy

    def _prepared(self, env: AnyEnv, problem: Problem | None) -> BaseAlgorithm:
        """The algorithm over this environment, with the policy it has, and seeded."""
        seed = (self._settings["seed"] + self.timesteps) % (MOST_SEED + 1)
        if self.sb3 is not None and env is self._env:
            self.sb3.set_random_seed(seed)
            return self.sb3
        before, envs = self.sb3, self._vectorised(env, problem)
        self.sb3, self._env = make_algorithm(self.name, self._settings, envs, seed), env
        if before is not None:
            _set_policy(self.sb3, before.policy.state_dict())
            self.sb3.num_timesteps = self.timesteps
        return self.sb3

    def _check_finite(self) -> None:
        if self.sb3 is not None:
            for parameter in self.sb3.policy.parameters():
                if not torch.isfinite(parameter).all():
                    raise CeeGymError(
                        f"the policy of {self.name} has diverged: lower learning_rate, which is "
                        f"{self._settings['learning_rate']}"
                    )

    def take(self, policy: ExitPolicy, tensors: dict[str, torch.Tensor]) -> None:
        """Goes on from these weights, with a fresh optimizer and empty buffers."""
        self._take(self.timesteps, policy.score.tensors())

    def _take(self, timesteps: int, weights: dict[str, torch.Tensor]) -> None:
        space = space_of(self.layout, self.alpha_range)
        self.sb3, self._env = untrained(self.name, self._settings, space), None
        _set_policy(self.sb3, weights)
        self.timesteps = timesteps

    def _hand_over(self) -> None:
        assert self.sb3 is not None
        policy = untrained(
            self.name, self._settings, space_of(self.layout, self.alpha_range)
        ).policy
        policy.load_state_dict(self.sb3.policy.state_dict())
        self.hand_over(SB3Score(self.name, self._settings, policy))

    def load_zip(self, path: str | Path, env: AnyEnv) -> Self:
        """Takes the policy from a file that Stable-Baselines3 saved itself (`PPO.save`).

        Such a file is unpickled, which runs whatever code its author put there; nothing else here
        is. The agent's `policy` and `policy_kwargs` must be those the file was made with.

        Args:
            path: of the zip file.
            env: what it learned in, or one with the same observations.

        Raises:
            CeeGymError: if the file cannot be read or does not fit.
        """
        warnings.warn(
            f"{path} is unpickled and can run any code: load it only if you trust where it came "
            "from",
            stacklevel=2,
        )
        self.bind(env)
        try:
            loaded = find_algorithm(self.name).load(path, device="cpu")
        except Exception as error:  # unpickling can fail with anything
            raise CeeGymError(f"{path} is no {self.name}: {first_line(error)}") from error
        try:
            self._take(loaded.num_timesteps, loaded.policy.state_dict())
            self._hand_over()
        except RuntimeError as error:
            raise CeeGymError(
                f"the networks in {path} are not those of this agent: give the policy_kwargs they "
                "were made with, and an environment with the same observations"
            ) from error
        return self


def _set_policy(model: BaseAlgorithm, weights: dict[str, torch.Tensor]) -> None:
    model.policy.load_state_dict(weights)
    if hasattr(model, "weights"):  # ARS moves a vector of its own
        model.weights = torch.nn.utils.parameters_to_vector(model.policy.parameters()).detach()


class _ExitCurves(BaseCallback):
    """Adds to the curves of Stable-Baselines3 what our own agents record, at about 100 points.

    Args:
        problem: of a recorded environment, which tells the best return in hindsight.
        total_timesteps: of this learning run.
        bar: shows progress.
        calibration: what the policy is measured on as well, at about 20 points; None for nothing.
        policy: gives it as it is.
    """

    def __init__(
        self,
        problem: Problem | None,
        total_timesteps: int,
        bar: "tqdm[Any]",
        calibration: Problem | None,
        policy: Callable[[], ExitPolicy],
    ) -> None:
        super().__init__()
        self._calibration = calibration
        self._policy = policy
        self._exit_layers: list[int] = []
        self._problem = problem
        self._total = total_timesteps
        self._bar = bar

    def _on_training_start(self) -> None:
        self._end = self.num_timesteps + self._total
        self._written = self._counted = self.num_timesteps
        self._measured = self.num_timesteps - self._total
        self._began = list(self.training_env.reset_infos)

    def _on_step(self) -> bool:
        self._bar.update(self.num_timesteps - self._counted)
        self._counted = self.num_timesteps
        infos = self.locals.get("infos", [])  # ARS does not show them
        ended = [env for env, info in enumerate(infos) if "exit_layer" in info]
        for env in ended:
            info = infos[env]
            self.logger.record_mean("rollout/saved_layers", info["saved_layers"])
            self._exit_layers.append(int(info["exit_layer"]))
        if ended and self._problem is not None:
            rows = np.array([self._began[env]["instance"] for env in ended])
            alpha = np.array([self._began[env]["alpha"] for env in ended])
            best = self._problem.rewards(alpha, rows).max(axis=1)
            for env, hindsight in zip(ended, best.tolist(), strict=True):
                self.logger.record_mean("rollout/regret", hindsight - infos[env]["episode"]["r"])
        self._began = list(self.training_env.reset_infos)
        return True

    def _on_rollout_end(self) -> None:
        if self.num_timesteps >= min(self._written + self._total / 100, self._end):
            record_exits(self.logger, self._exit_layers)
            self._exit_layers.clear()
            due = self.num_timesteps >= min(self._measured + self._total / 20, self._end)
            if self._calibration is not None and due:
                record_on_calibration(self.logger, self._policy(), self._calibration)
                self._measured = self.num_timesteps
            self.model.dump_logs()
            self._written = self.num_timesteps
