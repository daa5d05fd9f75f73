"""Policy networks, and the probability of each exit under them."""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import gelu, logsigmoid, one_hot


class PerLayerPolicy(nn.Module):
    """One small network per layer, from a state to the logit of leaving (ConsistentEE, 3.2).

    Each is `Linear(D, 32) -> GELU -> Linear(32, 1)`, or a single `Linear(D, 1)` with
    `hidden_width=0`; all layers are computed at once. At the start every exit is equally likely:
    layer t leaves with probability `1/(L - t + 1)`.

    With a `rule`, the logit is that of a confidence threshold plus what the network says, and the
    network says nothing at the start: the policy begins as the rule, soft around its threshold.

    Args:
        width: D.
        num_layers: L.
        hidden_width: units of the hidden layer, 0 for none.
        rule: what to add; None for nothing.
        bounds: float32 `[2, D]`, the lowest and highest value of each column of a state, where the
            networks are to see it scaled; equal where they are to see it as it is. A few numbers
            would else be drowned by hundreds of hidden ones, as all weights start alike.
    """

    shift: torch.Tensor
    scale: torch.Tensor

    def __init__(
        self,
        width: int,
        num_layers: int,
        hidden_width: int = 32,
        rule: "ConfidenceRule | None" = None,
        bounds: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.rule = rule
        low, high = torch.zeros(2, width) if bounds is None else bounds
        bounded = low < high
        reach = max(1.0, width**0.5 / 2)
        self.register_buffer("shift", torch.where(bounded, (low + high) / 2, 0.0))
        self.register_buffer("scale", torch.where(bounded, 2 * reach / (high - low), 1.0))
        fan_in = hidden_width or width
        if hidden_width:
            self.hidden_weight = nn.Parameter(
                _uniform(num_layers, width, hidden_width, fan_in=width)
            )
            self.hidden_bias = nn.Parameter(_uniform(num_layers, hidden_width, fan_in=width))
        # Small, so that the start is close to equally likely exits whatever the state.
        self.weight = nn.Parameter(0.1 * _uniform(num_layers, fan_in, fan_in=fan_in))
        exits_left = torch.arange(num_layers, 0, -1).float()
        self.bias = nn.Parameter(torch.logit(1 / exits_left, eps=1e-3))
        if rule is not None:
            nn.init.zeros_(self.weight)
            nn.init.zeros_(self.bias)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Logits of leaving each layer, `[B, L]`, given the states of all layers `[B, L, D]`."""
        rule = 0.0 if self.rule is None else self.rule(states)
        seen = self.seen(states)
        if hasattr(self, "hidden_weight"):
            seen = gelu(torch.einsum("bld,ldk->blk", seen, self.hidden_weight) + self.hidden_bias)
        return (seen * self.weight).sum(dim=-1) + self.bias + rule

    def seen(self, states: torch.Tensor) -> torch.Tensor:
        """States as the networks see them: scaled where they have bounds."""
        return (states - self.shift) * self.scale

    def margins_by_layer(
        self, threshold: float, device: torch.device
    ) -> Callable[[torch.Tensor, int], torch.Tensor]:
        """How far the logit of leaving is over that of a threshold, for states of one layer.

        For one text a layer of a small model is so fast that every single operation shows. So
        the scaling of the states, what the rule adds to all alike, and the threshold are folded
        into the weights.

        Args:
            threshold: on the probability.
            device: of the states.

        Returns:
            From states `[n, D]` and their layer, from 1, to float32 `[n]`.
        """
        terms, constant = ([], 0.0) if self.rule is None else self.rule.terms()
        constant -= _logit(threshold)
        with torch.no_grad():
            origin = -self.shift * self.scale
            hidden: list[tuple[torch.Tensor, torch.Tensor]] = []
            if hasattr(self, "hidden_weight"):
                weight, bias = self.weight.clone(), self.bias + constant
                inner = (self.scale[:, None] * self.hidden_weight).to(device)
                inner_bias = (self.hidden_bias + origin @ self.hidden_weight).to(device)
                hidden = list(zip(inner, inner_bias, strict=True))
            else:
                weight, bias = self.weight * self.scale, self.bias + self.weight @ origin + constant
            outer = list(zip(weight.to(device), bias.to(device), strict=True))

        def margins(states: torch.Tensor, layer: int) -> torch.Tensor:
            seen = states
            if hidden:
                inner, inner_bias = hidden[layer - 1]
                seen = gelu(torch.addmm(inner_bias, states, inner))
            weight, bias = outer[layer - 1]
            logits = torch.addmv(bias, seen, weight)
            for of, column, factor in terms:
                logits = torch.add(logits, of(states[:, column]), alpha=factor)
            return logits

        return margins

    def at(self, states: torch.Tensor, layer: torch.Tensor) -> torch.Tensor:
        """Logits of leaving, `[n]`, given states `[n, D]` of the layers `[n]`, counted from 0."""
        # States of one layer side by side, as many rows as the fullest layer has: cheaper than all
        # layers' networks on every state, and than gathering weights by row.
        num_layers = len(self.bias)
        row = one_hot(layer, num_layers).cumsum(dim=0).gather(1, layer[:, None])[:, 0] - 1
        height = int(layer.bincount(minlength=num_layers).max())
        sorted_states = states.new_zeros(height, num_layers, states.shape[1])
        sorted_states[row, layer] = states
        return self(sorted_states)[row, layer]


class ConfidenceRule(nn.Module):
    """The logit of leaving by a confidence threshold: `gain * (logit(confidence) - threshold)`.

    It is above 0 exactly where confidence is above the threshold; gain and threshold are learned
    on, from where they are set.

    Args:
        confidence: the column of a state that holds the confidence.
        alpha: the column with the price of one layer: the threshold is then linear in it. None
            where the price is not observed.
        alpha_range: the lowest and highest price.
    """

    def __init__(
        self, confidence: int, alpha: int | None, alpha_range: tuple[float, float]
    ) -> None:
        super().__init__()
        self.confidence, self.alpha, self.alpha_range = confidence, alpha, alpha_range
        self.gain = nn.Parameter(torch.tensor(1.0))
        # As a logit: at the lowest price, and how much it changes up to the highest.
        self.threshold = nn.Parameter(torch.zeros(2))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Logits `[...]` given states `[..., D]`."""
        threshold = self.threshold[0]
        low, high = self.alpha_range
        if self.alpha is not None and low < high:
            threshold = threshold + self.threshold[1] * (states[..., self.alpha] - low) / (
                high - low
            )
        return self.gain * (confidence_logit(states[..., self.confidence]) - threshold)

    def terms(self) -> tuple[list[tuple[Callable[..., torch.Tensor], int, float]], float]:
        """The same as a sum: functions of columns of a state with their factors, and a constant."""
        gain, (threshold, change) = self.gain.item(), self.threshold.tolist()
        terms: list[tuple[Callable[..., torch.Tensor], int, float]] = [
            (confidence_logit, self.confidence, gain)
        ]
        low, high = self.alpha_range
        if self.alpha is not None and low < high:
            slope = change / (high - low)
            terms.append((torch.Tensor.detach, self.alpha, -gain * slope))
            threshold -= slope * low
        return terms, -gain * threshold


def confidence_logit(confidence: torch.Tensor) -> torch.Tensor:
    """The logit of a probability, finite where it is 0 or 1."""
    return torch.logit(confidence, eps=1e-6)


def log_exit_distribution(logits: torch.Tensor) -> torch.Tensor:
    """Log-probability of leaving at each layer, `[B, L]`, given the logits of leaving `[B, L]`.

    `log p_t + sum_{s<t} log(1 - p_s)`, with `log p_L = 0` since the last exit is forced.
    """
    stay = logsigmoid(-logits[:, :-1]).cumsum(dim=1)
    leave = logsigmoid(logits[:, :-1])
    zero = torch.zeros_like(logits[:, :1])
    return torch.cat([zero, stay], dim=1) + torch.cat([leave, zero], dim=1)


def _logit(probability: float) -> float:
    if 0 < probability < 1:
        return math.log(probability / (1 - probability))
    return -math.inf if probability <= 0 else math.inf


def _uniform(*shape: int, fan_in: int) -> torch.Tensor:
    return torch.empty(shape).uniform_(-1, 1) / fan_in**0.5
