"""Learning to exit, of BERxiT (Xin et al., EACL 2021).

One linear map of the hidden state and a sigmoid, shared by all layers, predicts whether the layer's
classifier is right:

    u = sigmoid(w h + b),   loss = mean_it (u_it - correct_it)^2 + decay * sum_j (s_j w_j)^2

with s_j the deviation of feature j over all states, so that no feature's unit matters. The agent
leaves where u passes a threshold. Here backbone and classifiers are fixed, so this is one small
problem, solved to the end on all N * L states; the paper trains all three together.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt
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
from cee_gym.recorded_observations import MOST_BYTES_IN_MEMORY
from cee_gym.settings import Range, number

_BYTES_AT_A_TIME = 32 * 2**20

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

        Where they take more than 1 GB they are read at each of a few dozen passes.

        Raises:
            CeeGymError: if the environment is not a recorded one.
        """
        problem = self.bind(env)
        if problem is None:
            raise needs_problem(self.name, env)

        def read(rows: slice) -> Floats:
            return problem.observe(rows)[..., self.layout["hidden"]]

        weight, bias = _regress(_States(read, problem.correct), self.weight_decay)
        score = LinearScore(weight, bias)
        if self.threshold is None:
            self.hand_over_at_best(score, problem)
        else:
            self.hand_over(score, self.threshold)
        return self

    def take(self, policy: ExitPolicy, tensors: dict[str, torch.Tensor]) -> None:
        """There is nothing to go on from: it solves anew."""


class _States:
    """Hidden states less their mean, some rows at a time, each with whether the exit is right.

    They are held where they are not too large for memory, and else read at each pass.

    Args:
        read: gives the hidden states of a slice of rows, float32 `[B, L, H]`.
        correct: whether each exit is right, bool `[N, L]`.

    Attributes:
        count: N * L.
        mean: float32 `[H]`.
    """

    def __init__(self, read: Callable[[slice], Floats], correct: npt.NDArray[np.bool_]) -> None:
        self._read, self._correct = read, correct
        size = read(slice(0, 1)).nbytes
        held = size * len(correct) <= MOST_BYTES_IN_MEMORY
        step = len(correct) if held else max(1, _BYTES_AT_A_TIME // size)
        self._slices = [slice(start, start + step) for start in range(0, len(correct), step)]
        self.count = correct.size
        # Summed in float64, so that a feature that never changes comes to 0 exactly.
        sums = [read(rows).sum(axis=(0, 1), dtype=np.float64) for rows in self._slices]
        self.mean = (np.sum(sums, axis=0) / self.count).astype(np.float32)
        self._held = [*self._all()] if held else None

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """float32 `[n, H]`, and float32 `[n]`, 0 or 1."""
        return self._all() if self._held is None else iter(self._held)

    def _all(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for rows in self._slices:
            x = (self._read(rows) - self.mean).reshape(-1, len(self.mean))
            right = self._correct[rows].astype(np.float32).ravel()
            yield torch.from_numpy(x), torch.from_numpy(right)


def _regress(states: _States, weight_decay: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights `[H]` and bias `[]` that minimise the loss.

    Args:
        states: the hidden states.
        weight_decay: on the squared weights of the hidden state divided by its deviation.
    """
    sums = [(x.T @ x, right.sum()) for x, right in states]
    covariance, share = (
        torch.stack(of).sum(dim=0) / states.count for of in zip(*sums, strict=True)
    )
    variance = covariance.diagonal().clamp_min(1e-6)
    # In these coordinates the loss curves about equally in all directions, so LBFGS takes few
    # steps. 1e-4 keeps them defined where features depend on each other.
    curvature = (share * (1 - share)).square() * covariance
    factor = torch.linalg.cholesky(curvature + torch.diag((weight_decay + 1e-4) * variance))
    back = torch.linalg.inv(factor).T
    point = torch.zeros(len(states.mean), requires_grad=True)
    bias = torch.logit(share, eps=1e-3).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [point, bias], max_iter=100, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
    )

    def loss() -> float:
        optimizer.zero_grad()
        weight = back @ point
        # Gathers the gradient over the rows, whose graphs are gone one by one.
        here = weight.detach().requires_grad_()
        value = weight_decay * (variance * here.square()).sum()
        value.backward()
        for x, right in states:
            error = torch.sigmoid(x @ here + bias) - right
            part = error.square().sum() / states.count
            part.backward()
            value = value + part.detach()
        weight.backward(here.grad)
        return value.item()

    optimizer.step(loss)
    with torch.no_grad():
        weight = back @ point
        return weight, bias - torch.from_numpy(states.mean) @ weight
