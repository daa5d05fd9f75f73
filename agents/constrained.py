"""Saving layers at a bounded loss of accuracy, so that nobody has to guess alpha.

    maximise E[1 - t/L]   subject to   E[c_L - c_t] <= x

with t the exit layer and c_t whether its classifier is right. The Lagrangian, with multiplier
lambda >= 0 and up to what does not depend on the policy, is the expected return for the reward
`lambda * c_t - t/L`. The policy ascends its exact gradient, divided by `1 + lambda` to keep the
step size what it is:

    R_t = w c_t - (1 - w) t/L,   w = lambda / (1 + lambda) = sigmoid(u)

and the multiplier follows what is lost in each batch, `u += rate * (E[c_L - c_t] - x)` (Altman
1999; in the logarithm of lambda, which stays positive). What is lost counts at the exits that the
policy takes where it is used, the first where it is for leaving.

The entropy of the exits is added to the return, at a small price. The Lagrangian is linear in them:
without it a policy runs into a corner at the first swing of the multiplier, where its gradient is
zero, and stays there.
"""

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from cee_gym.agents.expected_return import ExpectedReturn
from cee_gym.agents.policy_agent import Step
from cee_gym.errors import check_number
from cee_gym.policies.networks import log_exit_distribution
from cee_gym.problem import ExitTable
from cee_gym.returns import first_exit


class Constrained(ExpectedReturn):
    """Saves as many layers as it can while at most some points of accuracy are lost.

    The loss is against the last layer, on what the agent learns from: how far the bound holds on
    other text is what evaluation shows, and a promise takes `cee_gym.evaluation.guarantee`. It
    learns in recorded environments only, and takes nothing from their reward: neither quality nor
    alpha.

    Args:
        points_lost: x, in points, hundredths of accuracy.
        multiplier_rate: how fast the multiplier follows.
        entropy: the weight of the entropy of the exits.
        **kwargs: see `GradientAgent`.

    Attributes:
        log_multiplier: u.
    """

    name: ClassVar[str] = "constrained"

    def __init__(
        self,
        *,
        points_lost: float = 1.0,
        multiplier_rate: float = 0.1,
        entropy: float = 0.003,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_number("entropy", entropy, 0)
        check_number("points_lost", points_lost, 0, 100)
        check_number("multiplier_rate", multiplier_rate, 0)
        self.points_lost = points_lost
        self.multiplier_rate = multiplier_rate
        self.entropy = entropy
        self.log_multiplier = 2.0

    def hyperparameters(self) -> dict[str, Any]:
        """What to construct the agent with, JSON-able."""
        return {
            "points_lost": self.points_lost,
            "multiplier_rate": self.multiplier_rate,
            "entropy": self.entropy,
            **super().hyperparameters(),
        }

    def estimate(
        self, logits: torch.Tensor, rewards: torch.Tensor, rng: np.random.Generator
    ) -> Step:
        """Minus the expected return and entropy. A timestep is one state."""
        log_exits = log_exit_distribution(logits)
        exits = log_exits.exp()
        loss = -(exits * (rewards - self.entropy * log_exits)).sum(dim=1).mean()
        return Step(loss, exits.detach().numpy(), rewards.numel())

    def objective(
        self, table: ExitTable, rows: npt.NDArray[np.int64], rewards: torch.Tensor
    ) -> torch.Tensor:
        """`R_t` of some instances, `[B, L]`, at the present multiplier."""
        weight = 1 / (1 + np.exp(-self.log_multiplier))
        depth = np.arange(1, rewards.shape[1] + 1) / rewards.shape[1]
        return torch.from_numpy(weight * table.correct[rows] - (1 - weight) * depth).float()

    def updated(
        self, table: ExitTable, rows: npt.NDArray[np.int64], exits: npt.NDArray[np.floating]
    ) -> None:
        """Moves the multiplier by what the policy lost."""
        reach = 1 - np.cumsum(exits, axis=1) + exits
        taken = first_exit(exits > reach / 2)
        correct = table.correct[rows]
        lost = correct[:, -1].mean() - correct[np.arange(len(rows)), taken - 1].mean()
        self.log_multiplier += self.multiplier_rate * (lost - self.points_lost / 100)

    def weights(self) -> dict[str, torch.Tensor]:
        """See `PerLayerAgent.weights`."""
        multiplier = torch.tensor(self.log_multiplier, dtype=torch.float64)
        return {**super().weights(), "log_multiplier": multiplier}

    def take_weights(self, weights: dict[str, torch.Tensor]) -> None:
        """See `PerLayerAgent.take_weights`."""
        self.log_multiplier = float(weights.pop("log_multiplier"))
        super().take_weights(weights)
