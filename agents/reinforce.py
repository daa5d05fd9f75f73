"""REINFORCE as in ConsistentEE (Zeng et al., AAAI 2024, section 3.4).

K rollouts of each instance are sampled from the policy; with R_ij the return of rollout j of instance i,

    loss = -(1/BK) * sum_ij (R_ij - b_ij) * log P(path_ij)

The paper's baseline `b_ij = mean_j R_ij` includes the rollout itself, which shrinks the expected gradient to (K-1)/K
of the true one; leaving it out (`leave_one_out`, Kool et al. 2019) removes the bias, and is the default. There is
no critic, no entropy bonus and no normalisation by the deviation.

In a recorded environment every state of an instance is known, so the policy is evaluated once and the K exits
are drawn from its exit distribution. In any other, K episodes of each instance are run.
"""

from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from stable_baselines3.common.logger import Logger

from cee_gym.agents.base import AnyEnv
from cee_gym.agents.curves import Curves
from cee_gym.agents.networks import log_exit_distribution
from cee_gym.agents.policy_agent import PerLayerAgent, TableBatches, table_of
from cee_gym.agents.rollouts import play
from cee_gym.errors import CeeGymError

Baseline = Literal["leave_one_out", "mean"]


class Reinforce(PerLayerAgent):
    """REINFORCE with K rollouts of each instance.

    Args:
        rollouts: K, at least 2.
        baseline: `"leave_one_out"`, or `"mean"` as in the paper.
        **kwargs: see `PerLayerAgent`.
    """

    name: ClassVar[str] = "reinforce"

    def __init__(
        self, *, rollouts: int = 8, baseline: Baseline = "leave_one_out", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if rollouts < 2:
            raise CeeGymError(
                f"rollouts is {rollouts}: the baseline is the mean of an instance's other rollouts, so it takes at "
                "least 2"
            )
        if baseline not in ("leave_one_out", "mean"):
            raise CeeGymError(f"baseline {baseline!r} is unknown: use 'leave_one_out' or 'mean'")
        self.rollouts = rollouts
        self.baseline: Baseline = baseline

    def hyperparameters(self) -> dict[str, Any]:
        """What to construct the agent with, JSON-able."""
        return {
            "rollouts": self.rollouts,
            "baseline": self.baseline,
            **super().hyperparameters(),
        }

    def learn(
        self,
        env: AnyEnv,
        total_timesteps: int,
        *,
        logger: Logger | None = None,
        progress_bar: bool = False,
    ) -> Self:
        """See `Agent.learn`. A timestep is one decision of one rollout."""
        policy, optimizer = self.prepare(env)
        num_layers = len(policy.bias)
        rng = np.random.default_rng((self.seed, self.timesteps))
        table = table_of(env)
        batches = None if table is None else TableBatches(table, self.batch_size, rng)
        curves = Curves(
            logger, total_timesteps, self.timesteps, num_layers, progress_bar, self.name
        )
        while not curves.done:
            hindsight = accuracy = None
            if batches is not None and table is not None:
                rows, observations, rewards = batches.next()
                uniforms = self._uniforms(rng, len(rows), num_layers)
                logits = policy(self.states(observations))
                exits = sample_exits(torch.sigmoid(logits.detach()), uniforms)
                returns = rewards.gather(1, exits)
                hindsight = float(rewards.max(dim=1).values.mean())
                accuracy = float(table.correct[rows[:, None], exits.numpy()].mean())
            else:
                uniforms = self._uniforms(rng, self.batch_size, num_layers)
                played = play(env, uniforms.numpy(), self._leave)
                logits = policy(self.states(torch.from_numpy(played.observations)))
                exits, returns = torch.from_numpy(played.exits), torch.from_numpy(played.returns)
                accuracy = float(played.correct.mean())
            loss = surrogate_loss(logits, exits, returns, self.baseline)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curves.update(
                int((exits + 1).sum()),
                np.bincount(exits.flatten().numpy(), minlength=num_layers).astype(float),
                returns=float(returns.mean()),
                hindsight=hindsight,
                accuracy=accuracy,
                loss=loss,
            )
        curves.close()
        self.timesteps = curves.timesteps
        return self

    def _uniforms(self, rng: np.random.Generator, instances: int, num_layers: int) -> torch.Tensor:
        return torch.from_numpy(
            rng.random((instances, self.rollouts, num_layers), dtype=np.float32)
        )

    def _leave(self, observations: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        return uniforms < self.exit_probability(observations[:, None])


def sample_exits(exit_probabilities: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Where each rollout leaves, int64 `[B, K]` from 0.

    Args:
        exit_probabilities: `[B, L]`, of leaving layer t once there; the last exit is forced.
        uniforms: `[B, K, L]` in [0, 1), one per decision.
    """
    leave = uniforms < exit_probabilities[:, None]
    leave[..., -1] = True
    return leave.int().argmax(dim=2)


def surrogate_loss(
    logits: torch.Tensor, exits: torch.Tensor, returns: torch.Tensor, baseline: Baseline
) -> torch.Tensor:
    """The loss whose gradient is REINFORCE's estimate.

    Args:
        logits: `[B, L]`, of leaving layer t once there.
        exits: int64 `[B, K]` from 0, where each rollout left.
        returns: `[B, K]`, what it earned.
        baseline: see the module.
    """
    mean = returns.mean(dim=1, keepdim=True)
    advantage = returns - mean
    if baseline == "leave_one_out":
        # R_j minus the mean of the others is K/(K-1) times R_j minus the mean of all.
        advantage = advantage * (returns.shape[1] / (returns.shape[1] - 1))
    return -(advantage * log_exit_distribution(logits).gather(1, exits)).mean()
