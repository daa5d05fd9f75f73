"""A rule as an agent: there is nothing to learn but what the observations are made of."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Self

import torch

from cee_gym.agents.access import AnyEnv
from cee_gym.agents.base import Agent
from cee_gym.agents.presets import Preset
from cee_gym.policies.base import ExitPolicy
from cee_gym.policies.rules import Rule
from cee_gym.settings import Range, search_ranges

if TYPE_CHECKING:
    from stable_baselines3.common.logger import Logger


class RuleAgent(Agent):
    """Hands over a rule as it is.

    Args:
        rule: with its settings, which are the agent's hyper-parameters.
    """

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.name = rule.name  # type: ignore[misc]

    def presets(self) -> Mapping[str, Preset]:
        """It observes what the rule reads."""
        return {"default": Preset(observe=self.rule.reads)}

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
    ) -> Self:
        """Takes what the observations are made of; there is nothing else to learn."""
        self.bind(env)
        self.hand_over(self.rule, float(self.rule.least))
        return self

    def hyperparameters(self) -> dict[str, Any]:
        """The settings of the rule."""
        return self.rule.settings()

    def search_ranges(self) -> dict[str, Range | list[Any]]:
        """Those of the rule's settings."""
        return search_ranges(self.rule)

    def take(self, policy: ExitPolicy, tensors: dict[str, torch.Tensor]) -> None:
        """There is nothing to go on from."""
