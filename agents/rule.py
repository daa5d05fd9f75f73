"""A rule as an agent: what there is to learn is the number that it leaves the choice of."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from cee_gym.agents.access import AnyEnv
from cee_gym.agents.base import Agent
from cee_gym.agents.presets import Preset
from cee_gym.errors import CeeGymError
from cee_gym.policies.base import ExitPolicy
from cee_gym.policies.rules import Rule
from cee_gym.problem import Problem
from cee_gym.settings import Range, search_ranges

if TYPE_CHECKING:
    from stable_baselines3.common.logger import Logger


class RuleAgent(Agent):
    """Hands over a rule, at the number of highest mean return where none was given.

    Args:
        rule: with its settings, which are the agent's hyper-parameters.
        choose: the settings that `learn` chooses, of `rule.chosen`; by default none, and the rule
            is handed over as it is.
    """

    def __init__(self, rule: Rule, choose: Collection[str] = ()) -> None:
        self.rule = rule
        self.choose = tuple(choose)
        self.name = rule.name  # type: ignore[misc]

    def preset(self) -> Preset:
        """It observes what the rule reads."""
        return Preset(observe=self.rule.reads)

    def check_observe(self, parts: Collection[str]) -> None:
        """Refuses observations that lack what the rule reads."""
        self.rule.check_observe(parts)

    def learn(
        self,
        env: AnyEnv,
        total_timesteps: int = 0,
        *,
        logger: "Logger | None" = None,
        progress_bar: bool = False,
        calibration: Problem | None = None,
    ) -> Self:
        """Chooses the number, of all there are, by the mean return; see `Agent.learn`.

        Raises:
            CeeGymError: if there is one to choose and the environment is not a recorded one.
        """
        problem = self.bind(env)
        if not self.choose:
            self.hand_over(self.rule, float(self.rule.least))
            return self
        if problem is None:
            names = " and ".join(self.choose)
            raise CeeGymError(
                f"{self.name} chooses its {names} by what a recording says it earns, and this "
                f"environment is none: give {names}"
            )
        of_score, *others = self.rule.chosen
        tries = self.rule.to_try(problem.num_layers) if {*others} & {*self.choose} else [self.rule]
        rewards = problem.rewards(sum(problem.alpha) / 2)
        learned: list[tuple[float, ExitPolicy]] = []
        for rule in tries:
            if of_score in self.choose:
                self.hand_over_at_best(rule, problem)
            else:
                self.hand_over(rule, float(rule.least))
            exits = self.policy.exit_layers(self.policy.scores_on(problem))
            learned.append((float(rewards[np.arange(len(exits)), exits - 1].mean()), self.policy))
        self._policy = max(learned, key=lambda one: one[0])[1]
        return self

    def hyperparameters(self) -> dict[str, Any]:
        """The settings of the rule; None where they are chosen."""
        return self.rule.settings() | dict.fromkeys(self.choose)

    def search_ranges(self) -> dict[str, Range | list[Any]]:
        """Those of the settings that `learn` does not choose anyway."""
        ranges = search_ranges(self.rule)
        return {name: values for name, values in ranges.items() if name not in self.choose}

    def take(self, policy: ExitPolicy, tensors: dict[str, torch.Tensor]) -> None:
        """There is nothing to go on from."""
