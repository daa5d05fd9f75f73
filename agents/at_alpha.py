"""One policy for every speed: an agent that learned at every price of a layer, held at one.

An agent whose observations say alpha, drawn anew for each episode while it learned, is a family of
policies. `agent.at(alpha=...)` picks one of them; `agent.for_budget(saved_layers=...)` picks the
lowest price at which it saves as much as asked, on the calibration split. Even at the lowest price
a policy may save more than that, since a classifier that is right early need not be waited for; it
then leaves above a higher score than 1/2.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from stable_baselines3.common.logger import Logger

from cee_gym.agents.base import Agent, AnyEnv, Decider, Floats, check_layout
from cee_gym.errors import CeeGymError, check_number
from cee_gym.policies.rules import graded, ungraded
from cee_gym.problem import ExitTable
from cee_gym.returns import first_exit

_HALVINGS = 12
_ROWS_AT_A_TIME = 4096


class AtAlpha(Agent):
    """An agent held at one price: whatever alpha an observation says, it decides as at this one.

    Args:
        agent: observes alpha.
        alpha: the price of one layer, in the range the agent learned with.
        threshold: the score of the agent above which it leaves; its own scores are moved so that
            this one comes to 1/2.
        chosen_on: the fingerprint of the trace it was chosen on, empty where on none.

    Raises:
        CeeGymError: if the agent does not observe alpha, or did not learn at this one.
    """

    def __init__(
        self, agent: Agent, alpha: float, threshold: float = 0.5, chosen_on: str = ""
    ) -> None:
        check_conditioned(agent)
        check_number("threshold", threshold, 0, 1)
        low, high = agent.alpha_range
        if not low <= alpha <= high:
            raise CeeGymError(
                f"alpha {alpha:g} is not in the range this {agent.name} agent learned with: give "
                f"{low:g} to {high:g}"
            )
        self.agent = agent
        self.alpha = float(alpha)
        self.threshold = float(threshold)
        self.chosen_on = chosen_on
        self.layout, self.alpha_range, self.model = agent.layout, agent.alpha_range, agent.model
        self.has_memory = agent.has_memory

    @property
    def name(self) -> str:  # type: ignore[override]
        """That of the agent."""
        return self.agent.name

    def learn(
        self,
        env: AnyEnv,
        total_timesteps: int,
        *,
        logger: Logger | None = None,
        progress_bar: bool = False,
    ) -> Self:
        """Refuses: only the whole family learns.

        Raises:
            CeeGymError: always.
        """
        raise CeeGymError(f"this {self.name} agent is held at one alpha: let the whole agent learn")

    def _held(self, observations: Floats) -> Floats:
        held = np.array(observations)
        held[..., self.layout["alpha"]] = self.alpha
        return held

    def exit_probability(self, observations: Floats) -> Floats:
        """See `Agent.exit_probability`."""
        return graded(self.agent.exit_probability(self._held(observations)), self.threshold)

    def exit_probabilities(self, observations: Floats) -> Floats:
        """See `Agent.exit_probabilities`."""
        chunks = [
            self.agent.exit_probabilities(self._held(observations[i : i + _ROWS_AT_A_TIME]))
            for i in range(0, len(observations), _ROWS_AT_A_TIME)
        ]
        return graded(np.concatenate(chunks), self.threshold)

    def exit_layers(self, num_layers: int, threshold: float = 0.5) -> Sequence[int]:
        """See `Agent.exit_layers`."""
        return self.agent.exit_layers(num_layers, ungraded(threshold, self.threshold))

    def decider(self, threshold: float, device: torch.device) -> Decider:
        """See `Agent.decider`."""
        inner = self.agent.decider(ungraded(threshold, self.threshold), device)
        return replace(inner, alpha=self.alpha)

    def hyperparameters(self) -> dict[str, Any]:
        """Those of the agent."""
        return self.agent.hyperparameters()

    def save_weights(self, path: Path) -> None:
        """See `Agent.save_weights`."""
        self.agent.save_weights(path)

    def load_weights(self, path: Path) -> None:
        """See `Agent.load_weights`."""
        self.agent.load_weights(path)

    def description(self) -> dict[str, Any]:
        """See `Agent.description`."""
        held = {key: getattr(self, key) for key in ("alpha", "threshold", "chosen_on")}
        return {**self.agent.description(), "held": held}


def for_budget(agent: Agent, saved_layers: float, calibration: ExitTable) -> AtAlpha:
    """The agent at the lowest price where it saves at least this share of the layers.

    The price is found by halving its range, so it is the lowest where the saving grows with it.

    Args:
        agent: observes alpha.
        saved_layers: `1 - mean(exit_layer)/L`, in [0, 1).
        calibration: of the split to choose on.

    Raises:
        CeeGymError: if it does not save as much at any price.
    """
    check_conditioned(agent)
    check_layout(agent, calibration.layout)
    check_number("saved_layers", saved_layers, 0, 1)
    trace = calibration.trace

    def scores(alpha: float) -> Floats:
        return AtAlpha(agent, alpha).exit_probabilities(calibration.observations)

    def enough(scores: Floats, threshold: float) -> bool:
        exits = first_exit(scores > threshold)
        return 1 - float(exits.mean()) / trace.num_layers >= saved_layers

    low, high = agent.alpha_range
    at_low, at_high = scores(low), scores(high)
    if enough(at_low, 0.5):
        grid = np.unique(at_low[at_low >= 0.5])
        stays = bisect_left(grid, True, key=lambda threshold: not enough(at_low, threshold))
        threshold = grid[stays - 1] if stays else 0.5
        return AtAlpha(agent, low, float(threshold), trace.fingerprint)
    if not enough(at_high, 0.5):
        most = 1 - first_exit(at_high > 0.5).mean() / trace.num_layers
        raise CeeGymError(
            f"this {agent.name} agent saves {most:.1%} of the layers at its highest alpha, "
            f"{high:g}, not {saved_layers:.1%}: ask for less, or train it with a wider range of "
            "alpha"
        )
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(scores(middle), 0.5) else (middle, high)
    return AtAlpha(agent, high, chosen_on=trace.fingerprint)


def is_conditioned(agent: Agent) -> bool:
    """Whether it learned at every price of a range."""
    low, high = agent.alpha_range
    return "alpha" in agent.layout and low < high


def lacks_a_speed(agent: Agent) -> bool:
    """Whether it has a speed for every price, and is held at none."""
    return is_conditioned(agent) and not isinstance(agent, AtAlpha)


def let_go(agent: Agent) -> Agent:
    """What an agent was before it was held at a price; itself where it is not."""
    return agent.agent if isinstance(agent, AtAlpha) else agent


def check_conditioned(agent: Agent) -> None:
    """Refuses an agent that did not learn at every price.

    Raises:
        CeeGymError: saying what to do.
    """
    if not is_conditioned(agent):
        raise CeeGymError(
            f"this {agent.name} agent knows one speed: to choose it afterwards, train it on "
            "observations with 'alpha' and a range of alpha, such as --alpha 0 0.1"
        )
