"""Runs the layers of an unmodified encoder one at a time.

A transformers model runs its layers inside its own `forward`, between code that differs from family
to family (embeddings, masks, positions, which attention a layer uses). To stop between layers
without copying any of it, a *shell* is made of the model: the same modules, except that each layer
is replaced by one that notes how it was called and hands its input on. Running the shell gives the
calls; making them one by one is the model.
"""

import copy
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from cee_gym.backbones.families import GIVE_AN_ENCODER, Family, family_of
from cee_gym.errors import BackboneError


@dataclass(frozen=True)
class LayerCall:
    """The call a backbone makes of one of its layers, all but the hidden states given."""

    layer: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    family: Family = field(default_factory=Family)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Runs the layer on hidden states `[B, T, H]`."""
        output = self.layer(hidden, *self.args, **self.kwargs)
        return output[0] if isinstance(output, tuple) else output


def mapped(call: LayerCall, function: Callable[[torch.Tensor], torch.Tensor]) -> LayerCall:
    """The call with every tensor it is given put through a function."""

    def walk(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.ndim > 0:
            return function(value)
        if isinstance(value, tuple):
            return tuple(map(walk, value))
        if isinstance(value, dict):
            return {key: walk(part) for key, part in value.items()}
        return value

    return replace(call, args=walk(call.args), kwargs=walk(call.kwargs))


# A context variable, so that threads sharing one model do not see each other's calls.
_calls: ContextVar[list[tuple[LayerCall, torch.Tensor]]] = ContextVar("_calls")


class _Recorder(nn.Module):
    def __init__(self, layer: nn.Module, family: Family) -> None:
        super().__init__()
        # In a tuple, so that the layer is not registered as a submodule of the shell.
        self._recorded = (layer,)
        self._family = family

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "_recorded" not in vars(self):  # it is being unpickled
                raise
            return getattr(self._recorded[0], name)

    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        _calls.get().append((LayerCall(self._recorded[0], args, kwargs, self._family), hidden))
        return (hidden, None) if self._family.tuples else hidden


def make_shell(backbone: PreTrainedModel, family: Family | None = None) -> nn.Module:
    """The backbone with recorders for layers; all other modules are shared with it, not copied.

    Args:
        backbone: any model with a list of layers.
        family: what is known of it; by default what the table says.

    Raises:
        BackboneError: if its list of layers cannot be told.
    """
    family = family or family_of(backbone.config)
    *parents, name = path_of_the_layers(backbone).split(".")
    shell = module = _shallow_copy(backbone)
    for parent in parents:
        twin = _shallow_copy(module.get_submodule(parent))
        module._modules[parent] = twin
        module = twin
    layers = module.get_submodule(name).children()
    module._modules[name] = nn.ModuleList(_Recorder(layer, family) for layer in layers)
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


def path_of_the_layers(backbone: PreTrainedModel) -> str:
    """Where in a backbone its list of layers is, as `get_submodule` takes it.

    Raises:
        BackboneError: if there is no list as long as the configuration says.
    """
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
        f"{GIVE_AN_ENCODER}"
    )


def _shallow_copy(module: nn.Module) -> nn.Module:
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin
