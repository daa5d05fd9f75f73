"""Learning to exit, of BERxiT (Xin et al., EACL 2021).

One linear map of the hidden state and a sigmoid, shared by all layers, predicts whether the layer's
classifier is right:

    u = sigmoid(w h + b),   loss = mean_it (u_it - correct_it)^2 + decay * sum_j (s_j w_j)^2

with s_j the deviation of feature j over all states, so that no feature's unit matters. The agent
leaves where u passes a threshold. Here backbone and classifiers are fixed, so this is one small
problem, solved to the end on all N * L states; the paper trains all three together.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import torch

from cee_gym.agents.access import AnyEnv, needs_problem
from cee_gym.agents.base import Agent
from cee_gym.agents.presets import Preset
from cee_gym.agents.registry import register_agent
from cee_gym.errors import CeeGymError
from cee_gym.policies.base import ExitPolicy
from cee_gym.policies.linear import LinearScore
from cee_gym.policies.score import Floats
from cee_gym.problem import Problem
from cee_gym.settings import Range, number

if TYPE_CHECKING:
    from stable_baselines3.common.logger import Logger


@register_agent("learning-to-exit")
@dataclass(kw_only=True, eq=False)
class LearningToExit(Agent):
    """Leaves where the exit is predicted to be right; learns in recorded environments only.

    Args:
        threshold: on the prediction, 0 to 1; by default the one of highest mean return.
        weight_decay: on the squared weights of the standardised hidden state.
    """

    threshold: float | None = number(None, 0, 1)
    weight_decay: float = number(1e-3, 0, search=Range(1e-5, 1.0, log=True))

    def preset(self) -> Preset:
        """It observes what it reads."""
        return Preset(observe=("hidden",))

    def check_observe(self, parts: Collection[str]) -> None:
        """Refuses observations without the hidden state."""
        if "hidden" not in parts:
            raise CeeGymError(f"{self.name} reads hidden: observe it")

    def learn(
        self,
        env: AnyEnv,
        total_timesteps: int = 0,
        *,
        logger: "Logger | None" = None,
        progress_bar: bool = False,
        calibration: Problem | None = None,
    ) -> Self:
        """Solves for all N * L states, whatever is asked for; see `Agent.learn`.

        Raises:
            CeeGymError: if the environment is not a recorded one.
        """
        problem = self.bind(env)
        if problem is None:
            raise needs_problem(self.name, env)
        hidden = problem.observe()[..., self.layout["hidden"]]
        weight, bias = _regress(
            hidden.reshape(-1, hidden.shape[-1]),
            problem.correct.astype(np.float32).ravel(),
            self.weight_decay,
        )
        score = LinearScore(weight, bias)
        if self.threshold is None:
            self.hand_over_at_best(score, problem)
        else:
            self.hand_over(score, self.threshold)
        return self

    def take(self, policy: ExitPolicy, tensors: dict[str, torch.Tensor]) -> None:
        """There is nothing to go on from: it solves anew."""


def _regress(x: Floats, y: Floats, weight_decay: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights `[H]` and bias `[]` that minimise the loss.

    Args:
        x: float32 `[n, H]`.
        y: float32 `[n]`, 0 or 1.
        weight_decay: on the squared weights of x divided by its deviation.
    """
    # Summed in float64, so that a feature that never changes comes to 0 exactly.
    mean = x.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred, right = torch.from_numpy(x - mean), torch.from_numpy(y)
    covariance, share = centred.T @ centred / len(centred), right.mean()
    variance = covariance.diagonal().clamp_min(1e-6)
    # In these coordinates the loss curves about equally in all directions, so LBFGS takes few
    # steps. 1e-4 keeps them defined where features depend on each other.
    curvature = (share * (1 - share)).square() * covariance
    factor = torch.linalg.cholesky(curvature + torch.diag((weight_decay + 1e-4) * variance))
    back = torch.linalg.inv(factor).T
    point = torch.zeros(len(mean), requires_grad=True)
    bias = torch.logit(share, eps=1e-3).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [point, bias], max_iter=100, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
    )

    def loss() -> float:
        optimizer.zero_grad()
        weight = back @ point
        error = torch.sigmoid(centred @ weight + bias) - right
        value = error.square().mean() + weight_decay * (variance * weight.square()).sum()
        value.backward()
        return value.item()

    optimizer.step(loss)
    with torch.no_grad():
        weight = back @ point
        return weight, bias - torch.from_numpy(mean) @ weight
