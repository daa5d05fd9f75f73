"""The policies of Stable-Baselines3 and sb3-contrib as scores; they are imported only when used."""

import copy
import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Self

import gymnasium as gym
import numpy as np
import torch

from cee_gym.errors import CeeGymError, did_you_mean, first_line
from cee_gym.observation import Layout, space_of
from cee_gym.policies.score import Floats, Score, register_policy

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.policies import BasePolicy

CONTINUE, EXIT = 0, 1

_PACKAGES = {"sb3": "stable_baselines3", "sb3-contrib": "sb3_contrib"}
# What the agent sets itself, and what JSON cannot hold.
_NOT_SETTINGS = {
    "self",
    "env",
    "device",
    "tensorboard_log",
    "verbose",
    "_init_setup_model",
    "action_noise",
    "rollout_buffer_class",
    "rollout_buffer_kwargs",
    "replay_buffer_class",
    "replay_buffer_kwargs",
}
_OURS = {"policy": "MlpPolicy", "num_envs": 64, "gamma": 1.0, "seed": 0}
# Those of the algorithms are for one environment and a million steps.
_ON_POLICY = {"n_steps": 16, "batch_size": 256}
_OFF_POLICY = {
    "buffer_size": 50_000,
    "learning_starts": 1_000,
    "train_freq": 1,
    "gradient_steps": 8,
    "target_update_interval": 1_000,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "PPO": _ON_POLICY,
    "MaskablePPO": _ON_POLICY,
    "TRPO": _ON_POLICY,
    "DQN": _OFF_POLICY,
    # Its 200 quantiles cost ten times as much, and returns here are simple.
    "QRDQN": _OFF_POLICY | {"policy_kwargs": {"n_quantiles": 32}},
    # It counts a step of n environments n times, so it gets one.
    "ARS": {"num_envs": 1, "n_eval_episodes": 16},
}
_ROWS_AT_A_TIME = 4096


@register_policy("sb3")
class SB3Score(Score):
    """The probability of leaving, or for values the sigmoid of what leaving is worth more.

    It is above 1/2 exactly where the algorithm's `predict(deterministic=True)` leaves.

    Args:
        algorithm: `"sb3:NAME"` or `"sb3-contrib:NAME"`.
        hyperparameters: of the algorithm.
        policy: the algorithm's own, on the CPU.
    """

    def __init__(
        self, algorithm: str, hyperparameters: Mapping[str, Any], policy: "BasePolicy"
    ) -> None:
        self.algorithm = algorithm
        self.policy = policy
        self._hyperparameters = dict(hyperparameters)
        self.is_probability = not hasattr(policy, "q_net") and not hasattr(policy, "quantile_net")

    def scores(self, observations: Floats, layout: Layout) -> Floats:
        """The probabilities, float32 `[N, t]`."""
        states = observations.reshape(-1, observations.shape[-1])
        self.policy.set_training_mode(False)
        scores = np.empty(len(states), dtype=np.float32)
        with torch.inference_mode():
            for start in range(0, len(states), _ROWS_AT_A_TIME):
                rows = slice(start, start + _ROWS_AT_A_TIME)
                values = preferences(self.policy, torch.from_numpy(np.array(states[rows])))
                scores[rows] = torch.sigmoid(values[:, EXIT] - values[:, CONTINUE]).numpy()
        return scores.reshape(observations.shape[:2])

    def settings(self) -> dict[str, Any]:
        """Algorithm and hyper-parameters."""
        return {"algorithm": self.algorithm, "hyperparameters": self._hyperparameters}

    def tensors(self) -> dict[str, torch.Tensor]:
        """The weights of the algorithm's policy."""
        return dict(self.policy.state_dict())

    @classmethod
    def restore(
        cls,
        settings: Mapping[str, Any],
        tensors: dict[str, torch.Tensor],
        layout: Layout,
        alpha_range: tuple[float, float],
    ) -> Self:
        """The score with these weights."""
        name, hyperparameters = settings["algorithm"], settings["hyperparameters"]
        policy = untrained(name, hyperparameters, space_of(layout, alpha_range)).policy
        policy.load_state_dict(tensors)
        return cls(name, hyperparameters, policy)


def find_algorithm(name: str) -> "type[BaseAlgorithm]":
    """The algorithm of Stable-Baselines3 or sb3-contrib with this name, whatever its case.

    Raises:
        CeeGymError: if there is none, its package is not installed, or it is recurrent.

    >>> find_algorithm("sb3:ppo").__name__
    'PPO'
    """
    from stable_baselines3.common.base_class import BaseAlgorithm

    prefix, _, wanted = name.lower().partition(":")
    try:
        package = import_module(_PACKAGES[prefix])
    except ImportError:
        raise CeeGymError(f'{name} needs sb3-contrib: pip install "cee-gym[contrib]"') from None
    known = {
        key.lower(): value
        for key, value in vars(package).items()
        if inspect.isclass(value) and issubclass(value, BaseAlgorithm)
    }
    if wanted not in known:
        names = [f"{prefix}:{key}" for key in known]
        raise CeeGymError(f"unknown agent {name!r}: {did_you_mean(name, names)}")
    if any("Lstm" in alias for alias in known[wanted].policy_aliases):
        raise CeeGymError(
            f"{name} is recurrent, and agents have no memory here: the state of a layer holds what "
            "came before it already; use sb3:ppo"
        )
    return known[wanted]


def is_sb3(name: str) -> bool:
    """Whether a name is that of an algorithm of Stable-Baselines3 or sb3-contrib."""
    return name.lower().partition(":")[0] in _PACKAGES and ":" in name


def defaults(name: str) -> dict[str, Any]:
    """The hyper-parameters of an algorithm and their defaults here.

    >>> defaults("sb3:a2c")["gamma"]
    1.0
    """
    algorithm = find_algorithm(name)
    theirs = {
        key: parameter.default
        for key, parameter in inspect.signature(algorithm).parameters.items()
        if key not in _NOT_SETTINGS
    }
    ours = {key: value for key, value in _OURS.items() if key in theirs or key == "num_envs"}
    return theirs | ours | _DEFAULTS.get(algorithm.__name__, {})


def make_algorithm(
    name: str, hyperparameters: Mapping[str, Any], env: Any, seed: int | None
) -> "BaseAlgorithm":
    """The algorithm over an environment, on the CPU.

    Raises:
        ValueError: of its own, where it refuses a hyper-parameter or the environment.
    """
    # Algorithms write into dictionaries they are given, and want tuples, which JSON has not.
    settings = {
        key: tuple(value) if isinstance(value, list) else copy.deepcopy(value)
        for key, value in hyperparameters.items()
        if key != "num_envs"
    }
    algorithm: Any = find_algorithm(name)
    made: BaseAlgorithm = algorithm(env=env, device="cpu", **settings | {"seed": seed})
    if made.n_envs > 1 and algorithm.__name__ == "ARS":
        raise ValueError("it counts a step of n environments n times: give it a single one")
    return made


def untrained(
    name: str, hyperparameters: Mapping[str, Any], observations: gym.Space[Any]
) -> "BaseAlgorithm":
    """The algorithm over environments that have spaces and nothing else."""
    from stable_baselines3.common.vec_env import DummyVecEnv

    with torch.random.fork_rng():
        envs = DummyVecEnv([lambda: _Spaces(observations)] * hyperparameters["num_envs"])
        return make_algorithm(name, hyperparameters, envs, seed=None)


def refused(name: str, error: Exception) -> CeeGymError:
    """What an algorithm says against its hyper-parameters or environment, in one line."""
    if "as action spaces" in str(error):
        return CeeGymError(
            f"{name} needs continuous actions, and here there are two, exit and continue: use "
            "sb3:ppo, sb3:a2c, sb3:dqn or sb3-contrib:trpo"
        )
    return CeeGymError(f"{name}: {first_line(error)}")


def preferences(policy: "BasePolicy", observations: torch.Tensor) -> torch.Tensor:
    """What speaks for each action, `[n, 2]`: logits, or values. The policy takes the higher one.

    Raises:
        CeeGymError: if the policy tells neither.
    """
    from stable_baselines3.common.policies import BasePolicy

    inner: Any = policy
    values: torch.Tensor
    if hasattr(inner, "mlp_extractor"):
        # `get_distribution` would write into the policy, which several threads may be asking.
        features = BasePolicy.extract_features(inner, observations, inner.pi_features_extractor)
        values = inner.action_net(inner.mlp_extractor.forward_actor(features))
    elif hasattr(inner, "action_net"):
        values = inner.action_net(inner.extract_features(observations, inner.features_extractor))
    elif hasattr(inner, "q_net"):
        values = inner.q_net(observations)
    elif hasattr(inner, "quantile_net"):
        values = inner.quantile_net(observations).mean(dim=1)
    else:
        raise CeeGymError(
            f"{type(policy).__name__} tells neither probabilities nor values of its actions, so it "
            "has no score"
        )
    return values


class _Spaces(gym.Env[Floats, int]):
    """An environment that has its spaces and does nothing."""

    def __init__(self, observations: gym.Space[Any]) -> None:
        self.observation_space = observations
        self.action_space = gym.spaces.Discrete(2)  # type: ignore[assignment]
