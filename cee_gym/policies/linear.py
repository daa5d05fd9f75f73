"""One linear map of the hidden state for all layers (learning to exit, BERxiT, Xin et al. 2021)."""

from collections.abc import Mapping
from typing import Any, Self

import torch
from scipy.special import expit

from cee_gym.observation import Layout
from cee_gym.policies.score import Floats, Score, register_policy


@register_policy("linear")
class LinearScore(Score):
    """`sigmoid(w h + b)`.

    Args:
        weight: w, float32 `[H]`.
        bias: b, float32 `[]`.
    """

    reads = ("hidden",)

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        self.weight, self.bias = weight, bias

    def scores(self, observations: Floats, layout: Layout) -> Floats:
        """The sigmoids, float32 `[N, t]`."""
        logits = observations[..., layout["hidden"]] @ self.weight.numpy() + self.bias.item()
        return expit(logits)

    def settings(self) -> dict[str, Any]:
        """There are none."""
        return {}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Weight and bias."""
        return {"weight": self.weight, "bias": self.bias}

    @classmethod
    def restore(
        cls,
        settings: Mapping[str, Any],
        tensors: dict[str, torch.Tensor],
        layout: Layout,
        alpha_range: tuple[float, float],
    ) -> Self:
        """The score with these weights."""
        return cls(tensors["weight"], tensors["bias"])
