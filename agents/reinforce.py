"""REINFORCE as in ConsistentEE (Zeng et al., AAAI 2024, section 3.4).

K rollouts of each instance are sampled from the policy; with R_ij the return of rollout j of
instance i,

    loss = -(1/BK) * sum_ij (R_ij - b_ij) * log P(path_ij)

The paper's baseline `b_ij = mean_j R_ij` includes the rollout itself, which shrinks the expected
gradient to (K-1)/K of the true one; leaving it out (`leave_one_out`, Kool et al. 2019) removes the
bias, and is the default. There is
no critic, no entropy bonus and no normalisation by the deviation.

In a recorded environment every state of an instance is known, so the policy is evaluated once and
the K exits are drawn from its exit distribution. In any other, K episodes of each instance are run.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from cee_gym.agents.access import AnyEnv
from cee_gym.agents.network_agent import GradientAgent, Played, Step
from cee_gym.agents.presets import FROM_RULE, Preset
from cee_gym.agents.registry import register_agent
from cee_gym.agents.rollouts import play
from cee_gym.policies.networks import PerLayerPolicy, log_exit_distribution
from cee_gym.policies.score import Floats
from cee_gym.settings import number, one_of

Baseline = Literal["leave_one_out", "mean"]


@register_agent("reinforce")
@dataclass(kw_only=True, eq=False)
class Reinforce(GradientAgent):
    """REINFORCE with K rollouts of each instance.

    Its other arguments are those of `GradientAgent`.

    Args:
        rollouts: K, at least 2, since the baseline is the mean of an instance's other rollouts.
        baseline: `"leave_one_out"`, or `"mean"` as in the paper.
    """

    rollouts: int = number(8, 2, 10_000, search=[4, 8, 16])
    baseline: Baseline = one_of("leave_one_out", ("leave_one_out", "mean"))

    def preset(self) -> Preset:
        """See `cee_gym.agents.presets`."""
        return Preset(total_timesteps=2_000_000, hyperparameters=FROM_RULE)

    def estimate(
        self, logits: torch.Tensor, rewards: torch.Tensor, rng: np.random.Generator
    ) -> Step:
        """See the module. A timestep is one decision of one rollout."""
        exits = sample_exits(torch.sigmoid(logits.detach()), self._uniforms(rng, *logits.shape))
        loss = surrogate_loss(logits, exits, rewards.gather(1, exits), self.baseline)
        return Step(loss, self._shares(exits, logits.shape[1]), int((exits + 1).sum()))

    def play(self, env: AnyEnv, network: PerLayerPolicy, rng: np.random.Generator) -> Played:
        """Runs K episodes of each of a batch of instances that the environment draws."""
        uniforms = self._uniforms(rng, self.batch_size, len(network.bias))

        def leave(observations: Floats, uniform: Floats) -> np.ndarray:
            with torch.inference_mode():
                given = torch.from_numpy(np.ascontiguousarray(observations))
                layer = given[:, self.layout["layer"]].argmax(dim=1)
                return uniform < torch.sigmoid(network.at(self.states(given), layer)).numpy()

        run = play(env, uniforms.numpy(), leave, seed=int(rng.integers(2**31)))
        logits = network(self.states(torch.from_numpy(run.observations)))
        exits = torch.from_numpy(run.exits)
        return Played(
            loss=surrogate_loss(logits, exits, torch.from_numpy(run.returns), self.baseline),
            exits=self._shares(exits, logits.shape[1]),
            timesteps=int((exits + 1).sum()),
            mean_return=float(run.returns.mean()),
            accuracy=float(run.correct.mean()),
        )

    def _uniforms(self, rng: np.random.Generator, instances: int, num_layers: int) -> torch.Tensor:
        shape = (instances, self.rollouts, num_layers)
        return torch.from_numpy(rng.random(shape, dtype=np.float32))

    def _shares(self, exits: torch.Tensor, num_layers: int) -> np.ndarray:
        one_hot = torch.nn.functional.one_hot(exits, num_layers)
        return one_hot.float().mean(dim=1).numpy()


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
