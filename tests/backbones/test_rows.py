"""Taking texts out of a running batch."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig

from cee_gym.backbones.families import Family
from cee_gym.backbones.layers import LayerCall, layer_calls, make_shell
from cee_gym.backbones.rows import narrow
from cee_gym.errors import BackboneError

B, T, H = 4, 6, 8


def call_with(*args: Any, **kwargs: Any) -> LayerCall:
    return LayerCall(nn.Identity(), args, kwargs)


def test_rows_and_positions_are_taken_out_wherever_they_stand() -> None:
    numbers = torch.arange(B * T * T).float()
    hidden = numbers[: B * T].reshape(B, T, 1).expand(B, T, H)
    padding = numbers[: B * T].reshape(B, T)
    mask = numbers.reshape(B, 1, T, T)
    of_keys = numbers[: B * T].reshape(B, 1, 1, T)
    of_all = numbers[: 2 * T * T].reshape(1, 2, T, T)
    cos = numbers[: T * T].reshape(1, T, T)
    calls = [
        call_with(mask, None, False, of_keys=of_keys, position_embeddings=(cos, padding)),
        call_with({"mask": mask}, of_all=of_all),
    ]
    rows = torch.tensor([3, 1])
    narrowed, (one, other) = narrow(hidden, calls, rows, 4)
    torch.testing.assert_close(narrowed, hidden[[3, 1], :4])
    torch.testing.assert_close(one.args[0], mask[[3, 1], :, :4, :4])
    assert one.args[1:] == (None, False)
    torch.testing.assert_close(one.kwargs["of_keys"], of_keys[[3, 1], :, :, :4])
    torch.testing.assert_close(one.kwargs["position_embeddings"][0], cos[:, :4])
    torch.testing.assert_close(one.kwargs["position_embeddings"][1], padding[[3, 1], :4])
    torch.testing.assert_close(other.kwargs["of_all"], of_all[:, :, :4, :4])
    assert other.args[0]["mask"] is one.args[0]  # layers go on sharing what they share


def test_a_family_may_say_which_dimensions_are_positions() -> None:
    distances = torch.arange(T * T).reshape(1, T, T)
    table = torch.zeros(B, T)  # by its shape it could be padding
    family = Family(positions={"distances": (1, 2), "table": ()})
    call = LayerCall(
        nn.Identity(), (), {"distances": distances, "table": table, "no": None}, family
    )
    _, (narrowed,) = narrow(torch.zeros(B, T, H), [call], torch.tensor([2]), 4)
    torch.testing.assert_close(narrowed.kwargs["distances"], distances[:, :4, :4])
    assert narrowed.kwargs["table"] is table
    assert narrowed.family is family


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (torch.zeros(T), r"a tensor \[6\] in a batch \[4, 6\]"),
        (torch.zeros(B, T + 1, H), r"a tensor \[4, 7, 8\]"),
        (torch.zeros(B + 1, T), r"a tensor \[5, 6\]"),
        (torch.zeros(B, 3), r"a tensor \[4, 3\]"),
        (torch.zeros(B, 1, T, T + 1), r"a tensor \[4, 1, 6, 7\]"),
        (torch.zeros(B, 1, 1, T, T), "a tensor"),
        (torch.tensor(3), "a tensor"),
        (T, "something of type int"),
        ([None], "something of type list"),
    ],
)
def test_what_cannot_be_told_is_refused_not_guessed(given: Any, named: str) -> None:
    hidden, rows = torch.zeros(B, T, H), torch.tensor([0])
    for call in (call_with(given), call_with(x=given), call_with((None, given))):
        with pytest.raises(BackboneError, match=f"are given {named}") as caught:
            narrow(hidden, [call], rows, 3)
        assert "\n" not in str(caught.value)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("longest", [7, 8, 9])  # 8 is also the width of a head
def test_the_rest_of_the_batch_goes_on_as_if_it_had_been_alone(
    backbone_config: PreTrainedConfig, attention: str, longest: int
) -> None:
    if attention not in (
        AutoModel.from_config(backbone_config).config._attn_implementation,
        "eager",
    ):
        pytest.skip("transformers has the eager attention of this family only")
    backbone = AutoModel.from_config(backbone_config, attn_implementation=attention).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in backbone.parameters():
        parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    lengths = torch.tensor([2, longest, 5, 6])
    mask = (torch.arange(longest) < lengths[:, None]).long()
    ids = torch.randint(5, 23, mask.shape, generator=generator)
    inputs = {
        "input_ids": torch.where(mask == 1, ids, backbone_config.pad_token_id),
        "attention_mask": mask,
    }
    rows = torch.tensor([3, 0])
    depth = len(layer_calls(make_shell(backbone), inputs)[1])
    for leaves_after in range(depth):
        hidden, calls = layer_calls(make_shell(backbone), inputs)
        alone, calls_alone = layer_calls(
            make_shell(backbone), {name: tensor[rows, :6] for name, tensor in inputs.items()}
        )
        for layer in range(depth):
            if layer == leaves_after:
                hidden, calls[layer:] = narrow(hidden, calls[layer:], rows, 6)
            hidden, alone = calls[layer](hidden), calls_alone[layer](alone)
        # What is computed for padding is nobody's.
        seen = mask[rows, :6] == 1
        torch.testing.assert_close(hidden[seen], alone[seen], rtol=1e-4, atol=1e-4)
