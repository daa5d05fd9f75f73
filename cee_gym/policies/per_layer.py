"""A policy with a small network for every layer."""

from collections.abc import Mapping
from typing import Any, Literal, Self

import numpy as np
import torch

from cee_gym.observation import PARTS, Layout
from cee_gym.policies.networks import ConfidenceRule, PerLayerPolicy, confidence_logit
from cee_gym.policies.score import Floats, LayerScores, Score, register_policy

Start = Literal["equally_likely", "confidence"]


@register_policy("per-layer")
class PerLayerScore(Score):
    """The sigmoid of what `PerLayerPolicy` says.

    Its networks read all parts of the observation but `layer`, which picks the network.

    Args:
        network: of L layers.
        layout: the columns of each part of the observations.
        is_probability: whether it was learned as the probability of leaving.
    """

    def __init__(self, network: PerLayerPolicy, layout: Layout, is_probability: bool) -> None:
        self.network = network
        self.layout = layout
        self.is_probability = is_probability

    def scores(self, observations: Floats, layout: Layout) -> Floats:
        """The sigmoids, float32 `[N, t]`."""
        size, steps, _ = observations.shape
        given = torch.from_numpy(np.array(observations))  # torch wants to be able to write
        with torch.inference_mode():
            if steps == len(self.network.bias):
                return torch.sigmoid(self.network(states(given, layout))).numpy()
            layer = given[..., layout["layer"]].argmax(dim=-1).flatten()
            logits = self.network.at(states(given, layout).flatten(0, 1), layer)
            return torch.sigmoid(logits).reshape(size, steps).numpy()

    def decider(
        self, layout: Layout, threshold: float, device: torch.device
    ) -> tuple[tuple[str, ...], LayerScores, float]:
        """Logits above that of the threshold, with all that can be computed beforehand."""
        margins = self.network.margins_by_layer(threshold, device)
        return tuple(part for part in layout if part != "layer"), margins, 0.0

    def settings(self) -> dict[str, Any]:
        """The shape of the networks."""
        hidden = getattr(self.network, "hidden_weight", None)
        return {
            "hidden_width": 0 if hidden is None else hidden.shape[-1],
            "start": "equally_likely" if self.network.rule is None else "confidence",
            "is_probability": self.is_probability,
        }

    def tensors(self) -> dict[str, torch.Tensor]:
        """The weights of all networks."""
        return dict(self.network.state_dict())

    @classmethod
    def restore(
        cls,
        settings: Mapping[str, Any],
        tensors: dict[str, torch.Tensor],
        layout: Layout,
        alpha_range: tuple[float, float],
    ) -> Self:
        """The score with these networks."""
        network = make_network(layout, alpha_range, settings["hidden_width"], settings["start"], 0)
        network.load_state_dict(tensors)
        return cls(network, layout, bool(settings["is_probability"]))


def make_network(
    layout: Layout, alpha_range: tuple[float, float], hidden_width: int, start: Start, seed: int
) -> PerLayerPolicy:
    """Fresh networks over observations of this layout.

    Args:
        layout: the columns of each part; `layer` is among them.
        alpha_range: the lowest and highest price of one layer.
        hidden_width: units of the hidden layer of each network, 0 for none.
        start: `"equally_likely"` exits, or the `"confidence"` rule at 0.9 plus a learned part.
        seed: of the weights.
    """
    layer = layout["layer"]
    rule = None
    if start == "confidence":
        confidence = _column(layout, "confidence")
        assert confidence is not None
        rule = ConfidenceRule(confidence, _column(layout, "alpha"), alpha_range)
        with torch.no_grad():
            rule.threshold[0] = confidence_logit(torch.tensor(0.9))
    seen = bounds(layout, alpha_range)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return PerLayerPolicy(seen.shape[1], layer.stop - layer.start, hidden_width, rule, seen)


def states(observations: torch.Tensor, layout: Layout) -> torch.Tensor:
    """The observations `[..., D]` without the part that says the layer."""
    layer = layout["layer"]
    return torch.cat([observations[..., : layer.start], observations[..., layer.stop :]], dim=-1)


def bounds(layout: Layout, alpha_range: tuple[float, float]) -> torch.Tensor:
    """The lowest and highest value of each column of `states`, float32 `[2, D]`.

    They are equal where there are none.
    """
    found = torch.zeros(2, max(place.stop for place in layout.values()))
    for name, place in layout.items():
        part = PARTS.get(name)
        limits = alpha_range if name == "alpha" else (part.low, part.high)
        if np.isfinite(limits).all():
            found[:, place] = torch.tensor(limits)[:, None]
    return states(found, layout)


def _column(layout: Layout, part: str) -> int | None:
    """Where a part of width 1 stands in `states`, None if it is not observed."""
    if part not in layout:
        return None
    column, layer = layout[part].start, layout["layer"]
    return int(column if column < layer.start else column - (layer.stop - layer.start))
