"""Floating-point operations of a model with exits, counted by torch."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cee_gym.exits.classifier import MultiExitModel
from cee_gym.policies.base import ExitPolicy

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Flops:
    """What one text costs; a multiplication and an addition are two operations.

    Torch counts matrix products and attention, which are nearly all there is.

    Attributes:
        tokens: the length of the text.
        layers: of each layer, `[L]`.
        exits: of each exit's pooler and head, `[L]`.
    """

    tokens: int
    layers: Floats
    exits: Floats

    def up_to(self, policy: ExitPolicy) -> Floats:
        """All that runs for a text that leaves at each layer, `[L]`.

        Layers, the exits that the policy needs, the policy itself, and the exit that is taken. A
        policy is counted as two operations for each of its weights at each layer where it is asked.
        """
        num_layers = len(self.layers)
        asked = {*policy.score.exit_layers(num_layers, policy.threshold)}
        first = (
            1 if policy.score.has_memory or "previous" in policy.layout else min(asked, default=1)
        )
        needed = asked | {*range(first, max(asked, default=1))} if asked else set()
        weights = sum(tensor.numel() for tensor in policy.score.tensors().values())
        per_layer = 2.0 * weights / (num_layers if weights else 1)
        looked = np.array(
            [
                (self.exits[t - 1] + per_layer) if t in needed else 0.0
                for t in range(1, num_layers + 1)
            ]
        )
        last = np.array(
            [0.0 if t in needed else self.exits[t - 1] for t in range(1, num_layers + 1)]
        )
        return np.cumsum(self.layers) + np.cumsum(looked) + last

    @property
    def full_depth(self) -> float:
        """All layers and the last exit."""
        return float(self.layers.sum() + self.exits[-1])


@torch.no_grad()
def count_flops(model: MultiExitModel, tokens: int) -> Flops:
    """Counts what each layer and each exit takes.

    Args:
        model: put into eval mode.
        tokens: the length of the text.
    """
    model.eval()
    inputs = {
        name: torch.ones(1, tokens, dtype=torch.int64, device=model.device)
        for name in ("input_ids", "attention_mask")
    }
    hidden, calls = model.begin(inputs)
    layers, exits = [], []
    for number, call in enumerate(calls, start=1):
        # Torch does not count the fused attention of the CPU, only the products it is made of.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            hidden = call(hidden)
        layers.append(float(counter.get_total_flops()))
        with FlopCounterMode(display=False) as counter:
            model.exit(hidden, number, inputs["attention_mask"])
        exits.append(float(counter.get_total_flops()))
    return Flops(tokens, np.array(layers), np.array(exits))
