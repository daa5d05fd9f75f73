"""Runs the layers of an unmodified encoder one at a time.

A transformers model runs its layers inside its own `forward`, between code that differs from family
to family (embeddings, masks, positions, which attention a layer uses). To stop between layers
without copying any of
it, a *shell* is made of the model: the same modules, except that each layer is replaced by one that
notes how it was called and hands its input on. Running the shell gives the calls; making them one
by one is the model.
"""

import copy
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
