"""Tries a backbone on two texts, before anything is trained on it."""

import torch
from torch import nn
from transformers import PreTrainedModel

from cee_gym.backbones.families import GIVE_AN_ENCODER, Family, causal
from cee_gym.backbones.layers import LayerCall, layer_calls, make_shell
from cee_gym.backbones.rows import narrow
from cee_gym.errors import BackboneError, first_line

Inputs = dict[str, torch.Tensor]


def try_layers(backbone: PreTrainedModel, family: Family) -> None:
    """Refuses a backbone that is more, or other, than its layers one after another.

    Args:
        backbone: in eval mode.
        family: what is known of it.

    Raises:
        BackboneError: if its layers, run one at a time, do not give its own hidden states; if its
            tokens do not see those after them; or if what becomes of a text depends on the others
            in its batch.
    """
    try:
        with torch.no_grad():
            _try_layers(backbone, family)
    except BackboneError:
        raise
    except Exception as error:  # whatever a backbone of another kind runs into
        raise BackboneError(
            f"the layers of {type(backbone).__name__} cannot be run one at a time "
            f"({first_line(error)}): {GIVE_AN_ENCODER}"
        ) from error


def _try_layers(backbone: PreTrainedModel, family: Family) -> None:
    name, norm = type(backbone).__name__, family.norm_of(backbone) or nn.Identity()
    shell, inputs = make_shell(backbone, family), _two_texts(backbone)
    states = _run(*layer_calls(shell, inputs))
    ids = inputs["input_ids"].clone()
    ids[0, -1] -= 1
    changed = _run(*layer_calls(shell, {**inputs, "input_ids": ids}))
    if _close(changed[-1][0, 0], states[-1][0, 0], tolerance=1e-6):
        raise causal(name)
    own, last = _own_states(backbone, shell, inputs)
    if len(own) != len(states) or not all(map(_close, states, own)):
        raise BackboneError(
            f"{name} does more between its layers than to call them one after another, so that "
            f"its hidden states are not those of its layers: {GIVE_AN_ENCODER}"
        )
    if not _close(norm(states[-1]), last):
        raise BackboneError(
            f"{name} does more with the hidden states of its last layer than is known: register "
            "its family with the path of the norm that follows the last layer"
        )
    _, calls = layer_calls(shell, inputs)
    left = _run(*narrow(states[0], calls[1:], torch.tensor([1]), 2))
    alone = _run(*layer_calls(shell, {name: given[1:, :2] for name, given in inputs.items()}))
    if not _close(left[-1], alone[-1]):
        raise BackboneError(
            f"what {name} makes of a text depends on how long the others in its batch are: "
            f"{GIVE_AN_ENCODER}"
        )


def _two_texts(backbone: PreTrainedModel) -> Inputs:
    """Of four tokens and of two."""
    padding = getattr(backbone.config, "pad_token_id", None) or 0
    ids = torch.tensor([[6, 7, 8, 9], [9, 7, padding, padding]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    return {"input_ids": ids, "attention_mask": mask}


def _run(hidden: torch.Tensor, calls: list[LayerCall]) -> list[torch.Tensor]:
    """The hidden states after each layer."""
    states = []
    for call in calls:
        hidden = call(hidden)
        states.append(hidden)
    return states


def _own_states(
    backbone: PreTrainedModel, shell: nn.Module, inputs: Inputs
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What each layer gives in the backbone's own forward pass, and what that gives in the end."""
    states: list[torch.Tensor] = []

    def note(layer: nn.Module, given: object, output: object) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)  # type: ignore[arg-type]

    layers = {call.layer for call in layer_calls(shell, inputs)[1]}
    handles = [layer.register_forward_hook(note) for layer in layers]
    try:
        last = backbone(**inputs).last_hidden_state
    finally:
        for handle in handles:
            handle.remove()
    return states, last


def _close(one: torch.Tensor, other: torch.Tensor, tolerance: float = 1e-3) -> bool:
    """Up to a rounding that grows with the numbers."""
    if one.shape != other.shape:
        return False
    return bool((one - other).abs().max() <= tolerance * other.abs().max())
