"""Takes texts out of a batch that is on its way through the layers."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from cee_gym.backbones.families import GIVE_AN_ENCODER
from cee_gym.backbones.layers import LayerCall
from cee_gym.errors import BackboneError

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
    they are, unless `Family.positions` does: `[B, T]`, `[B, T, d]` or `[B, heads, T, T]`, with 1 in
    place of a B or T that is broadcast.

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

    def narrowed(value: Any, positions: Sequence[int] | None = None) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, torch.Tensor):
            if id(value) not in done:
                done[id(value)] = _narrow_tensor(value, positions, batch, rows, length)
            return done[id(value)]
        if isinstance(value, tuple):
            return tuple(narrowed(part) for part in value)
        if isinstance(value, dict):
            return {key: narrowed(part) for key, part in value.items()}
        raise _cannot_narrow(f"something of type {type(value).__name__}")

    def of_call(call: LayerCall) -> LayerCall:
        known = call.family.positions
        kwargs = {name: narrowed(value, known.get(name)) for name, value in call.kwargs.items()}
        return replace(call, args=narrowed(call.args), kwargs=kwargs)

    return narrowed(hidden), [of_call(call) for call in calls]


def _narrow_tensor(
    tensor: torch.Tensor,
    positions: Sequence[int] | None,
    batch: tuple[int, ...],
    rows: torch.Tensor,
    length: int,
) -> torch.Tensor:
    if positions is None:
        positions = _POSITIONS.get(tensor.ndim)
    elif not positions:
        return tensor
    size, tokens = batch
    fits = positions is not None and tensor.shape[0] in (1, size)
    if not fits or any(tensor.shape[place] not in (1, tokens) for place in positions or ()):
        raise _cannot_narrow(f"a tensor {list(tensor.shape)} in a batch {list(batch)}")
    for place in positions or ():
        tensor = tensor.narrow(place, 0, min(length, tensor.shape[place]))
    return tensor if tensor.shape[0] != size else tensor.index_select(0, rows)


def _cannot_narrow(what: str) -> BackboneError:
    return BackboneError(
        f"the layers of this backbone are given {what}, from which texts that have left cannot be "
        f"taken: {GIVE_AN_ENCODER}, with attention sdpa or eager"
    )
