"""The exact policy gradient: no sampling.

With backbone and classifiers fixed early exit is an optimal stopping problem, and the expected return of a policy
is a finite sum over the L exits of each instance (`cee_gym.returns`):

    J = mean_i sum_t P_i(t) R_it,   P_i(t) = p_it * prod_{s<t} (1 - p_is),   p_iL = 1

`loss = -J`, by automatic differentiation. Its gradient is what REINFORCE estimates.
"""

from typing import ClassVar, Self

import numpy as np
from stable_baselines3.common.logger import Logger

from cee_gym.agents.base import AnyEnv
from cee_gym.agents.curves import Curves
from cee_gym.agents.networks import log_exit_distribution
from cee_gym.agents.policy_agent import PerLayerAgent, TableBatches, table_of
from cee_gym.errors import CeeGymError


class ExpectedReturn(PerLayerAgent):
    """Gradient ascent on the exact expected return of a recorded environment."""

    name: ClassVar[str] = "expected-return"

    def learn(
        self,
        env: AnyEnv,
        total_timesteps: int,
        *,
        logger: Logger | None = None,
        progress_bar: bool = False,
    ) -> Self:
        """See `Agent.learn`. A timestep is one state: an update takes B * L of them.

        Raises:
            CeeGymError: if the environment is not a recorded one.
        """
        table = table_of(env)
        if table is None:
            raise CeeGymError(
                f"{self.name} needs all rewards of an instance at once, which {env} does not have: use a recorded "
                "environment, or the agent 'reinforce'"
            )
        policy, optimizer = self.prepare(env)
        num_layers = len(policy.bias)
        rng = np.random.default_rng((self.seed, self.timesteps))
        batches = TableBatches(table, self.batch_size, rng)
        curves = Curves(
            logger, total_timesteps, self.timesteps, num_layers, progress_bar, self.name
        )
        while not curves.done:
            rows, observations, rewards = batches.next()
            exits = log_exit_distribution(policy(self.states(observations))).exp()
            loss = -(exits * rewards).sum(dim=1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            expected = exits.detach().numpy()
            curves.update(
                rewards.numel(),
                expected.sum(axis=0, dtype=float),
                returns=-float(loss.detach()),
                hindsight=float(rewards.max(dim=1).values.mean()),
                accuracy=float((expected * table.correct[rows]).sum(axis=1).mean()),
                loss=loss,
            )
        curves.close()
        self.timesteps = curves.timesteps
        return self
