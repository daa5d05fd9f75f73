"""The rules of the literature, as agents: nothing is learned, and a threshold is all there is.

| agent | exits at the first layer where | source |
|---|---|---|
| `Confidence` | the largest class probability passes a threshold | Schwartz et al. 2020 |
| `Entropy` | their entropy, divided by log C, falls below a threshold | DeeBERT, Xin et al. 2020 |
| `Patience` | p classifiers in a row agree | PABEE, Zhou et al. 2020 |
| `PCEE` | p classifiers in a row are confident | PCEE-BERT, Zhang et al. 2022 |
| `Saturation` | the hidden state hardly changes any more | CALM, Schuster et al. 2022 |
| `FixedLayer` | it is layer k | |
| `RandomExit` | a coin says so | |

Scores are graded, so that every rule has a whole curve: they are above 1/2 exactly where the rule
says exit, and the higher the more clearly it does.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from safetensors.torch import save_file
from stable_baselines3.common.logger import Logger

from cee_gym.agents.base import Agent, AnyEnv, Decider, Floats
from cee_gym.errors import CeeGymError, check_number


class Rule(Agent):
    """What all rules share: they read some parts of the observation; most learn nothing."""

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
        """The columns of one part, `[..., width]`.

        Raises:
            CeeGymError: if the agent has not learned where they stand.
        """
        if not hasattr(self, "layout"):
            raise CeeGymError(f"this {self.name} agent has seen no environment: call learn first")
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
    has_memory = False
    needs: ClassVar[tuple[str, ...]] = ("confidence",)

    def __init__(self, *, threshold: float = 0.9) -> None:
        check_number("threshold", threshold, 0, 1)
        self.threshold = threshold

    def hyperparameters(self) -> dict[str, Any]:
        """What to construct the agent with, JSON-able."""
        return {"threshold": self.threshold}

    def exit_probabilities(self, observations: Floats) -> Floats:
        """See `Agent.exit_probabilities`."""
        return graded(self.part(observations, "confidence")[..., 0], self.threshold)

    def decider(self, threshold: float, device: torch.device) -> Decider:
        """See `Agent.decider`."""
        least = ungraded(threshold, self.threshold)
        return Decider(("confidence",), lambda seen, layer: seen, least, 0.0)


class Entropy(Rule):
    """Leaves where the classifier's entropy is low.

    Args:
        threshold: on the entropy divided by log C, so that it means the same for any number of
            classes.
    """

    name: ClassVar[str] = "entropy"
    has_memory = False
    needs: ClassVar[tuple[str, ...]] = ("entropy",)

    def __init__(self, *, threshold: float = 0.3) -> None:
        check_number("threshold", threshold, 0, 1)
        self.threshold = threshold

    def hyperparameters(self) -> dict[str, Any]:
        """What to construct the agent with, JSON-able."""
        return {"threshold": self.threshold}

    def exit_probabilities(self, observations: Floats) -> Floats:
        """See `Agent.exit_probabilities`."""
        return graded(-self.part(observations, "entropy")[..., 0], -self.threshold, low=-1, high=0)

    def decider(self, threshold: float, device: torch.device) -> Decider:
        """See `Agent.decider`."""
        least = ungraded(threshold, -self.threshold, low=-1, high=0)
        return Decider(("entropy",), lambda seen, layer: -seen, least, 0.0)


class Patience(Rule):
    """Leaves when some classifiers in a row agree.

    Args:
        patience: how many, the present one included; at least 1. (PABEE counts agreements between
            neighbours, of which there is one less.)
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
        return _counted(run, self.patience)

    def exit_layers(self, num_layers: int, threshold: float = 0.5) -> Sequence[int]:
        """See `Agent.exit_layers`: as many classifiers as it takes must have been asked."""
        return _layers_that_count(num_layers, self.patience, threshold)


class PCEE(Rule):
    """Leaves when some classifiers in a row are confident, whatever they predict.

    Confidence is low entropy, as in the paper. Its curve varies the threshold and keeps the
    patience.

    Args:
        threshold: on the entropy divided by log C.
        patience: how many, the present one included; at least 1.
    """

    name: ClassVar[str] = "pcee"
    needs: ClassVar[tuple[str, ...]] = ("entropy",)

    def __init__(self, *, threshold: float = 0.3, patience: int = 2) -> None:
        check_number("threshold", threshold, 0, 1)
        check_number("patience", patience, 1)
        self.threshold = threshold
        self.patience = patience

    def hyperparameters(self) -> dict[str, Any]:
        """What to construct the agent with, JSON-able."""
        return {"threshold": self.threshold, "patience": self.patience}

    def exit_probabilities(self, observations: Floats) -> Floats:
        """See `Agent.exit_probabilities`."""
        entropy = self.part(observations, "entropy")[..., 0]
        # Before layer 1 nothing is certain.
        padded = np.pad(entropy, ((0, 0), (self.patience - 1, 0)), constant_values=1.0)
        worst = sliding_window_view(padded, self.patience, axis=1).max(axis=-1)
        return graded(-worst, -self.threshold, low=-1, high=0)

    def exit_layers(self, num_layers: int, threshold: float = 0.5) -> Sequence[int]:
        """See `Agent.exit_layers`: as many classifiers as it takes must have been asked."""
        before = graded(np.array(-1.0), -self.threshold, low=-1, high=0)
        return range(1 if before > threshold else self.patience, num_layers)


class Saturation(Rule):
    """Leaves where the hidden state is nearly that of the layer before.

    It never leaves at layer 1, which has none before it.

    Args:
        threshold: on the cosine similarity of the two, -1 to 1.
    """

    name: ClassVar[str] = "saturation"
    needs: ClassVar[tuple[str, ...]] = ("hidden",)

    def __init__(self, *, threshold: float = 0.9) -> None:
        check_number("threshold", threshold, -1, 1)
        self.threshold = threshold

    def hyperparameters(self) -> dict[str, Any]:
        """What to construct the agent with, JSON-able."""
        return {"threshold": self.threshold}

    def exit_probabilities(self, observations: Floats) -> Floats:
        """See `Agent.exit_probabilities`."""
        hidden = self.part(observations, "hidden")
        norm = np.sqrt(np.vecdot(hidden, hidden))
        scale = norm[:, 1:] * norm[:, :-1]
        scale[scale == 0] = 1
        similarity = np.full(norm.shape, -1.0, dtype=np.float32)
        similarity[:, 1:] = (np.vecdot(hidden[:, 1:], hidden[:, :-1]) / scale).clip(-1, 1)
        return graded(similarity, self.threshold, low=-1)

    def exit_layers(self, num_layers: int, threshold: float = 0.5) -> Sequence[int]:
        """See `Agent.exit_layers`: layer 1 has none before it to resemble."""
        first = graded(np.array(-1.0), self.threshold, low=-1)
        return range(1 if first > threshold else 2, num_layers)


class FixedLayer(Rule):
    """Leaves at the same layer always.

    Args:
        layer: from 1.
    """

    name: ClassVar[str] = "fixed-layer"
    has_memory = False
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
        return _counted(layer, self.exit_layer)

    def exit_layers(self, num_layers: int, threshold: float = 0.5) -> Sequence[int]:
        """See `Agent.exit_layers`: after the first of them nobody is left."""
        return _layers_that_count(num_layers, self.exit_layer, threshold)[:1]


class RandomExit(Rule):
    """Leaves with the same probability everywhere.

    Its score is drawn anew at each call, so it exits at random by the rule `score > 1/2` too.

    Args:
        probability: of leaving.
        seed: of the draws.
    """

    name: ClassVar[str] = "random"
    has_memory = False
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
        return graded(1 - drawn, 1 - self.probability)


def graded(values: np.ndarray, threshold: float, *, low: float = 0, high: float = 1) -> Floats:
    """Values moved from [low, high] to [0, 1] so that the threshold comes to 1/2.

    Their order stays, and exactly those above the threshold come above 1/2.
    """
    values = values.astype(np.float64)
    scores = np.interp(values, [low, threshold, high], [0, 0.5, 1])
    # Rounded to float32, one just above 1/2 would be 1/2.
    above = scores.clip(np.nextafter(np.float32(0.5), np.float32(1)))
    return np.where(values > threshold, above, scores.clip(max=0.5)).astype(np.float32)


def ungraded(score: float, threshold: float, *, low: float = 0, high: float = 1) -> float:
    """The value above which values have a higher score than this by `graded`."""
    if score >= 1:
        return np.inf
    if score < 0.5 and threshold == low:
        return -np.inf  # no value is below the threshold, so no score is below 1/2
    return float(np.interp(score, [0, 0.5, 1], [low, threshold, high]))


def _counted(count: np.ndarray, enough: int) -> Floats:
    """A count from 0 up as a score that passes 1/2 where it is enough, and always grows."""
    return (count / (count + enough - 0.5)).astype(np.float32)


def _layers_that_count(num_layers: int, enough: int, threshold: float) -> list[int]:
    """The layers before the last of whose number, as a count, the score passes a threshold."""
    layers = np.arange(1, num_layers)
    return layers[_counted(layers, enough) > threshold].tolist()
