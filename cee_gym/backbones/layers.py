"""Runs the layers of an unmodified encoder one at a time.

A transformers model runs its layers inside its own `forward`, between code that differs from family
to family (embeddings, masks, positions, which attention a layer uses). To stop between layers
without copying any of
it, a *shell* is made of the model: the same modules, except that each layer is replaced by one that
notes how it was called and hands its input on. Running the shell gives the calls; making them one
by one is the model.
"""

import copy
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from cee_gym.errors import BackboneError


@dataclass(frozen=True)
class LayerCall:
    """The call a backbone makes of one of its layers, all but the hidden states given."""

    layer: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Runs the layer on hidden states `[B, T, H]`."""
        return self.layer(hidden, *self.args, **self.kwargs)


# A context variable, so that threads sharing one model do not see each other's calls.
_calls: ContextVar[list[tuple[LayerCall, torch.Tensor]]] = ContextVar("_calls")


class _Recorder(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        # In a tuple, so that the layer is not registered as a submodule of the shell.
        self._recorded = (layer,)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._recorded[0], name)

    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        _calls.get().append((LayerCall(self._recorded[0], args, kwargs), hidden))
        return hidden


def make_shell(backbone: PreTrainedModel) -> nn.Module:
    """The backbone with recorders for layers; all other modules are shared with it, not copied.

    Raises:
        BackboneError: if its list of layers cannot be told.
    """
    *parents, name = _path_of_the_layers(backbone).split(".")
    shell = module = _shallow_copy(backbone)
    for parent in parents:
        twin = _shallow_copy(module.get_submodule(parent))
        module._modules[parent] = twin
        module = twin
    layers = module.get_submodule(name).children()
    module._modules[name] = nn.ModuleList(_Recorder(layer) for layer in layers)
    return shell


def layer_calls(
    shell: nn.Module, inputs: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, list[LayerCall]]:
    """Runs a shell: the embedding output `[B, T, H]`, and the L calls that follow."""
    token = _calls.set([])
    try:
        shell(**inputs)
        calls = _calls.get()
    finally:
        _calls.reset(token)
    return calls[0][1], [call for call, _ in calls]


# Of a tensor that a layer is given, the dimensions that are positions in the text, by how many it
# has in all; the first is the batch.
_POSITIONS = {
    2: (1,),  # padding [B, T]
    3: (1,),  # hidden states and position embeddings [B, T, d]
    4: (2, 3),  # attention masks and biases [B, heads, T, T]
}


def narrow(
    hidden: torch.Tensor, calls: Sequence[LayerCall], rows: torch.Tensor, length: int
) -> tuple[torch.Tensor, list[LayerCall]]:
    """Hidden states and calls of some texts of a batch only, without the last positions.

    What a layer is given is None, true or false, or a tensor whose number of dimensions tells what
    they are: `[B, T]`, `[B, T, d]` or `[B, heads, T, T]`, with 1 in place of a B or T that is
    broadcast.

    Args:
        hidden: `[B, T, H]`.
        calls: of layers that have not run yet.
        rows: int64 `[n]`, positions in the batch, on the device of the hidden states.
        length: how many positions to keep, those after it being padding in all of these texts.

    Raises:
        BackboneError: if a layer is given anything else.
    """
    batch = hidden.shape[:2]
    # Most layers are given the same tensors: they are narrowed once.
    done: dict[int, torch.Tensor] = {}

    def narrowed(value: Any) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, torch.Tensor):
            if id(value) not in done:
                done[id(value)] = _narrow_tensor(value, batch, rows, length)
            return done[id(value)]
        if isinstance(value, tuple):
            return tuple(narrowed(part) for part in value)
        if isinstance(value, dict):
            return {key: narrowed(part) for key, part in value.items()}
        raise _cannot_narrow(f"something of type {type(value).__name__}")

    return narrowed(hidden), [
        LayerCall(call.layer, narrowed(call.args), narrowed(call.kwargs)) for call in calls
    ]


def _narrow_tensor(
    tensor: torch.Tensor, batch: tuple[int, ...], rows: torch.Tensor, length: int
) -> torch.Tensor:
    size, tokens = batch
    positions = _POSITIONS.get(tensor.ndim, ())
    fits = positions and tensor.shape[0] in (1, size)
    if not fits or any(tensor.shape[place] not in (1, tokens) for place in positions):
        raise _cannot_narrow(f"a tensor {list(tensor.shape)} in a batch {list(batch)}")
    for place in positions:
        tensor = tensor.narrow(place, 0, min(length, tensor.shape[place]))
    return tensor if tensor.shape[0] != size else tensor.index_select(0, rows)


def _cannot_narrow(what: str) -> BackboneError:
    return BackboneError(
        f"the layers of this backbone are given {what}, from which texts that have left cannot be "
        "taken: give BERT, RoBERTa, ALBERT, ELECTRA, DistilBERT or ModernBERT with attention sdpa "
        "or eager"
    )


def _shallow_copy(module: nn.Module) -> nn.Module:
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin


def _path_of_the_layers(backbone: PreTrainedModel) -> str:
    depth = getattr(backbone.config, "num_hidden_layers", None)
    # ALBERT calls the layers of a few groups again and again.
    groups = getattr(backbone.config, "num_hidden_groups", None)
    for path, module in backbone.named_modules():
        if isinstance(module, nn.ModuleList):
            if len(module) == depth and groups is None:
                return path
            if len(module) == groups and path.endswith("groups"):
                return path
    raise BackboneError(
        f"{type(backbone).__name__} has no list of layers to run one after another: "
        "give an encoder of the BERT kind"
    )
