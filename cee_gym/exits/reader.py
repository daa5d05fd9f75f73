"""What is read off a layer: a state, and what that exit would answer.

There is one reading of a layer, for training, recording, the live environment, the runtime and the
export alike.
"""

from collections.abc import Sequence
from typing import Protocol, Self

import torch
from torch import nn

from cee_gym.backbones.layers import LayerCall


class ExitReader(Protocol):
    """Reads one layer."""

    def weights(self, attention_mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
        """How much each token counts; the same at all layers, so once for each batch.

        Args:
            attention_mask: `[B, T]`, 0 at padding.
            dtype: of the hidden states.

        Returns:
            `[B, T]`, the weights of a text adding up to 1; None where none are needed.
        """

    def __call__(
        self, hidden: torch.Tensor, weights: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The state `[B, H]` and the class logits `[B, C]`.

        Args:
            hidden: `[B, T, H]`, the output of the layer.
            weights: of the tokens, as `weights` gives them.
        """


class EarlyExitModel(Protocol):
    """What `EarlyExitRuntime` asks of a model.

    Attributes:
        training: whether it is in training mode.
    """

    training: bool

    @property
    def num_layers(self) -> int:
        """L."""

    @property
    def width(self) -> int:
        """H, of the states."""

    @property
    def num_labels(self) -> int:
        """C."""

    @property
    def fingerprint(self) -> str:
        """Names its weights."""

    @property
    def device(self) -> torch.device:
        """Where its inputs are to be."""

    @property
    def exit_layers(self) -> Sequence[int]:
        """The layers with an exit, from 1; the last is among them."""

    @property
    def exits(self) -> Sequence[ExitReader]:
        """L readers, one for each layer."""

    def begin(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, list[LayerCall]]:
        """Everything before the first layer.

        Args:
            inputs: `input_ids`, `attention_mask` and what else the backbone takes, `[B, T]`.

        Returns:
            The embedding output `[B, T, H]` and L functions, one for each layer, from hidden states
            to hidden states.
        """

    def eval(self) -> Self:
        """Puts it into eval mode."""


class TanhPooler(nn.Linear):
    """`tanh(W x + b)`: the pooler of BERT and of ConsistentEE, section 3."""

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """From `[B, H]` to `[B, H]`."""
        return super().forward(pooled).tanh()


class Scale(nn.Module):
    """`w * x + b`, feature by feature: what standardises the states of one layer.

    Args:
        width: H.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """From `[B, H]` to `[B, H]`."""
        return torch.addcmul(self.bias, pooled, self.weight)


class ClassifierExit:
    """Pools the tokens of a text, and classifies what comes out (ConsistentEE, section 3).

    The state is what the pooler makes of the first token's hidden state or of the mean over all
    tokens. The head reads it through dropout in training.

    Args:
        norm: applied to the hidden states first; None for none.
        mean: pool the mean over all tokens instead of the first token.
        pooler: from `[B, H]` to the state `[B, H]`, a `TanhPooler` or a `Scale`.
        dropout: between state and head.
        head: from states `[B, H]` to logits `[B, C]`.
    """

    def __init__(
        self,
        norm: nn.Module | None,
        mean: bool,
        pooler: nn.Module,
        dropout: nn.Module,
        head: nn.Module,
    ) -> None:
        self.norm = norm
        self.mean = mean
        self.pooler = pooler
        self.dropout = dropout
        self.head = head

    def weights(self, attention_mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
        """See `ExitReader`; None where only the first token counts."""
        if not self.mean:
            return None
        weights = attention_mask.to(dtype)
        return weights / weights.sum(dim=1, keepdim=True)

    def __call__(
        self, hidden: torch.Tensor, weights: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `ExitReader`."""
        if weights is None:
            hidden = hidden[:, 0]
        if self.norm is not None:
            hidden = self.norm(hidden)
        if weights is not None:
            hidden = torch.bmm(weights[:, None], hidden)[:, 0]
        state = self.pooler(hidden)
        # To call dropout where it does nothing takes time that shows next to a small layer.
        read = self.dropout(state) if self.dropout.training else state
        return state, self.head(read)
