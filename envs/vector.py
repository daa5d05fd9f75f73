"""Many recorded episodes at once, in a few array operations per step."""

import os
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.spaces import Box, Discrete
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from cee_gym.envs import render
from cee_gym.envs.draws import BlockDraws, alpha_block, instance_block
from cee_gym.envs.episode import (
    CONTINUE,
    EXIT,
    Observation,
    check_alphas,
    check_instances,
    check_options,
    vector_reward_space,
)
from cee_gym.envs.recorded import EarlyExitEnv, readings
from cee_gym.errors import CeeGymError
from cee_gym.headroom import Headroom, headroom_of
from cee_gym.observation import allowed_alpha, space_of
from cee_gym.problem import ALPHA, OBSERVE, open_problem
from cee_gym.reward import Reward
from cee_gym.traces.trace import Trace

MOST_VIEWS_KEPT = 2**20
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


class EarlyExitVectorEnv(VectorEnv[Observation, npt.NDArray[np.integer[Any]], npt.NDArray[Any]]):
    """`EarlyExitEnv`, n times: step for step what `SyncVectorEnv` makes of n scalar ones.

    Observations are fresh arrays, float32 `[n, D]`; rewards are float64 `[n]`, vector rewards
    float32 `[n, 2]`. In mode SameStep the entries of `infos["final_obs"]` are read-only.

    Args:
        num_envs: n.
        recording: the id of a benchmark, as for `EarlyExitEnv`, which the arguments up to
            `vector_reward` are those of.
        trace: the path of a recording or of a single trace, or an open one.
        split: `"train"`, `"calibration"`, `"dev"` or `"test"`.
        alpha: the price of one layer, or the range from which each episode draws it.
        reward: a `cee_gym.Reward`, or its short name.
        observe: the parts of an observation.
        vector_reward: give quality and price apart; `reward_space` is that of one environment.
        autoreset_mode: `"SameStep"`, `"NextStep"` or `"Disabled"`: when an environment whose
            episode has ended begins the next.
        render_mode: `render()` gives a tuple of n frames.

    Raises:
        CeeGymError: if there is no such recording or split, or an argument does not fit.

    Attributes:
        problem: all states and rewards, for agents that use them; see `cee_gym.Problem`.
    """

    metadata: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        "render_modes": ["ansi", "rgb_array"],
        "render_fps": render.FPS,
        "autoreset_mode": AutoresetMode.SAME_STEP,
        "deterministic": True,
    }
    reward_space: Box
    reward_dim: int

    def __init__(
        self,
        num_envs: int = 1,
        recording: str | None = None,
        trace: Trace | str | os.PathLike[str] | None = None,
        split: str = "train",
        alpha: float | Sequence[float] = ALPHA,
        reward: Reward | str = "correctness",
        observe: Sequence[str] = OBSERVE,
        vector_reward: bool = False,
        autoreset_mode: str | AutoresetMode = AutoresetMode.SAME_STEP,
        render_mode: str | None = None,
    ) -> None:
        if num_envs < 1:
            raise CeeGymError(f"num_envs must be at least 1, got {num_envs}")
        try:
            self._autoreset_mode = AutoresetMode(autoreset_mode)
        except ValueError:
            modes = ", ".join(mode.value for mode in AutoresetMode)
            raise CeeGymError(
                f"autoreset_mode must be one of {modes}, got {autoreset_mode!r}"
            ) from None
        self.problem = problem = open_problem(
            recording, trace, split, reward=reward, observe=observe, alpha=alpha
        )
        self.num_envs = num_envs
        self.num_instances = len(problem)
        self.num_layers = problem.num_layers
        self.layout = problem.layout
        self.alpha_range = problem.alpha
        self._vector_reward = vector_reward
        if vector_reward:
            self.reward_space = vector_reward_space(problem.reward, problem.price)
            self.reward_dim = 2
        if render_mode == "human":
            raise CeeGymError("many environments have no window: use rgb_array, or one environment")
        self.render_mode = render.checked_mode(render_mode)
        self.metadata = {  # type: ignore[misc]
            **self.metadata,
            "autoreset_mode": self._autoreset_mode,
            "deterministic": problem.reward.deterministic,
        }
        self.single_observation_space = space_of(self.layout, self.alpha_range)
        self.single_action_space = Discrete(2)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

        self._alpha_column = problem.alpha_column
        self._allowed_alpha = allowed_alpha(self.layout, self.alpha_range)

        self._generators: list[np.random.Generator] = []
        self._seeds: list[int] = []
        self._instances = BlockDraws(
            num_envs, partial(instance_block, num_instances=self.num_instances), np.int64
        )
        low, high = self.alpha_range
        self._alphas = BlockDraws(num_envs, partial(alpha_block, low=low, high=high), np.float64)
        self._instance = np.zeros(num_envs, dtype=np.int64)
        self._layer = np.zeros(num_envs, dtype=np.int64)  # 0 before the first reset, never after
        self._alpha = np.full(num_envs, low)
        self._ended = np.zeros(num_envs, dtype=np.bool_)

    @classmethod
    def of(cls, env: EarlyExitEnv, num_envs: int) -> "EarlyExitVectorEnv":
        """The scalar environment `env`, `num_envs` times."""
        return cls(num_envs, **env.arguments)

    def headroom(self, alpha: float | None = None) -> Headroom:
        """What policies earn on this split; see `EarlyExitEnv.headroom`."""
        return headroom_of(self.problem, alpha)

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The random generator of each environment."""
        self._seed_all()
        return tuple(self._generators)

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """The seed of each environment."""
        self._seed_all()
        return tuple(self._seeds)

    def _seed_all(self) -> None:
        if not self._generators:
            pairs = [seeding.np_random() for _ in range(self.num_envs)]
            self._generators = [generator for generator, _ in pairs]
            self._seeds = [seed for _, seed in pairs]

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Observation, dict[str, Any]]:
        """Begins an episode in every environment, or in those of a mask.

        Args:
            seed: a number, from which environment i takes seed + i, or one for each.
            options: `{"reset_mask": bool [n]}` leaves the others as they are; `{"instance": i}`
                fixes the instances and `{"alpha": a}` the price of one layer: a number, or `[n]`.

        Returns:
            Observations, float32 `[n, D]`, and `instance` and `alpha` as infos.

        Raises:
            CeeGymError: if an option is unknown, out of range or of another shape.
        """
        options = options or {}
        check_options(options, ("instance", "alpha", "reset_mask"))
        envs = np.flatnonzero(self._mask(options.get("reset_mask")))
        instance = self._one_each("instance", options.get("instance"), envs)
        if instance is not None:
            check_instances(instance, self.num_instances)
        alpha = self._one_each("alpha", options.get("alpha"), envs)
        if alpha is not None:
            check_alphas(alpha, self._allowed_alpha)
        if seed is not None:
            self._seed(envs, seed)
        infos = self._begin(envs, instance, alpha)
        self._ended[envs] = False
        return self._observe(), infos

    def _mask(self, mask: Bools | None) -> Bools:
        if mask is None:
            return np.ones(self.num_envs, dtype=np.bool_)
        good = isinstance(mask, np.ndarray) and mask.dtype == np.bool_
        if not good or mask.shape != (self.num_envs,) or not mask.any():
            raise CeeGymError(
                f"option 'reset_mask' must be a bool array [{self.num_envs}] with a True in it, "
                f"got {mask!r}"
            )
        if self._layer[0] == 0 and not mask.all():
            raise ResetNeeded("the first reset must be of all environments: leave out 'reset_mask'")
        return mask

    def _one_each(self, name: str, value: Any, envs: Ints) -> npt.NDArray[Any] | None:
        if value is None:
            return None
        try:
            return np.broadcast_to(value, self.num_envs)[envs]
        except ValueError:
            raise CeeGymError(
                f"option {name!r} must have shape [{self.num_envs}], got {np.shape(value)}"
            ) from None

    def _seed(self, envs: Ints, seed: int | Sequence[int | None]) -> None:
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else list(seed)
        if len(seeds) != self.num_envs:
            raise CeeGymError(f"there are {self.num_envs} environments and {len(seeds)} seeds")
        self._seed_all()
        seeded = np.array([env for env in envs if seeds[env] is not None], dtype=np.int64)
        for env in seeded:
            self._generators[env], self._seeds[env] = seeding.np_random(seeds[env])
        self._instances.drop(seeded)
        self._alphas.drop(seeded)

    def step(
        self, actions: npt.NDArray[np.integer[Any]]
    ) -> tuple[Observation, npt.NDArray[Any], Bools, Bools, dict[str, Any]]:
        """Steps every environment.

        Args:
            actions: integers `[n]`, 0 to continue and 1 to exit.

        Returns:
            Observations float32 `[n, D]`, rewards float64 `[n]` or float32 `[n, 2]`, terminations
            bool `[n]`, truncations bool `[n]`, all False, and infos.

        Raises:
            ResetNeeded: if an environment has no episode under way.
            InvalidAction: if the actions are not n numbers 0 or 1.
        """
        if self._layer[0] == 0:
            raise ResetNeeded("no episode is under way: call reset() before step()")
        if self._autoreset_mode is AutoresetMode.DISABLED and self._ended.any():
            raise ResetNeeded(
                f"the episodes of {np.count_nonzero(self._ended)} environments have ended: reset "
                "them with options={'reset_mask': terminations}"
            )
        actions = np.asarray(actions)
        leave = actions == EXIT
        if actions.shape != (self.num_envs,) or not (leave | (actions == CONTINUE)).all():
            raise InvalidAction(
                f"actions are {self.num_envs} numbers 0 (continue) or 1 (exit), got {actions!r}"
            )
        leave |= self._layer == self.num_layers
        leave &= ~self._ended

        rewards: npt.NDArray[Any] = (
            np.zeros((self.num_envs, 2), dtype=np.float32)
            if self._vector_reward
            else np.zeros(self.num_envs)
        )
        infos: dict[str, Any] = {}
        leaving = np.flatnonzero(leave)
        begins = np.flatnonzero(self._ended)
        self._layer += ~(leave | self._ended)
        if leaving.size:
            states = self._states(leaving)
            rewards[leaving], final_info = self._leave(leaving, states)
            if self._autoreset_mode is AutoresetMode.SAME_STEP:
                final_obs = np.full(self.num_envs, None, dtype=object)
                final_obs[leaving] = self._final_observations(leaving, states)
                infos = {"final_obs": final_obs, "_final_obs": leave.copy()}
                infos |= self._spread({"final_info": final_info}, leaving)
                begins = leaving
            else:
                infos = self._spread(final_info, leaving)
        if begins.size:
            infos |= self._begin(begins)
        if self._autoreset_mode is not AutoresetMode.SAME_STEP:
            self._ended = leave.copy()
        return self._observe(), rewards, leave, np.zeros(self.num_envs, dtype=np.bool_), infos

    def render(self) -> tuple[Any, ...] | None:
        """One frame per environment; see `cee_gym.envs.render`."""
        if self.render_mode is None:
            return None
        return tuple(
            render.frame(
                self.render_mode,
                readings(self.problem, instance, layer),
                self.num_layers,
                ended,
            )
            for instance, layer, ended in zip(
                self._instance.tolist(), self._layer.tolist(), self._ended.tolist(), strict=True
            )
        )

    def _begin(
        self,
        envs: Ints,
        instance: npt.NDArray[Any] | None = None,
        alpha: float | npt.NDArray[Any] | None = None,
    ) -> dict[str, Any]:
        self._seed_all()
        if instance is None:
            instance = self._instances.take(envs, self._generators)
        if alpha is None:
            low, high = self.alpha_range
            alpha = low if low == high else self._alphas.take(envs, self._generators)
        self._instance[envs] = instance
        self._alpha[envs] = alpha
        self._layer[envs] = 1
        return self._spread({"instance": self._instance[envs], "alpha": self._alpha[envs]}, envs)

    def _leave(self, envs: Ints, states: Ints) -> tuple[npt.NDArray[np.float64], dict[str, Any]]:
        all_states = self.problem.states
        quality, price = all_states.quality[states], all_states.price[states]
        depths = self.problem.trace.depths
        correct, layer = all_states.correct[states], depths[self._layer[envs] - 1]
        if self._vector_reward:
            reward = np.stack([quality, np.negative(price)], axis=1)
        else:
            reward = quality - self._alpha[envs] * price
        return reward, {
            "exit_layer": layer,
            "saved_layers": 1 - layer / depths[-1],
            "prediction": all_states.prediction[states],
            "correct": correct,
            "is_success": correct,
            "reward_components": {"quality": quality, "price": price},
            "memorized_layer": self.problem.memorized_layer[self._instance[envs]],
        }

    def _states(self, envs: Ints | slice = slice(None)) -> Ints:
        return self._instance[envs] * self.num_layers + (self._layer[envs] - 1)

    def _observe(self) -> Observation:
        rows = self.problem.states.rows
        if rows is None:
            observations = self.problem.recorded.at(self._instance, self._layer)
        else:
            observations = rows.take(self._states(), axis=0)
        if self._alpha_column is not None:
            observations[:, self._alpha_column] = self._alpha
        return observations

    def _final_observations(self, envs: Ints, states: Ints) -> npt.NDArray[np.object_]:
        rows = self.problem.states.rows
        if rows is None:
            observations = self.problem.recorded.at(self._instance[envs], self._layer[envs])
        elif self._alpha_column is not None:
            observations = rows.take(states, axis=0)
        elif len(rows) <= MOST_VIEWS_KEPT:
            return self.problem.states.views[states]
        else:
            return np.fromiter(map(rows.__getitem__, states.tolist()), object, len(states))
        if self._alpha_column is not None:
            observations[:, self._alpha_column] = self._alpha[envs]
        observations.setflags(write=False)
        return np.fromiter(observations, object, len(states))

    def _spread(
        self, values: dict[str, Any], envs: Ints, mask: Bools | None = None
    ) -> dict[str, Any]:
        """Infos as `SyncVectorEnv` gives them: 0 for the other environments, a mask beside each."""
        if mask is None:
            mask = np.zeros(self.num_envs, dtype=np.bool_)
            mask[envs] = True
        infos: dict[str, Any] = {}
        for key, value in values.items():
            if isinstance(value, dict):
                infos[key] = self._spread(value, envs, mask)
            else:
                infos[key] = np.zeros(self.num_envs, dtype=value.dtype)
                infos[key][envs] = value
            infos[f"_{key}"] = mask.copy()
        return infos
