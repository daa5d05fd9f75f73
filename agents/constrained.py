"""Saving layers at a bounded loss of accuracy, without guessing alpha.

    maximise E[1 - t/L]   subject to   E[c_L - c_t] <= x

with t the exit layer and c_t whether its classifier is right. The Lagrangian, with multiplier
lambda >= 0 and up to what does not depend on the policy, is the expected return for the reward
`lambda * c_t - t/L`. The policy ascends its exact gradient, divided by `1 + lambda` to keep the
step size what it is:

    R_t = w c_t - (1 - w) t/L,   w = lambda / (1 + lambda) = sigmoid(u)

and the multiplier follows what is lost in each batch, `u += rate * (E[c_L - c_t] - x)` (Altman
1999). u is the logarithm of lambda, so lambda stays positive. The loss of accuracy is that of the
deterministic policy: each instance leaves at the first layer where leaving is more likely than not.

A small multiple of the entropy of the exits is added to the return. The Lagrangian is linear in the
exit probabilities, so without this term the first swing of the multiplier would drive the policy to
probabilities of 0 or 1, where its gradient is zero.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cee_gym.agents.expected_return import ExpectedReturn
from cee_gym.agents.network_agent import Step
from cee_gym.agents.registry import register_agent
from cee_gym.policies.base import ExitPolicy
from cee_gym.policies.networks import log_exit_distribution
from cee_gym.problem import Problem
from cee_gym.returns import first_exit
from cee_gym.settings import Range, number


@register_agent("constrained")
@dataclass(kw_only=True, eq=False)
class Constrained(ExpectedReturn):
    """Saves as many layers as it can while at most some points of accuracy are lost.

    The loss is against the last layer, on what the agent learns from: how far the bound holds on
    other text is what evaluation shows, and a promise takes `cee_gym.evaluation.guarantee`. It
    learns in recorded environments only, and takes nothing from their reward: neither quality nor
    alpha. Its other arguments are those of `GradientAgent`.

    Args:
        points_lost: x, in points, hundredths of accuracy.
        multiplier_rate: how fast the multiplier follows.
        entropy: the weight of the entropy of the exits.

    Attributes:
        log_multiplier: u.
    """

    points_lost: float = number(1.0, 0, 100)
    multiplier_rate: float = number(0.1, 0, search=Range(0.01, 1.0, log=True))
    entropy: float = number(0.003, 0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.log_multiplier = 2.0

    def estimate(
        self, logits: torch.Tensor, rewards: torch.Tensor, rng: np.random.Generator
    ) -> Step:
        """Minus the expected return and entropy. A timestep is one state."""
        log_exits = log_exit_distribution(logits)
        exits = log_exits.exp()
        loss = -(exits * (rewards - self.entropy * log_exits)).sum(dim=1).mean()
        return Step(loss, exits.detach().numpy(), rewards.numel())

    def objective(
        self, problem: Problem, rows: npt.NDArray[np.int64], rewards: torch.Tensor
    ) -> torch.Tensor:
        """`R_t` of some instances, `[B, L]`, at the present multiplier."""
        weight = 1 / (1 + np.exp(-self.log_multiplier))
        depth = np.arange(1, rewards.shape[1] + 1) / rewards.shape[1]
        return torch.from_numpy(weight * problem.correct[rows] - (1 - weight) * depth).float()

    def updated(
        self, problem: Problem, rows: npt.NDArray[np.int64], exits: npt.NDArray[np.floating[Any]]
    ) -> None:
        """Moves the multiplier by what the policy lost."""
        reach = 1 - np.cumsum(exits, axis=1) + exits
        taken = first_exit(exits > reach / 2)
        correct = problem.correct[rows]
        lost = correct[:, -1].mean() - correct[np.arange(len(rows)), taken - 1].mean()
        self.log_multiplier += self.multiplier_rate * (lost - self.points_lost / 100)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The multiplier."""
        return {"log_multiplier": torch.tensor(self.log_multiplier, dtype=torch.float64)}

    def take(self, policy: ExitPolicy, tensors: dict[str, torch.Tensor]) -> None:
        """Goes on from these networks and this multiplier."""
        super().take(policy, tensors)
        self.log_multiplier = float(tensors["log_multiplier"])
