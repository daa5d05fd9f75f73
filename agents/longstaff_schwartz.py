"""Optimal stopping by regression (Longstaff and Schwartz 2001), made for American options.

The regressions are those of `cee_gym.stopping`. In learning no instance judges itself: what decides
where an instance leaves is fitted to the other folds. The weights that are kept are fitted to all.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import torch

from cee_gym.agents.access import AnyEnv, needs_problem
from cee_gym.agents.network_agent import NetworkAgent
from cee_gym.agents.registry import register_agent
from cee_gym.errors import CeeGymError
from cee_gym.problem import Problem
from cee_gym.settings import number
from cee_gym.stopping import regress_backwards

if TYPE_CHECKING:
    from stable_baselines3.common.logger import Logger


@register_agent("longstaff-schwartz")
@dataclass(kw_only=True, eq=False)
class LongstaffSchwartz(NetworkAgent):
    """Regression backwards over the layers; learns in recorded environments only.

    Its policy is one linear function per layer; the score is the sigmoid of the predicted advantage
    of leaving now, in units of that advantage's deviation.

    Args:
        folds: for the cross-fitting.
        seed: of the folds and, where alpha is a range, of an alpha for each instance.
    """

    folds: int = number(5, 2, 100)

    def learn(
        self,
        env: AnyEnv,
        total_timesteps: int = 0,
        *,
        logger: "Logger | None" = None,
        progress_bar: bool = False,
        calibration: Problem | None = None,
    ) -> Self:
        """Learns from all N * L states, whatever is asked for; see `Agent.learn`.

        They are read by rows, see `regress_backwards`.

        Raises:
            CeeGymError: if the environment is not a recorded one, or has fewer than two instances.
        """
        network, problem = self.prepare(env)
        if problem is None:
            raise needs_problem(self.name, env)
        if len(problem) < 2:
            raise CeeGymError(
                f"{self.name} is a regression, and {len(problem)} instance is too few for one: "
                "record more rows"
            )
        rng = np.random.default_rng(self.seed)
        alpha = rng.uniform(*problem.alpha, size=len(problem))
        states = self.states_by_rows(problem, alpha)
        rewards = problem.rewards(alpha)
        weight, bias, _ = regress_backwards(
            states, rewards, self.folds, self.seed, progress_bar, problem.trace.sequence
        )
        with torch.no_grad():
            network.weight.copy_(torch.from_numpy(weight))
            network.bias.copy_(torch.from_numpy(bias))
        self.timesteps += rewards.size
        self.hand_over_network()
        return self
