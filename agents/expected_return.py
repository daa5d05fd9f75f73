"""The exact policy gradient: no sampling.

With backbone and classifiers fixed early exit is an optimal stopping problem, and the expected
return of a policy is a finite sum over the L exits of each instance (`cee_gym.returns`):

    J = mean_i sum_t P_i(t) R_it,   P_i(t) = p_it * prod_{s<t} (1 - p_is),   p_iL = 1

`loss = -J`, by automatic differentiation. Its gradient is what REINFORCE estimates.
"""

from dataclasses import dataclass

import numpy as np
import torch

from cee_gym.agents.network_agent import GradientAgent, Step
from cee_gym.agents.presets import FROM_RULE, Preset
from cee_gym.agents.registry import register_agent
from cee_gym.policies.networks import log_exit_distribution


@register_agent("expected-return")
@dataclass(kw_only=True, eq=False)
class ExpectedReturn(GradientAgent):
    """Gradient ascent on the exact expected return.

    It learns in recorded environments only. Its arguments are those of `GradientAgent`.
    """

    def preset(self) -> Preset:
        """See `cee_gym.agents.presets`."""
        return Preset(total_timesteps=1_000_000, hyperparameters=FROM_RULE)

    def estimate(
        self, logits: torch.Tensor, rewards: torch.Tensor, rng: np.random.Generator
    ) -> Step:
        """Minus the expected return. A timestep is one state."""
        exits = log_exit_distribution(logits).exp()
        loss = -(exits * rewards).sum(dim=1).mean()
        return Step(loss, exits.detach().numpy(), rewards.numel())
