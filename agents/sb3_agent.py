"""The algorithms of Stable-Baselines3 and sb3-contrib as agents.

`sb3:ppo`, `sb3:a2c`, `sb3:dqn`, `sb3-contrib:trpo` and so on: whatever those packages export that
can choose between two actions and needs no memory. Hyper-parameters are the algorithm's own. From
the algorithm in plain user code it differs in defaults (`gamma=1`, the CPU, how often it updates),
has curves under `exit/` too, and is kept as safetensors and JSON, never pickled.

The problem is undiscounted. With rewards below 0 any gamma below 1 pays for waiting.
"""

import copy
import inspect
import json
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import gymnasium as gym
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from tqdm import tqdm

from cee_gym.agents.base import Agent, AnyEnv, Floats, table_of
from cee_gym.agents.sb3 import make_sb3_vec_env
from cee_gym.envs import CONTINUE, EXIT, EarlyExitVectorEnv
from cee_gym.errors import CeeGymError, check_number, did_you_mean, first_line
from cee_gym.observation import space_of
from cee_gym.problem import ExitTable

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


class SB3Agent(Agent):
    """An algorithm of Stable-Baselines3 or sb3-contrib.

    Its score is the probability of leaving, or for an algorithm that learns values the sigmoid of
    what leaving is worth more than going on: above 1/2 exactly where `predict(deterministic=True)`
    leaves.

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
        timesteps: learned from.
    """

    has_memory = False

    def __init__(self, name: str, **hyperparameters: Any) -> None:
        self._algorithm = find_algorithm(name)
        self.name = name.lower()  # type: ignore[misc]
        self._settings = defaults(name) | hyperparameters
        for key, value in self._settings.items():
            try:
                self._settings[key] = json.loads(json.dumps(value))
            except TypeError:
                raise CeeGymError(
                    f"{self.name}: {key} is kept with the agent as JSON, which {value!r} is not"
                ) from None
        check_number("num_envs", self._settings["num_envs"], 1)
        check_number("seed", self._settings["seed"], 0)
        self.sb3: BaseAlgorithm | None = None
        self.timesteps = 0
        self._env: AnyEnv | None = None
        # Tried at once, so that what does not work is known before hours of recording.
        try:
            tried = self._untrained(gym.spaces.Box(0, 1, (1,)))
        except Exception as error:  # of whatever kind the value of a hyper-parameter brings about
            raise self._refused(error) from error
        _preferences(tried.policy, torch.zeros(1, 1))
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

    def _refused(self, error: Exception) -> CeeGymError:
        if "as action spaces" in str(error):
            return CeeGymError(
                f"{self.name} needs continuous actions, and here there are two, exit and "
                "continue: use sb3:ppo, sb3:a2c, sb3:dqn or sb3-contrib:trpo"
            )
        return CeeGymError(f"{self.name}: {first_line(error)}")

    def _new(self, env: VecEnv | AnyEnv, seed: int | None) -> BaseAlgorithm:
        # Algorithms write into dictionaries they are given, and want tuples, which JSON has not.
        settings = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in self.hyperparameters().items()
            if key != "num_envs"
        }
        algorithm: Any = self._algorithm
        made: BaseAlgorithm = algorithm(env=env, device="cpu", **settings | {"seed": seed})
        if made.n_envs > 1 and algorithm.__name__ == "ARS":
            raise ValueError("it counts a step of n environments n times: give it a single one")
        return made

    def _untrained(self, observations: gym.Space[Any]) -> BaseAlgorithm:
        """The algorithm over environments that have spaces and nothing else."""
        with torch.random.fork_rng():
            envs = DummyVecEnv([lambda: _Spaces(observations)] * self._settings["num_envs"])
            return self._new(envs, seed=None)

    def _vectorised(self, env: AnyEnv) -> VecEnv | AnyEnv:
        inner: Any = env.unwrapped
        if table_of(env) is not None and isinstance(env, gym.Env):
            inner = EarlyExitVectorEnv.of(inner, self._settings["num_envs"])
        elif isinstance(env, gym.Env):
            return env  # Stable-Baselines3 puts it into its Monitor and DummyVecEnv
        return make_sb3_vec_env(inner)

    def learn(
        self,
        env: AnyEnv,
        total_timesteps: int,
        *,
        logger: Logger | None = None,
        progress_bar: bool = False,
    ) -> Self:
        """See `Agent.learn`.

        In the same environment again it goes on as the algorithm itself does; in another one, or
        read from disk, with its policy but a fresh optimizer and empty buffers.

        Raises:
            CeeGymError: if it cannot learn there, or the policy diverges.
        """
        self.bind(env)
        table = table_of(env)
        bar = tqdm(
            total=total_timesteps,
            desc=self.name,
            unit="step",
            leave=False,
            disable=not progress_bar,
        )
        try:
            with bar:
                sb3 = self._prepared(env)
                sb3.set_logger(logger or Logger(None, []))
                settings: dict[str, Any] = {"reset_num_timesteps": False, "log_interval": None}
                if "use_masking" in inspect.signature(sb3.learn).parameters:
                    settings["use_masking"] = False  # MaskablePPO insists on masks by default
                sb3.learn(total_timesteps, _ExitCurves(table, total_timesteps, bar), **settings)
        except CeeGymError:
            raise
        except (AssertionError, ValueError) as error:
            self._check_finite()
            raise self._refused(error) from error
        self._check_finite()
        self.timesteps = sb3.num_timesteps
        return self

    def _prepared(self, env: AnyEnv) -> BaseAlgorithm:
        """The algorithm over this environment, with the policy it has, and seeded."""
        seed = self._settings["seed"] + self.timesteps
        if self.sb3 is not None and env is self._env:
            self.sb3.set_random_seed(seed)
            return self.sb3
        before, self.sb3, self._env = self.sb3, self._new(self._vectorised(env), seed), env
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

    def exit_probability(self, observations: Floats) -> Floats:
        """See `Agent.exit_probability`."""
        policy = self._learned().policy
        policy.set_training_mode(False)
        with torch.inference_mode():
            values = _preferences(policy, torch.from_numpy(np.array(observations[:, -1])))
            return torch.sigmoid(values[:, EXIT] - values[:, CONTINUE]).numpy()

    def exit_probabilities(self, observations: Floats) -> Floats:
        """See `Agent.exit_probabilities`."""
        states = observations.reshape(-1, 1, observations.shape[-1])
        chunks = np.array_split(states, -(-len(states) // _ROWS_AT_A_TIME))
        scores = np.concatenate([self.exit_probability(chunk) for chunk in chunks])
        return scores.reshape(observations.shape[:2])

    def _learned(self) -> BaseAlgorithm:
        if self.sb3 is None:
            raise CeeGymError(
                f"this {self.name} agent has not learned anything yet: call learn first"
            )
        return self.sb3

    def save_weights(self, path: Path) -> None:
        """See `Agent.save_weights`. Neither optimizer nor buffers are kept."""
        weights = self._learned().policy.state_dict()
        save_file({**weights, "timesteps": torch.tensor(self.timesteps)}, path)

    def load_weights(self, path: Path) -> None:
        """See `Agent.load_weights`."""
        weights = load_file(path)
        self._take(int(weights.pop("timesteps")), weights)

    def _take(self, timesteps: int, weights: dict[str, torch.Tensor]) -> None:
        self.sb3, self._env = self._untrained(space_of(self.layout, self.alpha_range)), None
        _set_policy(self.sb3, weights)
        self.timesteps = timesteps

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
            loaded = self._algorithm.load(path, device="cpu")
        except Exception as error:  # unpickling can fail with anything
            raise CeeGymError(f"{path} is no {self.name}: {first_line(error)}") from error
        try:
            self._take(loaded.num_timesteps, loaded.policy.state_dict())
        except RuntimeError as error:
            raise CeeGymError(
                f"the networks in {path} are not those of this agent: give the policy_kwargs they "
                "were made with, and an environment with the same observations"
            ) from error
        return self


def find_algorithm(name: str) -> type[BaseAlgorithm]:
    """The algorithm of Stable-Baselines3 or sb3-contrib with this name, whatever its case.

    Raises:
        CeeGymError: if there is none, its package is not installed, or it is recurrent.

    >>> find_algorithm("sb3:ppo").__name__
    'PPO'
    """
    prefix, _, wanted = name.lower().partition(":")
    if prefix not in _PACKAGES:
        raise CeeGymError(f"unknown agent {name!r}: before the colon comes sb3 or sb3-contrib")
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


def _preferences(policy: BasePolicy, observations: torch.Tensor) -> torch.Tensor:
    """What speaks for each action, `[n, 2]`: logits, or values. The policy takes the higher one."""
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


def _set_policy(model: BaseAlgorithm, weights: dict[str, torch.Tensor]) -> None:
    model.policy.load_state_dict(weights)
    if hasattr(model, "weights"):  # ARS moves a vector of its own
        model.weights = torch.nn.utils.parameters_to_vector(model.policy.parameters()).detach()


class _Spaces(gym.Env[Floats, int]):
    """An environment that has its spaces and does nothing."""

    def __init__(self, observations: gym.Space[Any]) -> None:
        self.observation_space = observations
        self.action_space = gym.spaces.Discrete(2)  # type: ignore[assignment]


class _ExitCurves(BaseCallback):
    """Adds to the curves of Stable-Baselines3 what our own agents record, at about 100 points.

    Args:
        table: of a recorded environment, which tells the best return in hindsight.
        total_timesteps: of this learning run.
        bar: shows progress.
    """

    def __init__(self, table: ExitTable | None, total_timesteps: int, bar: "tqdm[Any]") -> None:
        super().__init__()
        self._table = table
        self._total = total_timesteps
        self._bar = bar

    def _on_training_start(self) -> None:
        self._end = self.num_timesteps + self._total
        self._written = self._counted = self.num_timesteps
        self._began = list(self.training_env.reset_infos)

    def _on_step(self) -> bool:
        self._bar.update(self.num_timesteps - self._counted)
        self._counted = self.num_timesteps
        infos = self.locals.get("infos", [])  # ARS does not show them
        ended = [env for env, info in enumerate(infos) if "exit_layer" in info]
        for env in ended:
            info = infos[env]
            self.logger.record_mean("exit/mean_exit_layer", info["exit_layer"])
            self.logger.record_mean("exit/saved_layers", info["saved_layers"])
            self.logger.record_mean("exit/accuracy", info["correct"])
        if ended and self._table is not None:
            rows = [self._began[env]["instance"] for env in ended]
            alpha = np.array([[self._began[env]["alpha"]] for env in ended])
            best = (self._table.quality[rows] - alpha * self._table.price[rows]).max(axis=1)
            for env, hindsight in zip(ended, best.tolist(), strict=True):
                self.logger.record_mean("exit/regret", hindsight - infos[env]["episode"]["r"])
        self._began = list(self.training_env.reset_infos)
        return True

    def _on_rollout_end(self) -> None:
        if self.num_timesteps >= min(self._written + self._total / 100, self._end):
            self.model.dump_logs()
            self._written = self.num_timesteps
