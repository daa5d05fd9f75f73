"""Scores: how much speaks for leaving a state, and how a running batch is decided by them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from cee_gym.errors import CeeGymError
from cee_gym.observation import Layout
from cee_gym.registry import Registry

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.float32]

SCORES: Registry[type["Score"]] = Registry(
    "exit policy",
    {
        "confidence": "cee_gym.policies.rules:Confidence",
        "margin": "cee_gym.policies.rules:Margin",
        "entropy": "cee_gym.policies.rules:Entropy",
        "patience": "cee_gym.policies.rules:Patience",
        "pcee": "cee_gym.policies.rules:PCEE",
        "saturation": "cee_gym.policies.rules:Saturation",
        "fixed-layer": "cee_gym.policies.rules:FixedLayer",
        "random": "cee_gym.policies.rules:RandomExit",
        "linear": "cee_gym.policies.linear:LinearScore",
        "per-layer": "cee_gym.policies.per_layer:PerLayerScore",
        "sb3": "cee_gym.policies.sb3:SB3Score",
    },
)


def register_policy(name: str) -> Callable[[type["Score"]], type["Score"]]:
    """Makes a class a score that policies are saved, loaded and trained by name with."""

    def register(score: type["Score"]) -> type["Score"]:
        score.name = name
        SCORES.add(name, score)
        return score

    return register


class Score(ABC):
    """How much speaks for leaving a state, in [0, 1].

    Attributes:
        name: by which it is saved and loaded.
        reads: the parts of an observation it reads; empty for all that there are.
        has_memory: whether it reads the states before the present one too.
        is_probability: whether it is the probability of leaving of a stochastic policy.
    """

    name: ClassVar[str]
    reads: ClassVar[tuple[str, ...]] = ()
    has_memory: ClassVar[bool] = False
    is_probability: bool = False

    @abstractmethod
    def scores(self, observations: Floats, layout: Layout) -> Floats:
        """The score of each state, float32 `[N, t]`.

        Args:
            observations: float32 `[N, t, D]`, t states in a row of N instances. The first is that
                of layer 1 where the score has a memory.
            layout: the columns of each part.
        """

    def exit_layers(self, num_layers: int, threshold: float) -> Sequence[int]:
        """The layers before the last, from 1, at which the score can pass a threshold."""
        return range(1, num_layers)

    def check_observe(self, parts: Collection[str]) -> None:
        """Refuses observations that lack a part.

        Raises:
            CeeGymError: naming it.
        """
        if missing := [part for part in self.reads if part not in parts]:
            raise CeeGymError(f"{self.name} reads {', '.join(missing)}: observe it")

    def decider(
        self, layout: Layout, threshold: float, device: "torch.device"
    ) -> "tuple[tuple[str, ...], LayerScores, float] | None":
        """A faster way to decide while a batch is running, where there is one.

        Returns:
            The parts of an observation it is to be shown, what scores them, and the value above
            which states are left; see `Decider`.
        """
        return None

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What `restore` needs beside the tensors, JSON-able."""

    def tensors(self) -> "dict[str, torch.Tensor]":
        """What was learned, by name."""
        return {}

    @classmethod
    @abstractmethod
    def restore(
        cls,
        settings: Mapping[str, Any],
        tensors: "dict[str, torch.Tensor]",
        layout: Layout,
        alpha_range: tuple[float, float],
    ) -> Self:
        """The score that gave these settings and tensors, over observations of this layout."""


# From observations `[n, D]`, or paths `[n, t, D]` for a score with a memory, on the device, and the
# layer, from 1, to n scores. Several threads may ask.
LayerScores = Callable[["torch.Tensor", int], "torch.Tensor"]


@dataclass(frozen=True)
class Decider:
    """How a policy decides while a batch is running, one layer after another.

    Attributes:
        parts: of an observation that it is shown, in order.
        scores: see `LayerScores`.
        least: those leave whose score is above it, both as float32.
        alpha: the price it is shown, where that is one of the parts.
    """

    parts: tuple[str, ...]
    scores: LayerScores
    least: float
    alpha: float

    def leave(self, observations: "torch.Tensor", layer: int) -> list[bool]:
        """Which of n texts leave; it waits for the device of the observations."""
        scores = self.scores(observations, layer).flatten().tolist()
        # Compared on the host: on the device it would be one more operation next to a small layer.
        least = float(np.float32(self.least))
        return [score > least for score in scores]
