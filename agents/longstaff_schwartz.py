"""Optimal stopping by regression (Longstaff and Schwartz 2001), made for American options.

Backwards over the layers: with the policy from layer t+1 on known, the reward it realises for each
instance is known too, so at layer t

    y_i = R_it - R_i,tau(i)      tau(i): where the policy from t+1 on leaves instance i

is regressed on the state, and the policy leaves where the prediction is positive. The label is
unknown when the policy decides, so here the reward of leaving now has to be predicted as well,
and the difference is. L-1 ridge regressions, no step size, no sampling.

In learning no instance judges itself: the regression that decides where an instance leaves is
fitted to the other folds. The weights that are kept are fitted to all.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold
from tqdm import trange

from cee_gym.agents.access import AnyEnv, needs_problem
from cee_gym.agents.network_agent import NetworkAgent
from cee_gym.agents.registry import register_agent
from cee_gym.errors import CeeGymError
from cee_gym.settings import number

if TYPE_CHECKING:
    from stable_baselines3.common.logger import Logger

PENALTIES = tuple(np.logspace(-1, 5, 13))


@register_agent("longstaff-schwartz")
@dataclass(kw_only=True, eq=False)
class LongstaffSchwartz(NetworkAgent):
    """Regression backwards over the layers; learns in recorded environments only.

    Its policy is one linear function per layer; the score is the sigmoid of the predicted advantage
    of leaving now, in units of that advantage's deviation.

    Args:
        folds: for the cross-fitting.
        seed: of the folds and, where alpha is a range, of an alpha for each instance.
    """

    folds: int = number(5, 2, 100)

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
        rng = np.random.default_rng(self.seed)
        alpha = rng.uniform(*problem.alpha, size=len(problem))
        observations = torch.from_numpy(np.array(problem.observe(alpha=alpha)))
        seen = network.seen(self.states(observations)).numpy()
        rewards = problem.rewards(alpha)
        weight, bias = _regress(seen, rewards, self.folds, self.seed, progress_bar)
        with torch.no_grad():
            network.weight.copy_(torch.from_numpy(weight))
            network.bias.copy_(torch.from_numpy(bias))
        self.timesteps += rewards.size
        self.hand_over_network()
        return self


def _regress(
    states: np.ndarray, rewards: np.ndarray, folds: int, seed: int, progress_bar: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Weights `[L, D]` and biases `[L]` of the scaled advantage of leaving.

    Args:
        states: `[N, L, D]`.
        rewards: `[N, L]`.
        folds: for the cross-fitting.
        seed: of the folds.
        progress_bar: show progress.
    """
    num_instances, num_layers, width = states.shape
    splits = list(
        KFold(min(folds, num_instances), shuffle=True, random_state=seed).split(states[:, 0])
    )
    weight, bias = np.zeros((num_layers, width)), np.zeros(num_layers)
    bias[-1] = 1.0  # the last exit is forced
    realised = rewards[:, -1].copy()
    for layer in trange(num_layers - 2, -1, -1, desc="regress", disable=not progress_bar):
        mean, deviation = states[:, layer].mean(axis=0), states[:, layer].std(axis=0) + 1e-6
        x = (states[:, layer] - mean) / deviation
        y = rewards[:, layer] - realised
        unit = y.std() + 1e-12
        whole = RidgeCV(alphas=PENALTIES).fit(x, y)
        weight[layer] = whole.coef_ / deviation / unit
        bias[layer] = whole.intercept_ / unit - weight[layer] @ mean
        predicted = np.empty(num_instances)
        for others, own in splits:
            fitted = RidgeCV(alphas=[whole.alpha_]).fit(x[others], y[others])
            predicted[own] = fitted.predict(x[own])
        realised = np.where(predicted > 0, rewards[:, layer], realised)
    return weight, bias
