"""One parallel forward pass in which tokens leave early: for training and for traces.

Under state copying a token that has left is seen by later tokens, at all deeper layers, through the
state it left with. What a token decides depends on earlier tokens only. So a whole text can be run
at once, `h = where(left, h, layer(h))`, with the outcome of decoding token by token.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from cee_gym.backbones.layers import LayerCall, mapped
from cee_gym.exits.lm_head import MultiExitDecoder

# From the number of an exit and the states [B, T, H] there to who leaves, bool [B, T]. It is asked
# at exits 1, 2, ... of a text in turn.
Leave = Callable[[int, torch.Tensor], torch.Tensor]


class Forced(NamedTuple):
    """What a forward pass under state copying gives.

    Attributes:
        exits: int64 `[B, T]`, the number of the exit that each token left at, from 1.
        left_with: `[B, T, H]`, the state it left with.
        states: of L exits, each `[B, T, H]`: what a token shows there if it goes on that far while
            the tokens before it leave where they leave; empty unless asked for.
    """

    exits: torch.Tensor
    left_with: torch.Tensor
    states: list[torch.Tensor]


def forward_with_exits(
    decoder: MultiExitDecoder, input_ids: torch.Tensor, leave: Leave, *, all_states: bool = False
) -> Forced:
    """Runs texts with early exits under state copying.

    Args:
        decoder: with exits.
        input_ids: int64 `[B, T]`, padded on the right. No token sees those after it, so padding
            needs no mask.
        leave: who leaves at an exit; asked at all but the last.
        all_states: also run each token on after it has left, for itself alone: no other token sees
            that. It doubles the work.
    """
    size, length = input_ids.shape
    hidden, calls = planned_calls(decoder, input_ids)
    exits = torch.full((size, length), decoder.num_layers, device=input_ids.device)
    if all_states:
        calls, hidden = _doubled(calls, length), torch.cat([hidden, hidden], dim=1)
    left = torch.zeros(size, length, 1, dtype=torch.bool, device=input_ids.device)
    states: list[torch.Tensor] = []
    exit = 0
    for depth, call in enumerate(calls, start=1):
        new = call(hidden)
        if all_states:
            alone = new[:, length:]
            copied = torch.where(left, hidden[:, :length], alone)
            hidden = torch.cat([copied, alone], dim=1)
        else:
            alone = hidden = torch.where(left, hidden, new)
        if depth not in decoder.depths:
            continue
        exit += 1
        if all_states:
            states.append(alone)
        if exit < decoder.num_layers:
            leaves = leave(exit, alone) & ~left[:, :, 0]
            exits = torch.where(leaves, exit, exits)
            left = left | leaves[:, :, None]
    return Forced(exits, hidden[:, :length], states)


def at_exits(exits: torch.Tensor) -> Leave:
    """Leaves where it is told, int64 `[B, T]`, the numbers of exits from 1."""
    return lambda exit, states: exits == exit


def among(leave: Leave, free: torch.Tensor) -> Leave:
    """As `leave`, but only where that is allowed, bool `[B, T]`."""
    return lambda exit, states: leave(exit, states) & free


def planned_calls(
    decoder: MultiExitDecoder, input_ids: torch.Tensor, **inputs: Any
) -> tuple[torch.Tensor, list[LayerCall]]:
    """The embedding output `[B, T, H]` of whole texts, and the calls of all layers with masks.

    Where a mask says no more than that no token sees later ones, transformers leaves it out. One
    more column, which is masked, makes it write the mask down; the column is then cut off.
    """
    size, length = input_ids.shape
    mask = inputs.pop("attention_mask", None)
    mask = torch.ones_like(input_ids) if mask is None else mask
    ids = torch.cat([input_ids, input_ids.new_zeros(size, 1)], dim=1)
    mask = torch.cat([mask, mask.new_zeros(size, 1)], dim=1)
    hidden, calls = decoder.begin(input_ids=ids, attention_mask=mask, **inputs)
    done: dict[int, torch.Tensor] = {}

    def cut(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in done:
            if tensor.ndim == 4:
                done[id(tensor)] = tensor[:, :, :length, :length]
            else:
                done[id(tensor)] = tensor[:, :length]
        return done[id(tensor)]

    return hidden[:, :length], [mapped(call, cut) for call in calls]


def _doubled(calls: list[LayerCall], length: int) -> list[LayerCall]:
    """Calls for each text twice in a row: as the other tokens see it, and each token for itself.

    The second half attends to the first, but for its own place, where it attends to itself.
    """
    done: dict[int, torch.Tensor] = {}

    def twice(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in done:
            done[id(tensor)] = (
                _doubled_mask(tensor) if tensor.ndim == 4 else torch.cat([tensor, tensor], dim=1)
            )
        return done[id(tensor)]

    return [mapped(call, twice) for call in calls]


def _doubled_mask(mask: torch.Tensor) -> torch.Tensor:
    """From `[B, 1, T, T]` to `[B, 1, 2T, 2T]`, of its type: bool, or added to the scores."""
    seen = mask if mask.dtype == torch.bool else mask == 0
    own = torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device).expand_as(seen)
    both = torch.cat(
        [
            torch.cat([seen, torch.zeros_like(seen)], dim=-1),
            torch.cat([seen & ~own, own], dim=-1),
        ],
        dim=-2,
    )
    if mask.dtype == torch.bool:
        return both
    return torch.zeros_like(both, dtype=mask.dtype).masked_fill(~both, torch.finfo(mask.dtype).min)
