"""The rules of the literature, as agents: nothing is learned, and a threshold is all there is.

| agent | exits at the first layer where | source |
|---|---|---|
| `Confidence` | the largest class probability passes a threshold | Schwartz et al. 2020 |
| `Entropy` | their entropy, divided by log C, falls below a threshold | DeeBERT, Xin et al. 2020 |
| `Patience` | p classifiers in a row agree | PABEE, Zhou et al. 2020 |
| `FixedLayer` | it is layer k | |
| `RandomExit` | a coin says so | |

Scores are graded, so that every rule has a whole curve: they pass 1/2 where the rule says exit.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from safetensors.torch import save_file
from stable_baselines3.common.logger import Logger

from cee_gym.agents.base import Agent, AnyEnv, Floats
from cee_gym.errors import CeeGymError, check_number


class Rule(Agent):
    """What all rules share: they need some parts of the observation, and learn nothing."""

    needs: ClassVar[tuple[str, ...]]

    def check_observe(self, parts: Collection[str]) -> None:
        """See `Agent.check_observe`."""
        if missing := [part for part in self.needs if part not in parts]:
            raise CeeGymError(f"{self.name} reads {', '.join(missing)}: observe it")

    def learn(
        self,
        env: AnyEnv,
        total_timesteps: int = 0,
        *,
        logger: Logger | None = None,
        progress_bar: bool = False,
    ) -> Self:
        """Takes the layout of the observations; there is nothing else to learn."""
        self.bind(env)
        return self

    def exit_probability(self, observations: Floats) -> Floats:
        """See `Agent.exit_probability`."""
        return self.exit_probabilities(observations)[:, -1]

    def part(self, observations: Floats, name: str) -> Floats:
        """The columns of one part, `[..., width]`."""
        return observations[..., self.layout[name]]

    def save_weights(self, path: Path) -> None:
        """Writes an empty file: a rule has no weights."""
        save_file({"none": torch.zeros(0)}, path)

    def load_weights(self, path: Path) -> None:
        """Reads nothing."""


class Confidence(Rule):
    """Leaves where the classifier is confident.

    Args:
        threshold: on the largest class probability.
    """

    name: ClassVar[str] = "confidence"
    needs: ClassVar[tuple[str, ...]] = ("confidence",)

    def __init__(self, *, threshold: float = 0.9) -> None:
        check_number("threshold", threshold, 0, 1)
        self.threshold = threshold

    def hyperparameters(self) -> dict[str, Any]:
        """What to construct the agent with, JSON-able."""
        return {"threshold": self.threshold}

    def exit_probabilities(self, observations: Floats) -> Floats:
        """See `Agent.exit_probabilities`."""
        return _graded(self.part(observations, "confidence")[..., 0], self.threshold)


class Entropy(Rule):
    """Leaves where the classifier's entropy is low.

    Args:
        threshold: on the entropy divided by log C, so that it means the same for any number of
            classes.
    """

    name: ClassVar[str] = "entropy"
    needs: ClassVar[tuple[str, ...]] = ("entropy",)

    def __init__(self, *, threshold: float = 0.3) -> None:
        check_number("threshold", threshold, 0, 1)
        self.threshold = threshold

    def hyperparameters(self) -> dict[str, Any]:
        """What to construct the agent with, JSON-able."""
        return {"threshold": self.threshold}

    def exit_probabilities(self, observations: Floats) -> Floats:
        """See `Agent.exit_probabilities`."""
        return _graded(1 - self.part(observations, "entropy")[..., 0], 1 - self.threshold)


class Patience(Rule):
    """Leaves when some classifiers in a row agree.

    Args:
        patience: how many, the present one included; at least 1.
    """

    name: ClassVar[str] = "patience"
    needs: ClassVar[tuple[str, ...]] = ("probs",)

    def __init__(self, *, patience: int = 3) -> None:
        check_number("patience", patience, 1)
        self.patience = patience

    def hyperparameters(self) -> dict[str, Any]:
        """What to construct the agent with, JSON-able."""
        return {"patience": self.patience}

    def exit_probabilities(self, observations: Floats) -> Floats:
        """See `Agent.exit_probabilities`."""
        prediction = self.part(observations, "probs").argmax(axis=-1)
        layers = np.arange(prediction.shape[1])
        changed = np.ones(prediction.shape, dtype=bool)
        changed[:, 1:] = prediction[:, 1:] != prediction[:, :-1]
        # Layers since the prediction last changed, the present one included.
        run = layers + 1 - np.maximum.accumulate(np.where(changed, layers, 0), axis=1)
        return np.minimum(run / (2 * self.patience - 1), 1.0).astype(np.float32)


class FixedLayer(Rule):
    """Leaves at the same layer always.

    Args:
        layer: from 1.
    """

    name: ClassVar[str] = "fixed-layer"
    needs: ClassVar[tuple[str, ...]] = ("layer",)

    def __init__(self, *, layer: int = 1) -> None:
        check_number("layer", layer, 1)
        self.exit_layer = layer

    def hyperparameters(self) -> dict[str, Any]:
        """What to construct the agent with, JSON-able."""
        return {"layer": self.exit_layer}

    def exit_probabilities(self, observations: Floats) -> Floats:
        """See `Agent.exit_probabilities`."""
        layer = self.part(observations, "layer").argmax(axis=-1) + 1
        return (layer / (2 * self.exit_layer - 1)).clip(0, 1).astype(np.float32)


class RandomExit(Rule):
    """Leaves with the same probability everywhere.

    Its score is drawn anew at each call, so it exits at random by the rule `score > 1/2` too.

    Args:
        probability: of leaving.
        seed: of the draws.
    """

    name: ClassVar[str] = "random"
    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *, probability: float = 0.5, seed: int = 0) -> None:
        check_number("probability", probability, 0, 1)
        check_number("seed", seed, 0)
        self.probability = probability
        self.seed = seed
        self._rng = np.random.default_rng(seed)

    def hyperparameters(self) -> dict[str, Any]:
        """What to construct the agent with, JSON-able."""
        return {"probability": self.probability, "seed": self.seed}

    def exit_probabilities(self, observations: Floats) -> Floats:
        """See `Agent.exit_probabilities`."""
        drawn = self._rng.random(observations.shape[:2])
        return _graded(1 - drawn, 1 - self.probability)


def _graded(values: np.ndarray, threshold: float) -> Floats:
    """Values in [0, 1] moved so that the threshold comes to 1/2; their order stays."""
    below = values / (2 * max(threshold, 1e-12))
    above = 0.5 + (values - threshold) / (2 * max(1 - threshold, 1e-12))
    return np.where(values > threshold, above, np.minimum(below, 0.5)).astype(np.float32)
