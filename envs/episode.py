"""An episode: one instance climbs the layers until the agent lets it out.

The recorded and the live environment differ only in where the state of a layer and the outcome of
leaving it come from; everything else is here.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.spaces import Box, Discrete

from cee_gym.envs import render
from cee_gym.envs.draws import alpha_block, instance_block
from cee_gym.errors import CeeGymError, did_you_mean
from cee_gym.observation import Layout, allowed_alpha, space_of
from cee_gym.reward import MOST_ALPHA, Reward

if TYPE_CHECKING:
    from cee_gym.policies.base import ExitPolicy

CONTINUE = 0
EXIT = 1

Observation = npt.NDArray[np.float32]


class Outcome(NamedTuple):
    """What leaving the present layer comes to."""

    quality: float
    price: float
    prediction: int
    correct: bool
    memorized_layer: int | None  # None where no trace tells


class EpisodeEnv(gym.Env[Observation, int]):
    """The dynamics that the recorded and the live environment share.

    Args:
        num_instances: N.
        depths: the layer that each of the L exits stands at, from 1.
        layout: the columns of each part of an observation.
        alpha: the lowest and highest price of one layer.
        reward_space: of vector rewards; None where rewards are numbers.
        deterministic: False where prices were measured.
        render_mode: `"ansi"`, `"rgb_array"`, `"human"` or None; see `cee_gym.envs.render`.
    """

    metadata: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        "render_modes": render.MODES,
        "render_fps": render.FPS,
        "deterministic": True,
    }
    reward_space: Box
    reward_dim: int

    def __init__(
        self,
        num_instances: int,
        depths: Sequence[int],
        layout: Layout,
        alpha: tuple[float, float],
        reward_space: Box | None,
        deterministic: bool,
        render_mode: str | None,
    ) -> None:
        self.num_instances = num_instances
        self.num_layers = len(depths)
        self.depths = tuple(depths)
        self.layout = layout
        self.observation_space = space_of(layout, alpha)  # type: ignore[assignment]
        self.action_space = Discrete(2)  # type: ignore[assignment]
        self.alpha_range = alpha
        self.metadata = {**self.metadata, "deterministic": deterministic}  # type: ignore[misc]
        self._vector_reward = reward_space is not None
        if reward_space is not None:
            self.reward_space, self.reward_dim = reward_space, 2
        self.render_mode = render.checked_mode(render_mode)
        self.instance = 0
        self.alpha = alpha[0]
        self.layer = 0
        self._ended = True
        self._allowed_alpha = allowed_alpha(layout, alpha)
        self._instances: list[int] = []
        self._alphas: list[float] = []
        self._watched: ExitPolicy | None = None
        self._path: list[Observation] = []

    def watch(self, policy: "ExitPolicy | None") -> None:
        """Has pictures show the score of a policy at each layer from the next episode on.

        Args:
            policy: None to show none.

        Raises:
            CeeGymError: if the policy reads other observations than the environment gives.
        """
        if policy is not None:
            policy.check_fits(self.layout, policy.model)
        self._watched, self._path = policy, []

    @abstractmethod
    def _enter_layer(self) -> None:
        """Called when the instance has reached `self.layer`."""

    @abstractmethod
    def _observation(self) -> Observation:
        """The state of the present layer, a fresh array `[D]`."""

    @abstractmethod
    def _outcome(self) -> Outcome:
        """What leaving the present layer comes to."""

    @abstractmethod
    def _readings(self) -> render.Readings:
        """What the classifiers of layers 1 to the present one say."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begins an episode at layer 1.

        Args:
            seed: seeds the draws of instances and alphas.
            options: for this episode, `{"instance": i}` fixes the instance and `{"alpha": a}` the
                price of one layer.

        Returns:
            The observation of layer 1, and `instance` and `alpha` as info.

        Raises:
            CeeGymError: if an option is unknown or out of range.
        """
        options = options or {}
        check_options(options, ("instance", "alpha"))
        instance, alpha = options.get("instance"), options.get("alpha")
        if instance is not None:
            check_instances(instance, self.num_instances)
        if alpha is not None:
            check_alphas(alpha, self._allowed_alpha)
        super().reset(seed=seed)
        if seed is not None:
            self._instances, self._alphas = [], []
        self.instance = self._draw_instance() if instance is None else int(instance)
        self.alpha = self._draw_alpha() if alpha is None else float(alpha)
        self.layer = 1
        self._ended = False
        self._enter_layer()
        observation = self._observation()
        if self._watched is not None:
            self._path = [observation]
        self._show()
        return observation, {"instance": self.instance, "alpha": self.alpha}

    def _draw_instance(self) -> int:
        if not self._instances:
            self._instances = instance_block(self.np_random, self.num_instances).tolist()
        return self._instances.pop()

    def _draw_alpha(self) -> float:
        low, high = self.alpha_range
        if low == high:
            return low
        if not self._alphas:
            self._alphas = alpha_block(self.np_random, low, high).tolist()
        return self._alphas.pop()

    def step(self, action: int) -> tuple[Observation, Any, bool, bool, dict[str, Any]]:
        """Continues to the next layer, or exits; at the last layer both exit.

        Args:
            action: 0 to continue, 1 to exit.

        Returns:
            Observation, reward (a float, or float32 `[2]`), whether the episode has ended, False,
            and infos where it has.

        Raises:
            ResetNeeded: if no episode is under way.
            InvalidAction: if the action is neither 0 nor 1.
        """
        if self._ended:
            raise ResetNeeded("no episode is under way: call reset() before step()")
        if action not in (CONTINUE, EXIT):
            raise InvalidAction(f"an action is 0 (continue) or 1 (exit), got {action!r}")
        if action == CONTINUE and self.layer < self.num_layers:
            self.layer += 1
            self._enter_layer()
            nothing = np.zeros(2, dtype=np.float32) if self._vector_reward else 0.0
            observation = self._observation()
            if self._path:
                self._path.append(observation)
            self._show()
            return observation, nothing, False, False, {}
        self._ended = True
        self._show()
        outcome = self._outcome()
        reward: Any
        if self._vector_reward:
            reward = np.array([outcome.quality, -outcome.price], dtype=np.float32)
        else:
            reward = outcome.quality - self.alpha * outcome.price
        return self._observation(), reward, True, False, self._final_info(outcome)

    def _final_info(self, outcome: Outcome) -> dict[str, Any]:
        info = {
            "exit_layer": self.depths[self.layer - 1],
            "saved_layers": 1 - self.depths[self.layer - 1] / self.depths[-1],
            "prediction": outcome.prediction,
            "correct": outcome.correct,
            "is_success": outcome.correct,
            "reward_components": {"quality": outcome.quality, "price": outcome.price},
        }
        if outcome.memorized_layer is not None:
            info["memorized_layer"] = outcome.memorized_layer
        return info

    def render(self) -> str | npt.NDArray[np.uint8] | None:
        """The layers run so far, as text or as an RGB array; see `cee_gym.envs.render`.

        In mode `human` it gives nothing: `reset` and `step` show each state.
        """
        if self.layer == 0:
            raise ResetNeeded("no episode is under way: call reset() before render()")
        if self.render_mode is None:
            gym.logger.warn("render() does nothing: make the environment with a render_mode")
            return None
        if self.render_mode == "human":
            return None
        return self._frame(self.render_mode)

    def _show(self) -> None:
        if self.render_mode == "human":
            picture = self._frame("rgb_array")
            assert not isinstance(picture, str)
            render.show(picture, 1 / render.FPS)

    def _frame(self, mode: str) -> str | npt.NDArray[np.uint8]:
        readings = self._readings()
        if self._watched is not None and self._path:
            scores = self._watched.scores(np.stack(self._path)[None])[0]
            readings = replace(readings, scores=scores, threshold=self._watched.threshold)
        return render.frame(mode, readings, self.num_layers, self._ended)


def vector_reward_space(reward: Reward, price: npt.NDArray[np.float32]) -> Box:
    """The space of the rewards `[quality, -price]`, float32 `[2]`.

    Args:
        reward: tells the bounds of the quality.
        price: of leaving at each layer, `[N, L]`.
    """
    worst, best = reward.quality_bounds
    # Continuing gives zeros.
    return Box(
        np.array([min(0.0, worst), min(0.0, -price.max())], dtype=np.float32),
        np.array([max(0.0, best), max(0.0, -price.min())], dtype=np.float32),
    )


def check_options(options: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Refuses options of `reset` that do not exist."""
    for name in options:
        if name not in known:
            hint = did_you_mean(str(name), list(known))
            raise CeeGymError(f"reset has no option {name!r}: {hint}")


def check_instances(instances: npt.ArrayLike, num_instances: int) -> None:
    """Refuses what is not an instance."""
    values = np.asarray(instances)
    if not np.issubdtype(values.dtype, np.integer):
        raise CeeGymError(f"option 'instance' must be an integer, got {instances!r}")
    wrong = values[(values < 0) | (values >= num_instances)]
    if wrong.size:
        raise CeeGymError(
            f"there is no instance {wrong.flat[0]}: they are numbered 0 to {num_instances - 1}"
        )


def check_alphas(alphas: npt.ArrayLike, allowed: tuple[float, float]) -> None:
    """Refuses what is not a price of one layer, or lies outside the range that is observed."""
    values = np.asarray(alphas)
    if not np.issubdtype(values.dtype, np.number) or not np.isfinite(values).all():
        raise CeeGymError(f"option 'alpha' must be a finite number, got {alphas!r}")
    low, high = allowed
    wrong = values[(values < low) | (values > high)]
    if wrong.size:
        why = f"{low:g} to {high:g}" + ", the range that is observed" * (high != MOST_ALPHA)
        raise CeeGymError(f"option 'alpha' must be {why}, got {wrong.flat[0]}")
