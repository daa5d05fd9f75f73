"""One step of policy iteration from the best threshold on the confidence.

The rule that leaves where the exit is confident is hard to beat by learning from a thousand texts.
So this begins with it: what is learned is where leaving now is better than going on to where the
rule would leave next, by one regression whose weights all layers share; see `cee_gym.stopping`. It
was compared with Longstaff-Schwartz, which has weights for each layer, by cross-validation on the
policy's rows of MRPC, M-CID, SST-2 and RTE (`benchmarks/studies/sharing_layers.py`).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import torch

from cee_gym.agents.access import AnyEnv, needs_problem
from cee_gym.agents.network_agent import NetworkAgent
from cee_gym.agents.registry import register_agent
from cee_gym.errors import CeeGymError
from cee_gym.stopping import improve_on_threshold

if TYPE_CHECKING:
    from stable_baselines3.common.logger import Logger

PRICES = 5


@register_agent("policy-improvement")
@dataclass(kw_only=True, eq=False)
class PolicyImprovement(NetworkAgent):
    """Improves on the best confidence threshold by one regression; recorded environments only.

    Its policy is a linear function of the observation, with weights that all layers share and a
    bias for each, so the parts observed are to mean the same at every layer: `confidence` and
    `agreement` do, `hidden` does not. The score is the sigmoid of the predicted advantage of
    leaving now, in units of that advantage's deviation. Where alpha is a range, it learns from
    five prices all over it at once.
    """

    def learn(
        self,
        env: AnyEnv,
        total_timesteps: int = 0,
        *,
        logger: "Logger | None" = None,
        progress_bar: bool = False,
    ) -> Self:
        """Takes one pass over all N * L states, whatever is asked for; see `Agent.learn`.

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
        low, high = problem.alpha
        prices = np.linspace(low, high, PRICES) if low < high else np.array([low])
        observed = np.stack([problem.observe(alpha=alpha) for alpha in prices])
        seen = network.seen(self.states(torch.from_numpy(observed))).numpy()
        rewards = np.stack([problem.rewards(alpha) for alpha in prices])
        weight, bias = improve_on_threshold(seen, problem.trace.confidence, rewards)
        with torch.no_grad():
            network.weight.copy_(torch.from_numpy(weight))
            network.bias.copy_(torch.from_numpy(bias))
        self.timesteps += rewards.size
        self.hand_over_network()
        return self
