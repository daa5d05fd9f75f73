"""The meta-classifier of Confident Adaptive Transformers (CATs; Schuster et al., EMNLP 2021).

At each layer but the last a small network predicts whether that layer's classifier agrees with the
last one, right or wrong. It is trained by binary cross-entropy, balanced so that agreeing and
disagreeing instances weigh the same at every layer however rare they are:

    loss = sum_t 1/2 (mean_{i agrees at t} -log s_it + mean_{i disagrees at t} -log(1 - s_it))

So the score s ranks states and is no probability. It leaves above the threshold of highest mean
return on what it learned from; the paper, above the one that conformal calibration finds,
`cee_gym.evaluation.guarantee.conformal_threshold` on the scores of the calibration split.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch.nn.functional import softplus

from cee_gym.agents.access import AnyEnv, needs_problem
from cee_gym.agents.curves import Curves
from cee_gym.agents.network_agent import MOST_WIDTH, Batches, NetworkAgent
from cee_gym.agents.registry import register_agent
from cee_gym.policies.networks import log_exit_distribution
from cee_gym.problem import Problem
from cee_gym.settings import Range, number

if TYPE_CHECKING:
    from stable_baselines3.common.logger import Logger


@register_agent("cat")
@dataclass(kw_only=True, eq=False)
class CAT(NetworkAgent):
    """Predicts agreement with the last layer; learns in recorded environments only.

    It takes nothing from the environment's reward but its threshold. Its networks read the
    observation of the present layer. (The paper's read hidden states, probabilities, and what
    probability the layers before gave to the same class.)

    Args:
        hidden_width: units of the hidden layer of each network, 0 for none.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        batch_size: instances an update.
        seed: of weights and batches.
    """

    hidden_width: int = number(32, 0, MOST_WIDTH, search=[0, 8, 32])
    learning_rate: float = number(1e-3, 0, search=Range(1e-4, 1e-2, log=True))
    weight_decay: float = number(0.0, 0, search=Range(0.0, 20.0))
    batch_size: int = number(32, 1, search=[32, 64, 128])

    def learn(
        self,
        env: AnyEnv,
        total_timesteps: int,
        *,
        logger: "Logger | None" = None,
        progress_bar: bool = False,
        calibration: Problem | None = None,
    ) -> Self:
        """Takes gradient steps; see `Agent.learn`. A timestep is one state.

        Raises:
            CeeGymError: if the environment is not a recorded one.
        """
        network, problem = self.prepare(env)
        if problem is None:
            raise needs_problem(self.name, env)
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay
        )
        agreement = balanced_agreement(problem)
        rng = np.random.default_rng((self.seed, self.timesteps))
        batches = Batches(problem, self.batch_size, rng)
        curves = Curves(
            logger,
            total_timesteps,
            self.timesteps,
            len(network.bias),
            progress_bar,
            self.name,
            calibration,
            self.current_policy,
        )
        while not curves.done:
            rows, observations, rewards = batches.next()
            logits = network(self.states(observations))
            weights = agreement[rows]
            # softplus(-x) is -log sigmoid(x), softplus(x) is -log(1 - sigmoid(x)).
            loss = (weights.abs() * softplus(-weights.sign() * logits)).sum(dim=1).mean()
            curves.check_finite(loss, self.learning_rate)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            exits = log_exit_distribution(logits.detach()).exp()
            curves.update(
                rewards.numel(),
                exits.sum(dim=0).numpy(),
                returns=float((exits * rewards).sum(dim=1).mean()),
                hindsight=float(rewards.max(dim=1).values.mean()),
                accuracy=float((exits.numpy() * problem.correct[rows]).sum(axis=1).mean()),
                loss=loss,
            )
        curves.close()
        self.timesteps = curves.timesteps
        self.hand_over_network()
        self.hand_over_at_best(self.policy.score, problem)
        return self


def balanced_agreement(problem: Problem) -> torch.Tensor:
    """Which layers agree with the last one, and how much each instance counts there.

    Returns:
        float32 `[N, L]`, positive where they agree and negative where not: 1/2 divided by the share
        of the instances of which the same is true. At the last layer, which has nothing to learn,
        0.
    """
    agrees = problem.prediction == problem.prediction[:, -1:]
    share = agrees.mean(axis=0)
    weights = np.where(agrees, 0.5, -0.5) / np.where(agrees, share, 1 - share)
    weights[:, -1] = 0
    return torch.from_numpy(weights.astype(np.float32))
