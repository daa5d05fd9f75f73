"""The protocol every agent speaks."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.vector import SyncVectorEnv
from safetensors import SafetensorError
from stable_baselines3.common.logger import Logger

from cee_gym.agents import AGENTS
from cee_gym.errors import CeeGymError, did_you_mean, first_line
from cee_gym.problem import ExitTable

if TYPE_CHECKING:
    from cee_gym.agents.at_alpha import AtAlpha

Floats = npt.NDArray[np.float32]
AnyEnv = gym.Env[Any, Any] | gym.vector.VectorEnv[Any, Any, Any]

VERSION = 1


@dataclass(frozen=True)
class Decider:
    """How an agent decides while a batch is running, one layer after another.

    Attributes:
        parts: of an observation that it is shown, in order, D wide in all.
        scores: given observations float32 `[n, D]`, or the paths `[n, t, D]` where the agent has a
            memory, and the layer, from 1: float32 `[n]` or `[n, 1]`. Several threads may ask.
        least: those leave whose score is above it, both as float32.
        alpha: the price it is shown, where that is one of the parts.
    """

    parts: tuple[str, ...]
    scores: Callable[[torch.Tensor, int], torch.Tensor]
    least: float
    alpha: float

    def leave(self, observations: torch.Tensor, layer: int) -> list[bool]:
        """Which of n texts leave; it waits for the device of the observations."""
        scores = self.scores(observations, layer).flatten().tolist()
        # Compared on the host: on the device it would be one more operation next to a small layer.
        least = float(np.float32(self.least))
        return [score > least for score in scores]


class Agent(ABC):
    """Decides when to leave.

    Attributes:
        name: on the command line.
        layout: where each part of an observation stands, in the environment the agent learned in.
        alpha_range: the lowest and highest price of one layer there.
        model: the fingerprint of the weights whose states it learned on last; None where it is not
            known.
        has_memory: whether it decides on the path, and not on the last step of it alone.
    """

    name: ClassVar[str]
    has_memory: bool = True
    layout: dict[str, slice]
    alpha_range: tuple[float, float]
    model: str | None = None
    _recording: Path | None = None

    def bind(self, env: AnyEnv) -> None:
        """Takes what an environment shows, at the first call; later refuses to be shown another.

        Raises:
            CeeGymError: if the environment is none of ours, its rewards are vectors, its
                observations lack a part the agent needs, or they are not those it learned on.
        """
        layout, alpha_range = _shown(env)
        check_scalar_reward(env)
        self.check_observe(layout)
        if not hasattr(self, "layout"):
            self.layout, self.alpha_range = layout, alpha_range
        check_layout(self, layout)
        if "alpha" in layout and alpha_range != self.alpha_range:
            raise CeeGymError(
                f"this {self.name} agent learned with alpha from {_span(self.alpha_range)}, not "
                f"{_span(alpha_range)}: give the same range"
            )
        if (table := table_of(env)) is not None:
            self.model = table.trace.header.model
            self._recording = table.trace.path.parent

    def check_observe(self, parts: Collection[str]) -> None:  # noqa: B027
        """Refuses observations made of these parts, if the agent cannot learn from them.

        Raises:
            CeeGymError: naming what is missing.
        """

    @abstractmethod
    def learn(
        self,
        env: AnyEnv,
        total_timesteps: int,
        *,
        logger: Logger | None = None,
        progress_bar: bool = False,
    ) -> Self:
        """Learns in an environment; called again, goes on from where it is.

        Args:
            env: a scalar or vector environment of cee-gym.
            total_timesteps: decisions to learn from.
            logger: takes the learning curves.
            progress_bar: show progress and time left.
        """

    @abstractmethod
    def exit_probability(self, observations: Floats) -> Floats:
        """How much the agent is for leaving now, float32 `[n]` in [0, 1]; it leaves above 1/2.

        Args:
            observations: float32 `[n, t, D]`, each row the path of one instance so far. Agents
                without memory read the last step.
        """

    @abstractmethod
    def exit_probabilities(self, observations: Floats) -> Floats:
        """`exit_probability` at every layer of whole traces, `[N, L]`, given `[N, L, D]`."""

    def exit_layers(self, num_layers: int, threshold: float = 0.5) -> Sequence[int]:
        """The layers before the last, from 1, at which its score can pass a threshold."""
        return range(1, num_layers)

    def decider(self, threshold: float, device: torch.device) -> Decider:
        """What says, layer by layer, whose score passes a threshold.

        It need not follow what the agent learns after this.

        Args:
            threshold: on `exit_probability`.
            device: of the observations; the answers are there or on the host.
        """

        def scores(observations: torch.Tensor, layer: int) -> torch.Tensor:
            paths = observations if self.has_memory else observations[:, None]
            return torch.from_numpy(self.exit_probability(paths.cpu().numpy()))

        return Decider(self.observe, scores, threshold, self.alpha_range[0])

    def at(self, *, alpha: float) -> "AtAlpha":
        """This agent held at one price of a layer, if it learned at every price of a range.

        Raises:
            CeeGymError: if it did not, or not at this one.
        """
        from cee_gym.agents.at_alpha import AtAlpha

        return AtAlpha(self, alpha)

    def for_budget(self, *, saved_layers: float, on: AnyEnv | None = None) -> "AtAlpha":
        """This agent at the lowest price where it saves at least this share of the layers.

        Args:
            saved_layers: `1 - mean(exit_layer)/L`, in [0, 1).
            on: a recorded environment of the split to choose on; None for the calibration split of
                the recording it has just learned on.

        Raises:
            CeeGymError: if it did not learn at every price of a range, saves less at any, or there
                is no split to choose on.
        """
        from cee_gym.agents.at_alpha import check_conditioned, for_budget
        from cee_gym.envs import EarlyExitEnv

        check_conditioned(self)
        if on is None:
            if self._recording is None:
                raise CeeGymError(
                    f"this {self.name} agent has not learned in a recorded environment just now: "
                    "give on=, an environment of split 'calibration'"
                )
            on = EarlyExitEnv(
                trace=self._recording,
                split="calibration",
                alpha=self.alpha_range,
                observe=self.observe,
            )
        table = table_of(on)
        if table is None:
            raise CeeGymError(f"for_budget chooses on a recorded environment, not on {on}")
        return for_budget(self, saved_layers, table)

    @property
    def observe(self) -> tuple[str, ...]:
        """The parts of an observation the agent was trained on, in order."""
        return tuple(self.layout)

    @abstractmethod
    def hyperparameters(self) -> dict[str, Any]:
        """What to construct the agent with, JSON-able."""

    @abstractmethod
    def save_weights(self, path: Path) -> None:
        """Writes what was learned, as safetensors."""

    @abstractmethod
    def load_weights(self, path: Path) -> None:
        """Reads what `save_weights` wrote; `layout` is set already."""

    def save(self, directory: str | Path) -> None:
        """Writes the agent, `agent.json` and `agent.safetensors`."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self.save_weights(directory / "agent.safetensors")
        (directory / "agent.json").write_text(json.dumps(self.description(), indent=1) + "\n")

    def description(self) -> dict[str, Any]:
        """All of the agent but its weights, JSON-able."""
        return {
            "agent": self.name,
            "version": VERSION,
            "layout": {part: [place.start, place.stop] for part, place in self.layout.items()},
            "alpha_range": list(self.alpha_range),
            "model": self.model,
            "hyperparameters": self.hyperparameters(),
        }

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


def agent_class(name: str) -> type[Agent]:
    """The agent of ours with this command-line name.

    Raises:
        CeeGymError: if there is none; names the nearest ones.
    """
    if name not in AGENTS:
        names = [*AGENTS, "sb3:ALGORITHM", "sb3-contrib:ALGORITHM"]
        raise CeeGymError(f"unknown agent {name!r}: {did_you_mean(name, names)}")
    module, _, attribute = AGENTS[name].partition(":")
    found: type[Agent] = getattr(import_module(module), attribute)
    return found


def make_agent(name: str, **hyperparameters: Any) -> Agent:
    """An agent that has not learned yet.

    Args:
        name: on the command line; `"sb3:ppo"`, `"sb3-contrib:trpo"` and the like are the algorithms
            of Stable-Baselines3 and sb3-contrib.
        **hyperparameters: those that differ from their defaults.

    Raises:
        CeeGymError: if there is no such agent or hyper-parameter, or a value is out of range.
    """
    known = hyperparameter_defaults(name)
    for key in hyperparameters:
        if key not in known:
            hint = did_you_mean(key, list(known))
            raise CeeGymError(f"{name} has no hyper-parameter {key!r}: {hint}")
    if ":" in name:
        from cee_gym.agents.sb3_agent import SB3Agent

        return SB3Agent(name, **hyperparameters)
    return agent_class(name)(**hyperparameters)


def hyperparameter_defaults(name: str) -> dict[str, Any]:
    """The hyper-parameters of an agent and their defaults, all JSON-able.

    Raises:
        CeeGymError: if there is no such agent.

    >>> hyperparameter_defaults("confidence")
    {'threshold': 0.9}
    """
    if ":" in name:
        from cee_gym.agents.sb3_agent import defaults

        return defaults(name)
    return agent_class(name)().hyperparameters()


def load_agent(directory: str | Path) -> Agent:
    """Reads an agent of any class.

    Raises:
        CeeGymError: if there is none, it is damaged, or it is of another version.
    """
    directory = Path(directory)
    try:
        description = json.loads((directory / "agent.json").read_text())
        version, name = description["version"], description["agent"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CeeGymError(f"there is no agent at {directory} ({error})") from None
    if version != VERSION:
        raise CeeGymError(f"the agent at {directory} is of version {version}, not {VERSION}")
    try:
        agent = make_agent(name, **description["hyperparameters"])
        agent.layout = {part: slice(*place) for part, place in description["layout"].items()}
        agent.alpha_range = tuple(description["alpha_range"])
        agent.model = description["model"]
        agent.load_weights(directory / "agent.safetensors")
    except (OSError, SafetensorError, AttributeError, KeyError, TypeError, RuntimeError) as error:
        raise CeeGymError(
            f"the agent at {directory} is damaged ({first_line(error)}): train it again"
        ) from error
    if "held" in description:
        from cee_gym.agents.at_alpha import AtAlpha

        return AtAlpha(agent, **description["held"])
    return agent


def check_layout(agent: Agent, layout: Mapping[str, slice]) -> None:
    """Refuses observations that are made of other parts than the agent's.

    Raises:
        CeeGymError: naming both.
    """
    if dict(layout) != agent.layout:
        sizes = [
            ", ".join(f"{part} [{place.stop - place.start}]" for part, place in parts.items())
            for parts in (agent.layout, layout)
        ]
        raise CeeGymError(
            f"this {agent.name} agent reads {sizes[0]}, but the observations are {sizes[1]}: it "
            "was trained on another backbone, depth or choice of parts"
        )


def check_model(agent: Agent, model: str | None) -> None:
    """Refuses to let an agent decide about the states of another model.

    Args:
        agent: what decides.
        model: the fingerprint of the weights; None where it is not known.

    Raises:
        CeeGymError: naming both.
    """
    if model is not None and agent.model is not None and model != agent.model:
        raise CeeGymError(
            f"this {agent.name} agent learned on the states of model {agent.model}, not {model}: "
            "their numbers mean other things, so train an agent on this model"
        )


def check_scalar_reward(env: AnyEnv) -> None:
    """Refuses an environment with vector rewards.

    Raises:
        CeeGymError: saying how to make it.
    """
    if hasattr(env.unwrapped, "reward_space"):
        raise CeeGymError(
            "the rewards of this environment are vectors, and the agents here take numbers: make "
            "it with reward='scalar', which weighs them by alpha"
        )


def table_of(env: AnyEnv) -> ExitTable | None:
    """The table behind a recorded environment, None for any other."""
    table: ExitTable | None = getattr(env.unwrapped, "table", None)
    return table


def _shown(env: AnyEnv) -> tuple[dict[str, slice], tuple[float, float]]:
    """Where each part of an observation stands, and the range of alpha."""
    inner: Any = env.unwrapped
    try:
        if isinstance(inner, SyncVectorEnv):
            inner = inner.envs[0].unwrapped
        return dict(inner.layout), inner.alpha_range
    except AttributeError:
        raise CeeGymError(f"agents learn in the environments of cee-gym, not in {env}") from None


def _span(alpha_range: tuple[float, float]) -> str:
    return f"{alpha_range[0]:g} to {alpha_range[1]:g}"
