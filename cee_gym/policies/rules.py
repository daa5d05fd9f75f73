"""The rules of the literature: policies with nothing to learn but a number, their threshold.

| rule | leaves at the first layer where | source |
|---|---|---|
| `confidence` | the largest class probability passes a threshold | Schwartz et al. 2020 |
| `margin` | the two largest are further apart than a threshold | CALM, Schuster et al. 2022 |
| `entropy` | their entropy falls below a threshold | DeeBERT, Xin et al. 2020 |
| `patience` | p classifiers in a row agree | PABEE, Zhou et al. 2020 |
| `pcee` | p classifiers in a row are confident | PCEE-BERT, Zhang et al. 2022 |
| `saturation` | the hidden state hardly changes any more | CALM, Schuster et al. 2022 |
| `fixed-layer` | it is layer k | |
| `random` | a coin says so | |

A module of your own adds one, which `--agent MODULE:NAME` then trains, evaluates and deploys:

    @register_policy("ratio")
    @dataclass(kw_only=True)
    class Ratio(Rule):
        threshold: float = number(0.5, 0, 1)
        reads = ("probs",)

        def scores(self, observations, layout):
            best = np.sort(observations[..., layout["probs"]], axis=-1)
            return 1 - best[..., -2] / best[..., -1]
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from cee_gym.observation import Layout, Sizes, layout_of
from cee_gym.policies.base import ExitPolicy
from cee_gym.policies.score import Floats, LayerScores, Score, register_policy
from cee_gym.settings import MOST_SEED, Range, check_settings, number, settings_of

if TYPE_CHECKING:
    import torch

MOST_LAYERS = 1000  # more than any backbone has


class Observed(Protocol):
    """Where observations come from: a `Problem`, or an environment of cee-gym."""

    layout: Layout


@dataclass(kw_only=True)
class Rule(Score):
    """What all rules share: a dataclass of their settings, one of which gives the threshold.

    Attributes:
        chosen: the settings that an agent chooses by the mean return, where they are not given:
            first the one that the threshold on the score stands for, then those of `to_try`.
    """

    chosen: ClassVar[tuple[str, ...]] = ("threshold",)

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def least(self) -> float:
        """The score above which the rule leaves by its own settings."""
        threshold: float = self.threshold  # type: ignore[attr-defined]
        return threshold

    def policy(self, observed: Observed) -> ExitPolicy:
        """The exit policy that follows this rule.

        Args:
            observed: a problem or an environment, whose observations it is to read.

        Raises:
            CeeGymError: if they lack a part it reads.
        """
        self.check_observe(observed.layout)
        return ExitPolicy(self, dict(observed.layout), float(self.least))

    def to_try(self, num_layers: int) -> "list[Self]":
        """The rule with each value of the other settings to choose."""
        return [self]

    def settings(self) -> dict[str, Any]:
        """The arguments of the rule."""
        return settings_of(self)

    @classmethod
    def restore(
        cls,
        settings: Mapping[str, Any],
        tensors: "dict[str, torch.Tensor]",
        layout: Layout,
        alpha_range: tuple[float, float],
    ) -> Self:
        """The rule with these arguments."""
        return cls(**settings)


def full_depth(sizes: Sizes) -> ExitPolicy:
    """The policy that never leaves before the last layer."""
    rule = FixedLayer(layer=sizes.num_layers)
    return ExitPolicy(rule, layout_of(("layer",), sizes), float(rule.least))


@register_policy("confidence")
@dataclass(kw_only=True)
class Confidence(Rule):
    """Leaves where the exit is confident.

    Args:
        threshold: on the largest class probability.
    """

    threshold: float = number(0.9, 0, 1, search=Range(0.0, 1.0))
    reads = ("confidence",)

    def scores(self, observations: Floats, layout: Layout) -> Floats:
        """The confidence."""
        return observations[..., layout["confidence"].start]

    def decider(
        self, layout: Layout, threshold: float, device: "torch.device"
    ) -> "tuple[tuple[str, ...], LayerScores, float]":
        """The same without leaving the device."""
        return self.reads, lambda confidence, layer: confidence, threshold


@register_policy("margin")
@dataclass(kw_only=True)
class Margin(Rule):
    """Leaves where the exit's first choice is far ahead of its second.

    Args:
        threshold: on the difference of the two largest class probabilities. Its default is what the
            default of `confidence` comes to with two classes.
    """

    threshold: float = number(0.8, 0, 1, search=Range(0.0, 1.0))
    reads = ("margin",)

    def scores(self, observations: Floats, layout: Layout) -> Floats:
        """The margin."""
        return observations[..., layout["margin"].start]

    def decider(
        self, layout: Layout, threshold: float, device: "torch.device"
    ) -> "tuple[tuple[str, ...], LayerScores, float]":
        """The same without leaving the device."""
        return self.reads, lambda margin, layer: margin, threshold


@register_policy("entropy")
@dataclass(kw_only=True)
class Entropy(Rule):
    """Leaves where the exit's entropy is low.

    Args:
        threshold: on the entropy divided by log C, so that it means the same for any number of
            classes.
    """

    threshold: float = number(0.3, 0, 1, search=Range(0.0, 1.0))
    reads = ("entropy",)

    @property
    def least(self) -> float:
        """One minus the threshold."""
        return 1 - self.threshold

    def scores(self, observations: Floats, layout: Layout) -> Floats:
        """One minus the entropy divided by log C."""
        return 1 - observations[..., layout["entropy"].start]

    def decider(
        self, layout: Layout, threshold: float, device: "torch.device"
    ) -> "tuple[tuple[str, ...], LayerScores, float]":
        """The same without leaving the device."""
        return self.reads, lambda entropy, layer: 1 - entropy, threshold


@register_policy("patience")
@dataclass(kw_only=True)
class Patience(Rule):
    """Leaves when some exits in a row agree.

    Args:
        patience: how many, the present one included. (PABEE counts agreements between neighbours,
            of which there is one less.)
    """

    patience: int = number(3, 1, MOST_LAYERS, search=Range(1, 6))
    chosen = ("patience",)
    reads = ("probs",)
    has_memory = True

    @property
    def least(self) -> float:
        """Between the scores of one less and of this many in a row."""
        return _counted(self.patience - 0.5)

    def scores(self, observations: Floats, layout: Layout) -> Floats:
        """`n / (n + 1)` for n exits in a row, up to the present one, that agree."""
        prediction = observations[..., layout["probs"]].argmax(axis=-1)
        layers = np.arange(prediction.shape[1])
        changed = np.ones(prediction.shape, dtype=bool)
        changed[:, 1:] = prediction[:, 1:] != prediction[:, :-1]
        # Layers since the prediction last changed, the present one included.
        run = layers + 1 - np.maximum.accumulate(np.where(changed, layers, 0), axis=1)
        return _counted(run)

    def exit_layers(self, num_layers: int, threshold: float) -> Sequence[int]:
        """As many exits as it takes must have been asked."""
        layers = np.arange(1, num_layers)
        return layers[_counted(layers) > np.float32(threshold)].tolist()


@register_policy("pcee")
@dataclass(kw_only=True)
class PCEE(Rule):
    """Leaves when some exits in a row are confident, whatever they predict.

    Confidence is low entropy, as in the paper. Another threshold keeps the patience.

    Args:
        threshold: on the entropy divided by log C.
        patience: how many, the present one included.
    """

    threshold: float = number(0.3, 0, 1, search=Range(0.0, 1.0))
    patience: int = number(2, 1, MOST_LAYERS, search=Range(1, 6))
    chosen = ("threshold", "patience")
    reads = ("entropy",)
    has_memory = True

    def to_try(self, num_layers: int) -> list[Self]:
        """Every patience that fits before the last layer."""
        return [replace(self, patience=patience) for patience in range(1, max(2, num_layers))]

    @property
    def least(self) -> float:
        """One minus the threshold."""
        return 1 - self.threshold

    def scores(self, observations: Floats, layout: Layout) -> Floats:
        """One minus the highest entropy, divided by log C, of the last exits."""
        entropy = observations[..., layout["entropy"].start]
        # Before layer 1 nothing is certain.
        padded = np.pad(entropy, ((0, 0), (self.patience - 1, 0)), constant_values=1.0)
        return 1 - sliding_window_view(padded, self.patience, axis=1).max(axis=-1)

    def exit_layers(self, num_layers: int, threshold: float) -> Sequence[int]:
        """As many exits as it takes must have been asked."""
        return range(1 if threshold < 0 else self.patience, num_layers)


@register_policy("saturation")
@dataclass(kw_only=True)
class Saturation(Rule):
    """Leaves where the hidden state is nearly that of the layer before; never at layer 1.

    Args:
        threshold: on the cosine similarity of the two, -1 to 1.
    """

    threshold: float = number(0.9, -1, 1, search=Range(-1.0, 1.0))
    reads = ("hidden",)
    has_memory = True

    @property
    def least(self) -> float:
        """The threshold, moved from [-1, 1] to [0, 1]."""
        return (1 + self.threshold) / 2

    def scores(self, observations: Floats, layout: Layout) -> Floats:
        """The cosine similarity, moved from [-1, 1] to [0, 1]."""
        hidden = observations[..., layout["hidden"]]
        norm = np.sqrt(np.vecdot(hidden, hidden))
        scale = norm[:, 1:] * norm[:, :-1]
        scale[scale == 0] = 1
        similarity = np.full(norm.shape, -1.0, dtype=np.float32)
        similarity[:, 1:] = (np.vecdot(hidden[:, 1:], hidden[:, :-1]) / scale).clip(-1, 1)
        return np.asarray((1 + similarity) / 2, dtype=np.float32)

    def exit_layers(self, num_layers: int, threshold: float) -> Sequence[int]:
        """Layer 1 has none before it to resemble."""
        return range(1 if threshold < 0 else 2, num_layers)


@register_policy("fixed-layer")
@dataclass(kw_only=True)
class FixedLayer(Rule):
    """Leaves at the same layer always.

    Args:
        layer: from 1.
    """

    layer: int = number(1, 1, MOST_LAYERS, search=Range(1, 12))
    chosen = ("layer",)
    reads = ("layer",)

    @property
    def least(self) -> float:
        """Between the scores of the layer before and of this one."""
        return _counted(self.layer - 0.5)

    def scores(self, observations: Floats, layout: Layout) -> Floats:
        """`t / (t + 1)` at layer t."""
        return _counted(observations[..., layout["layer"]].argmax(axis=-1) + 1)

    def exit_layers(self, num_layers: int, threshold: float) -> Sequence[int]:
        """The first that passes: after it nobody is left."""
        layers = np.arange(1, num_layers)
        return layers[_counted(layers) > np.float32(threshold)][:1].tolist()


@register_policy("random")
@dataclass(kw_only=True)
class RandomExit(Rule):
    """Leaves with the same probability everywhere; its score is drawn anew at each call.

    Args:
        probability: of leaving.
        seed: of the draws.
    """

    probability: float = number(0.5, 0, 1)
    seed: int = number(0, 0, MOST_SEED)
    chosen = ()
    reads = ("layer",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._rng = np.random.default_rng(self.seed)

    @property
    def least(self) -> float:
        """One minus the probability."""
        return 1 - self.probability

    def scores(self, observations: Floats, layout: Layout) -> Floats:
        """Numbers drawn evenly from (0, 1]."""
        return (1 - self._rng.random(observations.shape[:2])).astype(np.float32)


def _counted(count: Any) -> Any:
    """A count from 0 up as a score that always grows, in float32 as scores are."""
    return np.float32(1) - np.float32(1) / np.asarray(count + 1, dtype=np.float32)
