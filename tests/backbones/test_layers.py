"""The backbone run one layer at a time is the backbone."""

import copy
from collections import Counter
from itertools import pairwise
from threading import Barrier, Thread
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    GPT2Config,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
)

from cee_gym.backbones.layers import layer_calls, make_shell
from cee_gym.errors import BackboneError

Inputs = dict[str, torch.Tensor]


def make_backbone(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """With weights so large that layers differ."""
    generator = torch.Generator().manual_seed(seed)
    backbone = AutoModel.from_config(config).eval()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return backbone


@pytest.fixture
def backbone(backbone_config: PreTrainedConfig) -> PreTrainedModel:
    return make_backbone(backbone_config)


@pytest.fixture
def inputs(backbone_config: PreTrainedConfig) -> Inputs:
    return make_inputs(backbone_config, 0)


def make_inputs(config: PreTrainedConfig, seed: int) -> Inputs:
    """Three texts of 9, 5 and 1 tokens."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(9) < torch.tensor([9, 5, 1])[:, None]).long()
    ids = torch.randint(5, config.vocab_size, mask.shape, generator=generator)
    return {
        "input_ids": torch.where(mask == 1, ids, config.pad_token_id),
        "attention_mask": mask,
    }


def run(shell: nn.Module, inputs: Inputs) -> list[torch.Tensor]:
    """The hidden states before the first and after every layer."""
    hidden, calls = layer_calls(shell, inputs)
    states = [hidden]
    for call in calls:
        states.append(call(states[-1]))
    return states


def hidden_states(backbone: PreTrainedModel, inputs: Inputs) -> list[torch.Tensor]:
    return list(backbone(**inputs, output_hidden_states=True).hidden_states)


def after_the_last_layer(backbone: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """ModernBERT counts the norm that follows its layers to the last of its hidden states."""
    return getattr(backbone, "final_norm", nn.Identity())(hidden)


BERT = BertConfig(
    vocab_size=24,
    hidden_size=16,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=40,
)


@torch.no_grad()
def test_layer_by_layer_equals_the_backbones_own_hidden_states(
    backbone: PreTrainedModel, inputs: Inputs
) -> None:
    ours, theirs = run(make_shell(backbone), inputs), hidden_states(backbone, inputs)
    ours[-1] = after_the_last_layer(backbone, ours[-1])
    assert len(ours) == len(theirs) == backbone.config.num_hidden_layers + 1
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    for before, after in pairwise(ours):
        assert not torch.allclose(before, after, atol=1e-2)  # or the test would say nothing


def test_every_layer_has_its_call_in_order(backbone: PreTrainedModel, inputs: Inputs) -> None:
    _, calls = layer_calls(make_shell(backbone), inputs)
    layers = [call.layer for call in calls]
    expected = {"albert": [0, 0, 0], "albert-2": [0, 0, 1, 1]}
    if backbone.config.model_type == "albert":
        groups = backbone.config.num_hidden_groups
        order = expected["albert" if groups == 1 else "albert-2"]
        own = list(backbone.encoder.albert_layer_groups)
        assert layers == [own[group] for group in order]
    else:
        lists = [list(m) for m in backbone.modules() if isinstance(m, nn.ModuleList)]
        assert layers in lists
        assert len(set(layers)) == backbone.config.num_hidden_layers


@torch.no_grad()
def test_a_layer_runs_when_it_is_called_and_not_before(
    backbone: PreTrainedModel, inputs: Inputs
) -> None:
    shell = make_shell(backbone)
    counts: Counter[nn.Module] = Counter()
    for layer in {call.layer for call in layer_calls(shell, inputs)[1]}:
        layer.register_forward_hook(lambda module, *_: counts.update([module]))
    hidden, calls = layer_calls(shell, inputs)
    assert counts.total() == 0
    for number, call in enumerate(calls, start=1):
        hidden = call(hidden)
        assert counts.total() == number


def test_the_backbone_itself_is_left_as_it_was(backbone: PreTrainedModel, inputs: Inputs) -> None:
    names = [name for name, _ in backbone.named_modules()]
    with torch.no_grad():
        before = backbone(**inputs).last_hidden_state
        make_shell(backbone)
        after = backbone(**inputs).last_hidden_state
    assert [name for name, _ in backbone.named_modules()] == names
    assert torch.equal(before, after)


@torch.no_grad()
def test_the_shell_sees_new_weights(backbone: PreTrainedModel, inputs: Inputs) -> None:
    shell = make_shell(backbone)
    for parameter in backbone.parameters():
        parameter.mul_(-0.5)
    ours, theirs = run(shell, inputs), hidden_states(backbone, inputs)
    torch.testing.assert_close(
        after_the_last_layer(backbone, ours[-1]), theirs[-1], rtol=0, atol=1e-6
    )


@torch.no_grad()
def test_the_shell_follows_a_change_of_precision(backbone: PreTrainedModel, inputs: Inputs) -> None:
    shell = make_shell(backbone)
    single = run(shell, inputs)
    backbone.to(torch.float64)
    double = run(shell, inputs)
    assert all(hidden.dtype == torch.float64 for hidden in double)
    torch.testing.assert_close(single[-1].double(), double[-1], rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_a_copy_shares_nothing(backbone: PreTrainedModel, inputs: Inputs) -> None:
    original = nn.ModuleList([backbone])
    original.shell = (make_shell(backbone),)  # type: ignore[assignment]
    before = run(make_shell(backbone), inputs)
    twin = copy.deepcopy(original)
    for parameter in twin.parameters():
        parameter.zero_()
    for one, other in zip(run(original.shell[0], inputs), before, strict=True):
        assert torch.equal(one, other)
    _, calls = layer_calls(twin.shell[0], inputs)
    assert all(parameter.eq(0).all() for call in calls for parameter in call.layer.parameters())


@pytest.mark.parametrize("rounds", range(3))
def test_threads_that_share_a_model_get_their_own_calls(rounds: int) -> None:
    backbone = make_backbone(BERT)
    shell = make_shell(backbone)
    given = [make_inputs(BERT, seed) for seed in range(4)]
    expected = [run(shell, inputs)[-1] for inputs in given]
    found: list[Any] = [None] * len(given)
    barrier = Barrier(len(given), timeout=20)

    def wait_for_all(*_: Any) -> None:
        barrier.wait()

    # All are past the embeddings before any goes on to the layers.
    handle = backbone.embeddings.register_forward_hook(wait_for_all)

    def work(number: int) -> None:
        with torch.no_grad():
            found[number] = run(shell, given[number])

    threads = [Thread(target=work, args=(number,)) for number in range(len(given))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    handle.remove()
    for states, last in zip(found, expected, strict=True):
        assert len(states) == BERT.num_hidden_layers + 1
        torch.testing.assert_close(states[-1], last)


def test_gradients_reach_every_layer(backbone: PreTrainedModel, inputs: Inputs) -> None:
    run(make_shell(backbone), inputs)[-1].square().sum().backward()
    for name, parameter in backbone.named_parameters():
        if "pooler" not in name and "final_norm" not in name:
            assert parameter.grad is not None, name


def test_gradients_are_the_backbones_own() -> None:
    inputs = make_inputs(BERT, 0)
    gradients = []
    for layer_by_layer in (False, True):
        backbone = make_backbone(BERT)
        hidden = (
            run(make_shell(backbone), inputs)[-1]
            if layer_by_layer
            else backbone(**inputs).last_hidden_state
        )
        hidden.square().sum().backward()
        gradients.append(backbone.embeddings.word_embeddings.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_outputs_asked_for_in_the_configuration_do_no_harm() -> None:
    inputs = make_inputs(BERT, 0)
    plain, asking = make_backbone(BERT), make_backbone(BERT)
    asking.config.output_hidden_states = True
    with torch.no_grad():
        assert torch.equal(run(make_shell(plain), inputs)[-1], run(make_shell(asking), inputs)[-1])


@pytest.mark.parametrize("depth", [1, 2, 7])
def test_depth_is_read_from_the_model(depth: int) -> None:
    config = copy.deepcopy(BERT)
    config.num_hidden_layers = depth
    _, calls = layer_calls(make_shell(make_backbone(config)), make_inputs(config, 0))
    assert len(calls) == depth


def test_a_model_without_a_list_of_layers_is_refused() -> None:
    pictures = AutoModel.from_config(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])
    )
    with pytest.raises(BackboneError, match="ResNetModel has no list of layers") as caught:
        make_shell(pictures)
    assert "\n" not in str(caught.value)


def test_a_model_whose_list_is_of_another_length_is_refused() -> None:
    backbone = BertModel(BERT)
    del backbone.encoder.layer[-1]
    with pytest.raises(BackboneError, match="BertModel has no list of layers"):
        make_shell(backbone)


def test_a_decoder_has_layers_too() -> None:
    config = GPT2Config(
        vocab_size=24, n_embd=16, n_layer=2, n_head=2, n_positions=40, eos_token_id=1
    )
    config.pad_token_id = 0
    backbone = make_backbone(config)
    inputs = make_inputs(config, 0)
    with torch.no_grad():
        ours = run(make_shell(backbone), inputs)[-1]
        theirs = backbone(**inputs).last_hidden_state
    torch.testing.assert_close(backbone.ln_f(ours), theirs)


def test_a_layer_of_a_shell_that_is_being_unpickled_has_no_attributes_yet() -> None:
    (layer, *_) = make_shell(BertModel(BERT)).encoder.layer
    assert layer.attention is not None  # of the layer it stands for
    empty = type(layer).__new__(type(layer))
    with pytest.raises(AttributeError):
        _ = empty.attention
