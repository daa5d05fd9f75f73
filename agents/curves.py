"""The learning curves every agent of ours records.

Under the tags Stable-Baselines3 uses where it has them: what learning meets under `rollout/`, where
`ep_len_mean` is the mean exit and `success_rate` the accuracy; the policy as it would be deployed,
on calibration, under `eval/`.
"""

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from cee_gym.errors import CeeGymError
from cee_gym.evaluation.curve import evaluate
from cee_gym.policies.base import ExitPolicy
from cee_gym.problem import Problem
from cee_gym.progress import show_progress

if TYPE_CHECKING:
    from stable_baselines3.common.logger import Logger

Array = npt.NDArray[np.floating]


class Curves:
    """Gathers what happens between two points of the curves, and writes them at about 100 points.

    Args:
        logger: takes them; None records nothing.
        total_timesteps: of this learning run.
        start: timesteps already learned from, so that a curve goes on.
        num_layers: L.
        progress_bar: show progress and time left.
        name: of the agent, for the progress bar.
        calibration: what the policy is measured on as well, at about 20 points; None for nothing.
        policy: gives it as it is; None where there is no calibration.
    """

    def __init__(
        self,
        logger: "Logger | None",
        total_timesteps: int,
        start: int,
        num_layers: int,
        progress_bar: bool,
        name: str,
        calibration: Problem | None = None,
        policy: Callable[[], ExitPolicy] | None = None,
    ) -> None:
        self._logger = logger
        self._calibration = calibration
        self._policy = policy
        self._name = name
        self._num_layers = num_layers
        self.timesteps = start
        self.end = start + total_timesteps
        self._every = max(1, total_timesteps // 100)
        self._written = start
        self._measured = start - total_timesteps
        self._progress = show_progress(
            total=total_timesteps, desc=name, unit="step", disable=not progress_bar
        )
        self._clock = time.perf_counter()
        self._clear()

    def _clear(self) -> None:
        self._weight = 0.0
        self._sums: dict[str, float] = {}
        self._exits = np.zeros(self._num_layers)

    @property
    def done(self) -> bool:
        """Whether the timesteps are used up."""
        return self.timesteps >= self.end

    def check_finite(self, loss: torch.Tensor, learning_rate: float) -> None:
        """Ends the run where its loss has left the numbers.

        Args:
            loss: of the next update.
            learning_rate: of the optimizer, for the message.

        Raises:
            CeeGymError: if the loss is infinite or not a number.
        """
        if not torch.isfinite(loss):
            self.close()
            raise CeeGymError(
                f"the loss of {self._name} is {loss.item()} after {self.timesteps} timesteps: "
                f"lower learning_rate, which is {learning_rate:g}"
            )

    def update(
        self,
        timesteps: int,
        exits: Array,
        *,
        returns: float,
        hindsight: float | None,
        accuracy: float | None,
        loss: torch.Tensor,
        further: Mapping[str, float] | None = None,
    ) -> None:
        """Counts one update.

        Args:
            timesteps: it took.
            exits: how many left at each layer, or the expected number, `[L]`.
            returns: their mean.
            hindsight: the mean best return of the same instances; None where it is not known.
            accuracy: share of right exits; None where it is not known.
            loss: of the update.
            further: values of the agent's own, by tag.
        """
        self.timesteps += timesteps
        self._progress.update(timesteps)
        weight = float(exits.sum())
        self._weight += weight
        self._exits += exits
        values = {"rollout/ep_rew_mean": returns, "train/loss": float(loss.detach())}
        if hindsight is not None:
            values["rollout/regret"] = hindsight - returns
        if accuracy is not None:
            values["rollout/success_rate"] = accuracy
        for tag, value in (values | dict(further or {})).items():
            self._sums[tag] = self._sums.get(tag, 0.0) + weight * value
        due = self.done or self.timesteps - self._written >= self._every
        if self._logger is not None and self._weight and due:
            self._write(self._logger)

    def _write(self, logger: "Logger") -> None:
        for tag, value in self._sums.items():
            logger.record(tag, value / self._weight)
        layers = np.arange(1, self._num_layers + 1)
        mean_exit = float(self._exits @ layers) / self._weight
        logger.record("rollout/ep_len_mean", mean_exit)
        logger.record("rollout/saved_layers", 1 - mean_exit / self._num_layers)
        # A histogram is made of samples: a thousand of them, in the proportions of the counts.
        sample = np.repeat(layers, np.round(1000 * self._exits / self._weight).astype(int))
        record_exits(logger, sample)
        due = self.done or self.timesteps - self._measured >= 5 * self._every
        if self._calibration is not None and self._policy is not None and due:
            record_on_calibration(logger, self._policy(), self._calibration)
            self._measured = self.timesteps
        now = time.perf_counter()
        logger.record("time/fps", int((self.timesteps - self._written) / (now - self._clock)))
        logger.record("time/total_timesteps", self.timesteps, exclude="tensorboard")
        logger.dump(self.timesteps)
        self._written, self._clock = self.timesteps, now
        self._clear()

    def close(self) -> None:
        """Ends the progress bar."""
        self._progress.close()


def record_exits(logger: "Logger", exits: npt.ArrayLike) -> None:
    """Records the layers that were left at as a histogram.

    Args:
        logger: of the run.
        exits: integers `[B]`; nothing is recorded of none.
    """
    if len(sample := np.asarray(exits)):
        hidden = ("stdout", "csv", "json")
        logger.record("rollout/exit_layer", torch.from_numpy(sample), exclude=hidden)


def record_on_calibration(logger: "Logger", policy: ExitPolicy, problem: Problem) -> None:
    """Records what a policy comes to on a problem it was not trained on.

    Args:
        logger: of the run.
        policy: at its own speed; one that was learned for a range of prices and is held at none is
            held at the middle of the range.
        problem: of the calibration split.
    """
    policy = policy.at_some_price()
    alpha = policy.price_on(problem)
    rewards = problem.rewards(alpha)
    exits = policy.exit_layers(policy.scores_on(problem, alpha))
    point = evaluate(problem.trace, exits, rewards=rewards)
    assert point.mean_return is not None
    logger.record("eval/mean_reward", point.mean_return)
    logger.record("eval/regret", float(rewards.max(axis=1).mean()) - point.mean_return)
    logger.record("eval/success_rate", point.accuracy)
    logger.record("eval/mean_ep_length", float(exits.mean()))
    logger.record("eval/saved_layers", point.saved_layers)
