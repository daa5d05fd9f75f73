"""One step of policy iteration from the best threshold on the confidence.

The rule that leaves where the exit is confident is hard to beat by learning from a thousand texts.
So this begins with it: what is learned is where leaving now is better than going on to where the
rule would leave next, by one regression whose weights all layers share; see `cee_gym.stopping`. It
was compared with Longstaff-Schwartz, which has weights for each layer, by cross-validation on the
policy's rows of MRPC, M-CID, SST-2 and RTE (`benchmarks/studies/sharing_layers.py`).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import torch

from cee_gym.agents.access import AnyEnv, needs_problem
from cee_gym.agents.network_agent import NetworkAgent
from cee_gym.agents.registry import register_agent
from cee_gym.errors import CeeGymError
from cee_gym.policies.base import ExitPolicy
from cee_gym.policies.rules import Confidence
from cee_gym.problem import Problem
from cee_gym.progress import say
from cee_gym.returns import best_threshold, first_exit
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
    leaving now, in units of that advantage's deviation, and its threshold is the one of highest
    mean return on what it learned from. Where alpha is a range, it learns from five prices all over
    it at once, and the threshold is 1/2.

    A linear function of what is observed can be worse than the threshold that it starts from. Where
    the threshold on the confidence earns more on what the agent learned from, that is the policy,
    and the agent says so.
    """

    def learn(
        self,
        env: AnyEnv,
        total_timesteps: int = 0,
        *,
        logger: "Logger | None" = None,
        progress_bar: bool = False,
        calibration: Problem | None = None,
    ) -> Self:
        """Learns from all N * L states, whatever is asked for; see `Agent.learn`.

        They are read by rows, a few times at each price.

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
        states = [self.states_by_rows(problem, alpha) for alpha in prices]
        rewards = np.stack([problem.rewards(alpha) for alpha in prices])
        weight, bias = improve_on_threshold(states, problem.trace.confidence, rewards)
        with torch.no_grad():
            network.weight.copy_(torch.from_numpy(weight))
            network.bias.copy_(torch.from_numpy(bias))
        self.timesteps += rewards.size
        self.hand_over_network()
        if low == high:
            self._hold_at_the_best(problem, rewards[0])
        return self

    def _hold_at_the_best(self, problem: Problem, rewards: npt.NDArray[np.floating[Any]]) -> None:
        """Chooses the threshold; falls back to the one on the confidence where that earns more."""
        self.hand_over_at_best(self.policy.score, problem)
        rows = np.arange(len(problem))
        exits = self.policy.exit_layers(self.policy.scores_on(problem))
        confidence = problem.trace.confidence.astype(np.float64)
        threshold = best_threshold(confidence, rewards)
        start = first_exit(confidence > threshold)
        earned, before = (rewards[rows, of - 1].mean() for of in (exits, start))
        if before > earned and "confidence" in self.layout:
            say(
                f"{self.name}: the threshold on the confidence earns {before:.4f} on what was "
                f"learned from, and the regression {earned:.4f}: the policy is the threshold. "
                "Observing more, such as the hidden state, may help"
            )
            at = float(np.clip(threshold, 0, 1))
            self.hand_over(Confidence(threshold=at), at)

    def take(self, policy: ExitPolicy, tensors: dict[str, torch.Tensor]) -> None:
        """Goes on from these networks, where the policy is not the threshold it starts from."""
        if not isinstance(policy.score, Confidence):
            super().take(policy, tensors)
