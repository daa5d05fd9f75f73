"""Learning to exit, of BERxiT (Xin et al., EACL 2021).

One linear map of the hidden state and a sigmoid, shared by all layers, predicts whether the layer's
classifier is right:

    u = sigmoid(w h + b),   loss = mean_it (u_it - correct_it)^2 + decay * sum_j (s_j w_j)^2

with s_j the deviation of feature j over all states, so that no feature's unit matters. The agent
leaves where u passes a threshold. Here backbone and classifiers are fixed, so this is one small
problem, solved to the end on all N * L states; the paper trains all three together.
"""

from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy.special import expit
from stable_baselines3.common.logger import Logger

from cee_gym.agents.base import AnyEnv, Floats, table_of
from cee_gym.errors import CeeGymError, check_number
from cee_gym.policies.rules import Rule, graded


class LearningToExit(Rule):
    """Leaves where the classifier is predicted to be right; learns in recorded environments only.

    Args:
        threshold: on the prediction, 0 to 1.
        weight_decay: on the squared weights of the standardised hidden state.

    Attributes:
        weight: w, float32 `[H]`.
        bias: b.
    """

    name: ClassVar[str] = "learning-to-exit"
    has_memory = False
    needs: ClassVar[tuple[str, ...]] = ("hidden",)
    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, *, threshold: float = 0.5, weight_decay: float = 1e-3) -> None:
        check_number("threshold", threshold, 0, 1)
        check_number("weight_decay", weight_decay, 0)
        self.threshold = threshold
        self.weight_decay = weight_decay

    def hyperparameters(self) -> dict[str, float]:
        """What to construct the agent with, JSON-able."""
        return {"threshold": self.threshold, "weight_decay": self.weight_decay}

    def learn(
        self,
        env: AnyEnv,
        total_timesteps: int = 0,
        *,
        logger: Logger | None = None,
        progress_bar: bool = False,
    ) -> Self:
        """See `Agent.learn`. It solves for all N * L states, whatever is asked for.

        Raises:
            CeeGymError: if the environment is not a recorded one.
        """
        table = table_of(env)
        if table is None:
            raise CeeGymError(
                f"{self.name} learns where each layer's classifier is right, which {env} does not "
                "tell: use a recorded environment"
            )
        self.bind(env)
        hidden = self.part(table.observations, "hidden")
        self.weight, self.bias = _regress(
            hidden.reshape(-1, hidden.shape[-1]),
            table.correct.astype(np.float32).ravel(),
            self.weight_decay,
        )
        return self

    def exit_probability(self, observations: Floats) -> Floats:
        """See `Agent.exit_probability`."""
        return self.exit_probabilities(observations[:, -1:])[:, 0]

    def exit_probabilities(self, observations: Floats) -> Floats:
        """See `Agent.exit_probabilities`."""
        logits = self.part(observations, "hidden") @ self.weight.numpy() + self.bias.item()
        return graded(expit(logits), self.threshold)

    def save_weights(self, path: Path) -> None:
        """See `Agent.save_weights`."""
        save_file({"weight": self.weight, "bias": self.bias}, path)

    def load_weights(self, path: Path) -> None:
        """See `Agent.load_weights`."""
        weights = load_file(path)
        self.weight, self.bias = weights["weight"], weights["bias"]


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
