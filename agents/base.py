"""What learns exit policies."""

from abc import ABC, abstractmethod
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from cee_gym.agents.access import AnyEnv, access
from cee_gym.agents.presets import Preset
from cee_gym.agents.registry import full_agent_name, make_agent
from cee_gym.documents import (
    read_document,
    refused_if_damaged,
    write_document,
    written_whole,
)
from cee_gym.errors import CeeGymError
from cee_gym.observation import Layout
from cee_gym.policies.base import ExitPolicy, check_layout
from cee_gym.policies.score import Score
from cee_gym.policies.speeds import NEVER
from cee_gym.problem import Problem
from cee_gym.returns import best_threshold
from cee_gym.settings import Range, check_settings, search_ranges, settings_of

if TYPE_CHECKING:
    from stable_baselines3.common.logger import Logger

VERSION = 2


class Agent(ABC):
    """Learns an `ExitPolicy` from a problem or an environment.

    A subclass is a dataclass whose fields are its hyper-parameters; see `cee_gym.settings`.

    Attributes:
        name: on the command line.
        timesteps: decisions it has learned from.
        layout: the columns of each part of the observations it learns from; set by `bind`.
        alpha_range: the lowest and highest price of one layer there; set by `bind`.
    """

    name: ClassVar[str]
    timesteps: int = 0
    layout: Layout
    alpha_range: tuple[float, float]
    _model: str | None = None
    _policy: ExitPolicy | None = None

    def __post_init__(self) -> None:
        check_settings(self)

    def preset(self) -> Preset:
        """What it starts from; see `cee_gym.agents.presets`."""
        return Preset()

    @abstractmethod
    def learn(
        self,
        env: AnyEnv,
        total_timesteps: int,
        *,
        logger: "Logger | None" = None,
        progress_bar: bool = False,
        calibration: Problem | None = None,
    ) -> Self:
        """Learns in an environment; called again, goes on from where it is.

        Args:
            env: a scalar or vector environment of cee-gym.
            total_timesteps: decisions to learn from.
            logger: takes the learning curves.
            progress_bar: show progress and time left.
            calibration: a problem it does not learn from; the policy is measured there as well, now
                and then, for the curves. Agents that take no steps have no use for it.

        Raises:
            CeeGymError: if it cannot learn there.
        """

    @property
    def policy(self) -> ExitPolicy:
        """What it has learned so far.

        Raises:
            CeeGymError: if it has not learned anything.
        """
        if self._policy is None:
            raise CeeGymError(
                f"this {self.name} agent has not learned anything yet: call learn first, "
                "which has to call hand_over"
            )
        return self._policy

    def bind(self, env: AnyEnv) -> Problem | None:
        """Takes what an environment shows, at the first call; later refuses to be shown another.

        Returns:
            The problem behind a recorded environment, None for any other.

        Raises:
            CeeGymError: if the environment is none of ours, its observations lack a part the agent
                needs, or they are not those it learned on.
        """
        found = access(env)
        self.check_observe(found.layout)
        if not hasattr(self, "layout"):
            self.layout, self.alpha_range = found.layout, found.alpha_range
        check_layout(f"{self.name} agent", self.layout, found.layout)
        if "alpha" in found.layout and found.alpha_range != self.alpha_range:
            raise CeeGymError(
                f"this {self.name} agent learned with alpha from {_span(self.alpha_range)}, not "
                f"{_span(found.alpha_range)}: give the same range"
            )
        self._model = found.model
        return found.problem

    def check_observe(self, parts: Collection[str]) -> None:  # noqa: B027
        """Refuses observations made of these parts, if the agent cannot learn from them.

        Raises:
            CeeGymError: naming what is missing.
        """

    def hand_over(self, score: Score, threshold: float = 0.5) -> None:
        """Makes a score the policy it has learned."""
        self._policy = ExitPolicy(
            score,
            self.layout,
            threshold,
            self.alpha_range,
            model=self._model,
            learned_by=self.name,
        )

    def hand_over_at_best(self, score: Score, problem: Problem) -> None:
        """Makes a score the policy, at the threshold of highest mean return on a problem.

        Where alpha is a range, at the price in the middle of it.
        """
        self.hand_over(score)
        values = self.policy.scores_on(problem).astype(np.float64)
        threshold = best_threshold(values, problem.rewards(sum(problem.alpha) / 2))
        never = threshold >= values[:, :-1].max(initial=-1)
        self.hand_over(score, NEVER if never else threshold)

    def hyperparameters(self) -> dict[str, Any]:
        """What to construct the agent with, JSON-able."""
        return settings_of(self)

    def search_ranges(self) -> dict[str, Range | list[Any]]:
        """What `cee-gym tune` tries of the hyper-parameters, by name."""
        return search_ranges(self)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What it needs to go on learning, beside its policy."""
        return {}

    @abstractmethod
    def take(self, policy: ExitPolicy, tensors: dict[str, torch.Tensor]) -> None:
        """Takes back a policy it has learned and what `tensors` gave, to go on from there."""

    def save(self, directory: str | Path) -> None:
        """Writes its policy, and beside it `agent.json` and `agent.safetensors`, to go on from."""
        directory = Path(directory)
        self.policy.save(directory)
        timesteps = {"timesteps": torch.tensor(self.timesteps)}
        with written_whole(directory / "agent.safetensors") as unfinished:
            save_file(timesteps | self.tensors(), unfinished)
        write_document(
            directory / "agent.json",
            {
                "version": VERSION,
                "agent": full_agent_name(self.name),
                "hyperparameters": self.hyperparameters(),
            },
        )

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """Reads an agent of this class.

        Raises:
            CeeGymError: if there is none, or it is of another class.
        """
        agent = load_agent(directory)
        if not isinstance(agent, cls):
            raise CeeGymError(
                f"{directory} holds an agent of kind {agent.name}, not {cls.__name__}"
            )
        return agent


def load_agent(directory: str | Path) -> Agent:
    """Reads an agent of any class; a module of the user's that defines it is imported.

    Raises:
        CeeGymError: if there is none, it is damaged, or it is of another version.
    """
    directory = Path(directory)
    found = read_document(
        directory / "agent.json", "agent", remedy="train it again", versions=[VERSION]
    )
    policy = ExitPolicy.load(directory)
    # Of whatever kind a damaged file brings about.
    with refused_if_damaged(f"the agent at {directory}", "train it again", (Exception,)):
        agent = make_agent(found["agent"], **found["hyperparameters"])
        tensors = load_file(directory / "agent.safetensors")
        agent.timesteps = int(tensors.pop("timesteps"))
        agent.layout, agent.alpha_range = policy.layout, policy.alpha_range
        agent._model, agent._policy = policy.model, policy
        agent.take(policy, tensors)
    return agent


def _span(alpha_range: tuple[float, float]) -> str:
    return f"{alpha_range[0]:g} to {alpha_range[1]:g}"
