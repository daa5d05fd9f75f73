import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertForMaskedLM,
    PreTrainedConfig,
    ResNetConfig,
)

from cee_gym import MultiExitModel
from cee_gym.backbones.fingerprint import fingerprint
from cee_gym.errors import BackboneError
from cee_gym.exits import MultiExitConfig, MultiExitOutput, load_model

LABELS = ("no", "maybe", "yes")
HAVE_POOLERS = ("bert", "roberta", "xlm-roberta", "mpnet", "albert", "albert-2-groups")
Inputs = dict[str, torch.Tensor]


def make_model(backbone: PreTrainedConfig, **settings: Any) -> MultiExitModel:
    """In eval mode, with weights so large that states and layers differ; always the same ones."""
    torch.manual_seed(0)
    model = MultiExitModel(MultiExitConfig(copy.deepcopy(backbone), num_labels=3, **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def make_inputs(config: PreTrainedConfig) -> Inputs:
    """Three texts of 9, 5 and 2 tokens."""
    mask = (torch.arange(9) < torch.tensor([9, 5, 2])[:, None]).long()
    ids = torch.randint(5, 23, mask.shape, generator=torch.Generator().manual_seed(1))
    return {
        "input_ids": torch.where(mask == 1, ids, config.pad_token_id),
        "attention_mask": mask,
    }


@pytest.fixture
def model(backbone_config: PreTrainedConfig) -> MultiExitModel:
    return make_model(backbone_config)


@pytest.fixture
def inputs(backbone_config: PreTrainedConfig) -> Inputs:
    return make_inputs(backbone_config)


@pytest.fixture
def checkpoint(backbone_config: PreTrainedConfig, tmp_path: Path) -> Path:
    """A pre-trained backbone of every family, on disk."""
    torch.manual_seed(0)
    backbone = AutoModel.from_config(backbone_config)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    backbone.save_pretrained(tmp_path / "backbone")
    return tmp_path / "backbone"


def assert_same_output(one: MultiExitOutput, other: MultiExitOutput, atol: float = 0) -> None:
    torch.testing.assert_close(one.states, other.states, rtol=0, atol=atol)
    torch.testing.assert_close(one.logits, other.logits, rtol=0, atol=atol)


# What the exits give


@torch.no_grad()
@pytest.mark.parametrize("pooler", ["shared", "per_layer"])
@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_states_and_logits_are_as_in_the_paper(
    backbone_config: PreTrainedConfig, inputs: Inputs, pooler: str, pooling: str
) -> None:
    model = make_model(backbone_config, pooler=pooler, pooling=pooling)
    output = model(**inputs)
    depth = model.num_layers
    assert output.states.shape == (3, depth, 16)
    assert output.logits.shape == (3, depth, 3)
    assert len(model.poolers) == {"shared": 1, "per_layer": depth}[pooler]
    hidden_states = model.backbone(**inputs, output_hidden_states=True).hidden_states[1:]
    for layer, hidden in enumerate(hidden_states, start=1):
        norm = getattr(model.backbone, "final_norm", None)
        if norm is not None and layer < depth:  # transformers applies it to the last layer's only
            hidden = norm(hidden)
        for row, length in enumerate((9, 5, 2)):
            pooled = hidden[row, 0] if pooling == "first" else hidden[row, :length].mean(dim=0)
            linear = model.poolers[layer - 1 if pooler == "per_layer" else 0]
            state = torch.tanh(linear.weight @ pooled + linear.bias)
            head = model.heads[layer - 1]
            logits = head.weight @ state + head.bias
            torch.testing.assert_close(output.states[row, layer - 1], state)
            torch.testing.assert_close(output.logits[row, layer - 1], logits)


@torch.no_grad()
def test_leaving_early_gives_the_same_as_running_on(model: MultiExitModel, inputs: Inputs) -> None:
    output = model(**inputs)
    hidden, layers = model.begin(inputs)
    for number, layer in enumerate(layers, start=1):
        hidden = layer(hidden)
        state, logits = model.exit(hidden, number, inputs["attention_mask"])
        assert torch.equal(state, output.states[:, number - 1])
        assert torch.equal(logits, output.logits[:, number - 1])


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_padding_changes_nothing(
    backbone_config: PreTrainedConfig, inputs: Inputs, pooling: str
) -> None:
    model = make_model(backbone_config, pooling=pooling)
    together = model(**inputs)
    for row, length in enumerate((9, 5, 2)):
        alone = model(**{name: t[row : row + 1, :length] for name, t in inputs.items()})
        assert_same_output(
            alone,
            MultiExitOutput(
                states=together.states[row : row + 1], logits=together.logits[row : row + 1]
            ),
            atol=1e-5,
        )


def test_dropout_is_between_state_and_classifier_only(tiny_model: MultiExitModel) -> None:
    """The policy sees the state without (ConsistentEE); the backbone's own dropout is off here."""
    inputs = make_inputs(tiny_model.config.backbone_config)
    tiny_model.dropout.train()
    torch.manual_seed(0)
    one, other = tiny_model(**inputs), tiny_model(**inputs)
    assert torch.equal(one.states, other.states)
    assert not torch.equal(one.logits, other.logits)
    tiny_model.eval()
    assert torch.equal(tiny_model(**inputs).logits, tiny_model(**inputs).logits)


def test_sizes_are_read_from_the_model(model: MultiExitModel, family: str) -> None:
    depths = {"albert-2-groups": 4, "electra": 5, "distilbert": 2, "modernbert": 4}
    assert model.num_layers == len(model.heads) == depths.get(family, 3)
    assert model.width == 16
    assert model.num_labels == 3


def test_the_loss_reaches_every_weight(model: MultiExitModel, inputs: Inputs) -> None:
    model.train()
    model(**inputs).logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if "key.bias" not in name and "k_lin.bias" not in name:  # softmax does not see these
            assert parameter.grad.abs().sum() > 0, name


def test_an_exit_trains_no_layer_behind_it(tiny_model: MultiExitModel) -> None:
    inputs = make_inputs(tiny_model.config.backbone_config)
    tiny_model(**inputs).logits[:, 1].square().sum().backward()
    layers = tiny_model.backbone.encoder.layer
    touched = [any(p.grad.any() for p in layer.parameters()) for layer in layers]
    assert touched == [True, True, False]


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
def test_gradient_checkpointing_gives_the_same_gradients(tiny_model: MultiExitModel) -> None:
    backbone = copy.deepcopy(tiny_model.config.backbone_config)
    backbone.hidden_dropout_prob = backbone.attention_probs_dropout_prob = 0.0
    inputs = make_inputs(backbone)
    gradients, runs = [], []
    for checkpointing in (False, True):
        model = make_model(backbone, exit_dropout=0.0).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        calls: list[nn.Module] = []
        for layer in model.backbone.encoder.layer:
            layer.attention.register_forward_hook(
                lambda module, *_, calls=calls: calls.append(module)
            )
        model(**inputs).logits.square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
        runs.append(len(calls))
    assert runs == [3, 6]  # each layer runs once more on the way back
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


# Copies and precision


@torch.no_grad()
def test_a_deep_copy_shares_nothing(model: MultiExitModel, inputs: Inputs) -> None:
    before = model(**inputs)
    twin = copy.deepcopy(model)
    assert_same_output(twin(**inputs), before)
    addresses = {tensor.data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    assert not addresses & {tensor.data_ptr() for tensor in [*twin.parameters(), *twin.buffers()]}
    for parameter in twin.parameters():
        parameter.zero_()
    assert twin(**inputs).states.abs().max() == 0  # its layers are its own
    assert_same_output(model(**inputs), before)


@torch.no_grad()
def test_double_precision_goes_all_the_way(model: MultiExitModel, inputs: Inputs) -> None:
    single = model(**inputs)
    double = model.to(torch.float64)(**inputs)
    assert double.states.dtype == double.logits.dtype == torch.float64
    torch.testing.assert_close(single.states.double(), double.states, rtol=0, atol=1e-4)


# Saving and loading


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_scaled_states_are_factor_and_offset_of_each_layer(
    backbone_config: PreTrainedConfig, inputs: Inputs, pooling: str
) -> None:
    model = make_model(backbone_config, pooler="scaled", pooling=pooling)
    plain = make_model(backbone_config, pooler="scaled", pooling=pooling)
    plain.load_state_dict(model.state_dict())
    for scale in plain.poolers:
        scale.weight.fill_(1)
        scale.bias.zero_()
    states, read = model(**inputs).states, plain(**inputs).states
    assert len(model.poolers) == model.num_layers
    for layer, scale in enumerate(model.poolers):
        expected = scale.weight * read[:, layer] + scale.bias
        torch.testing.assert_close(states[:, layer], expected)


@torch.no_grad()
def test_temperatures_divide_the_logits_for_good(
    model: MultiExitModel, inputs: Inputs, tmp_path: Path
) -> None:
    before = model(**inputs)
    temperatures = torch.linspace(0.5, 3, model.num_layers)
    model.divide_logits(temperatures)
    after = model(**inputs)
    torch.testing.assert_close(after.logits * temperatures[:, None], before.logits)
    torch.testing.assert_close(after.states, before.states)
    assert torch.equal(after.logits.argmax(2), before.logits.argmax(2))
    model.divide_logits(torch.full((model.num_layers,), 2.0))
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    torch.testing.assert_close(torch.tensor(loaded.config.temperatures), 2 * temperatures)
    assert_same_output(loaded(**inputs), model(**inputs))


@torch.no_grad()
@pytest.mark.parametrize("pooler", ["shared", "per_layer", "scaled"])
def test_saved_and_loaded_it_gives_the_same(
    backbone_config: PreTrainedConfig, inputs: Inputs, tmp_path: Path, pooler: str
) -> None:
    model = make_model(backbone_config, pooler=pooler, pooling="mean", max_tokens=17, task="rte")
    model.save_pretrained(tmp_path)
    loaded = MultiExitModel.from_pretrained(tmp_path)
    assert not loaded.training
    assert_same_output(loaded(**inputs), model(**inputs))
    for name in ("pooler", "pooling", "max_tokens", "task", "exit_dropout"):
        assert getattr(loaded.config, name) == getattr(model.config, name)
    expected = model.backbone.config.to_diff_dict()
    assert loaded.backbone.config.to_diff_dict() == expected | {"dtype": "float32"}


def test_weights_are_saved_once_and_nothing_is_pickled(
    model: MultiExitModel, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    saved = load_file(tmp_path / "model.safetensors")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    assert saved.keys() == parameters.keys() == model.state_dict().keys()
    assert len({parameter.data_ptr() for parameter in parameters.values()}) == len(parameters)
    assert not any("shell" in name or "pooler." in name for name in saved)


@pytest.mark.parametrize("count", [2, 12, 150])
def test_labels_keep_their_order(count: int, tmp_path: Path, tiny_model: MultiExitModel) -> None:
    labels = {number: f"label {(7 * number) % count}" for number in range(count)}
    config = copy.deepcopy(tiny_model.config)
    config.id2label = labels
    config.label2id = {label: number for number, label in labels.items()}
    model = MultiExitModel(config)
    assert model.labels == list(labels.values())
    assert model.heads[0].out_features == model.num_labels == len(labels)
    model.save_pretrained(tmp_path)
    assert MultiExitModel.from_pretrained(tmp_path).labels == model.labels


def test_labels_go_by_number_in_a_configuration_that_was_sorted_as_text(
    tmp_path: Path, tiny_model: MultiExitModel
) -> None:
    labels = {number: f"label {number}" for number in range(12)}
    config = copy.deepcopy(tiny_model.config)
    config.id2label = labels
    config.label2id = {label: number for number, label in labels.items()}
    MultiExitModel(config).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()), sort_keys=True))  # 0, 1, 10, 11, 2
    assert load_model(tmp_path).labels == list(labels.values())


@pytest.mark.parametrize("numbers", [(1, 2), (0, 2), (-1, 0)])
def test_classes_that_are_not_numbered_from_0_are_refused(
    numbers: tuple[int, int], tiny_model: MultiExitModel
) -> None:
    config = copy.deepcopy(tiny_model.config)
    config.id2label = dict(zip(numbers, ("a", "b"), strict=True))
    with pytest.raises(BackboneError, match="number them from 0 to 1"):
        MultiExitModel(config)


@pytest.mark.parametrize("numbers", [("0", "2"), ("1", "2"), ("0", "01"), ("0", "x"), ("0", "1.0")])
def test_a_configuration_that_numbers_its_classes_otherwise_is_refused(
    numbers: tuple[str, str], tmp_path: Path, tiny_model: MultiExitModel
) -> None:
    tiny_model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    config["id2label"] = dict(zip(numbers, ("a", "b"), strict=True))
    file.write_text(json.dumps(config))
    with pytest.raises(BackboneError, match=f"as {', '.join(numbers)}: number them from 0 to 1"):
        load_model(tmp_path)


def test_what_it_is_for_is_kept(checkpoint: Path, tmp_path: Path) -> None:
    for pair in (False, True):
        model = MultiExitModel.from_backbone(str(checkpoint), LABELS, task="rte", pair=pair)
        model.save_pretrained(tmp_path / "saved")
        loaded = load_model(tmp_path / "saved")
        assert (loaded.config.task, loaded.config.pair) == ("rte", pair)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_that_was_cast_is_saved_and_loaded(
    dtype: torch.dtype, checkpoint: Path, tmp_path: Path
) -> None:
    model = MultiExitModel.from_backbone(str(checkpoint), LABELS).to(dtype)
    model.save_pretrained(tmp_path / "cast")
    loaded = load_model(tmp_path / "cast")
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    assert fingerprint(loaded) == fingerprint(model)
    assert load_model(tmp_path / "cast", torch.float32).dtype == torch.float32


def test_attention_is_as_fast_as_the_backbones_own(
    checkpoint: Path, family: str, tmp_path: Path
) -> None:
    own = AutoModel.from_pretrained(checkpoint).config._attn_implementation
    fresh = MultiExitModel.from_backbone(str(checkpoint), LABELS)
    fresh.save_pretrained(tmp_path / "saved")
    loaded = MultiExitModel.from_pretrained(tmp_path / "saved")
    for model in (fresh, loaded):
        assert model.backbone.config._attn_implementation == own
    # Of these transformers has no other.
    assert own == ("eager" if family in ("mpnet", "deberta-v2") else "sdpa")


# Heads on a pre-trained backbone


def test_the_backbone_brings_its_weights(checkpoint: Path) -> None:
    model = MultiExitModel.from_backbone(str(checkpoint), LABELS, task="rte")
    theirs = AutoModel.from_pretrained(checkpoint).state_dict()
    ours = model.backbone.state_dict()
    assert ours.keys() == {name for name in theirs if not name.startswith("pooler.")}
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert model.labels == list(LABELS)
    assert model.config.label2id == {"no": 0, "maybe": 1, "yes": 2}
    assert model.config.task == "rte"


def test_a_backbone_in_memory_keeps_its_weights(backbone_config: PreTrainedConfig) -> None:
    backbone = AutoModel.from_config(backbone_config)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.fill_(0.25)
    model = MultiExitModel(MultiExitConfig(backbone_config, num_labels=3), backbone)
    assert all((parameter == 0.25).all() for parameter in model.backbone.parameters())


@pytest.mark.parametrize("pooler", ["shared", "per_layer"])
def test_poolers_start_from_the_backbones_own(checkpoint: Path, family: str, pooler: Any) -> None:
    model = MultiExitModel.from_backbone(str(checkpoint), LABELS, pooler=pooler)
    assert len(model.poolers) == (1 if pooler == "shared" else model.num_layers)
    saved = load_file(checkpoint / "model.safetensors")
    own = {"albert": "pooler", "albert-2-groups": "pooler"}.get(family, "pooler.dense")
    assert (f"{own}.weight" in saved) == (family in HAVE_POOLERS)
    for linear in model.poolers:
        if family in HAVE_POOLERS:
            assert torch.equal(linear.weight, saved[f"{own}.weight"])
            assert torch.equal(linear.bias, saved[f"{own}.bias"])
        else:
            assert linear.weight.std().item() == pytest.approx(0.02, rel=0.3)
            assert (linear.bias == 0).all()


def test_the_seed_alone_decides_fresh_weights(checkpoint: Path) -> None:
    def fresh(seed: int, elsewhere: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(elsewhere)
        model = MultiExitModel.from_backbone(str(checkpoint), LABELS, seed=seed)
        return {f"heads.{name}": weight for name, weight in model.heads.state_dict().items()} | {
            f"poolers.{name}": weight for name, weight in model.poolers.state_dict().items()
        }

    one, same, other = fresh(3, 0), fresh(3, 1), fresh(4, 0)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["heads.0.weight"], other["heads.0.weight"])
    assert not torch.equal(one["heads.0.weight"], one["heads.1.weight"])


def test_the_seed_decides_a_pooler_that_the_checkpoint_lacks(
    tmp_path: Path, tiny_model: MultiExitModel
) -> None:
    BertForMaskedLM(tiny_model.config.backbone_config).save_pretrained(tmp_path)
    poolers = []
    for elsewhere in (0, 1):
        torch.manual_seed(elsewhere)
        model = MultiExitModel.from_backbone(str(tmp_path), LABELS, seed=3)
        poolers.append(model.poolers[0].weight)
    assert torch.equal(*poolers)


def test_other_random_numbers_are_left_alone(checkpoint: Path) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    MultiExitModel.from_backbone(str(checkpoint), LABELS, seed=5)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_backbone_stored_in_half_precision_is_trained_in_single(
    checkpoint: Path, tmp_path: Path
) -> None:
    AutoModel.from_pretrained(checkpoint).half().save_pretrained(tmp_path / "half")
    model = MultiExitModel.from_backbone(str(tmp_path / "half"), LABELS)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@torch.no_grad()
def test_no_text_may_be_longer_than_the_backbone_takes(checkpoint: Path, family: str) -> None:
    """Of its 40 positions RoBERTa, and what is made after it, never uses the first two."""
    after_roberta = family in ("roberta", "xlm-roberta", "mpnet")
    model = MultiExitModel.from_backbone(str(checkpoint), LABELS, max_tokens=1000).eval()
    assert model.config.max_tokens == (38 if after_roberta else 40)
    ids = torch.full((1, model.config.max_tokens), 7)
    assert model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.isfinite().all()
    short = MultiExitModel.from_backbone(str(checkpoint), LABELS, max_tokens=11)
    assert short.config.max_tokens == 11


# Bad backbones


def refusal(name_or_path: str) -> str:
    with pytest.raises(BackboneError) as caught:
        MultiExitModel.from_backbone(name_or_path, LABELS)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "name_or_path", ["nobody/no-such-model", "/no/such/directory", "not a name!"]
)
def test_a_backbone_out_of_reach_names_three_ways_out(name_or_path: str) -> None:
    message = refusal(name_or_path)
    assert message.startswith(f"backbone {name_or_path} cannot be loaded (")
    for way in ("a local directory", "where the hub can be reached", "(cee-gym envs)"):
        assert way in message


def test_a_directory_without_a_model(tmp_path: Path) -> None:
    assert f"backbone {tmp_path} cannot be loaded" in refusal(str(tmp_path))


@pytest.mark.parametrize("keep", [0, 5, 1000])
def test_damaged_weights(tmp_path: Path, tiny_model: MultiExitModel, keep: int) -> None:
    tiny_model.backbone.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert f"backbone {tmp_path} cannot be loaded" in refusal(str(tmp_path))


def test_pickled_or_missing_weights_are_refused(tmp_path: Path, tiny_model: MultiExitModel) -> None:
    tiny_model.save_pretrained(tmp_path)
    assert load_model(tmp_path, torch.float16).dtype == torch.float16
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    torch.save(weights, tmp_path / "pytorch_model.bin")
    del weights["heads.1.weight"]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(BackboneError, match=r"1 missing, the first of them heads\.1\.weight"):
        load_model(tmp_path)
    file.unlink()
    with pytest.raises(BackboneError, match="there is no model at"):
        load_model(tmp_path)


def test_a_backbone_of_another_kind(tmp_path: Path) -> None:
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])
    AutoModel.from_config(config).save_pretrained(tmp_path)
    assert "ResNetModel has no list of layers" in refusal(str(tmp_path))


# Real weights


@pytest.mark.real_data
@torch.no_grad()
@pytest.mark.parametrize("name", ["minilm-l6-h384", "minilm-l6-h384-nli"])
def test_minilm_runs_layer_by_layer(shared: Path, name: str) -> None:
    path = shared / "models" / name
    model = MultiExitModel.from_backbone(str(path), LABELS).eval()
    assert (model.num_layers, model.width, model.config.max_tokens) == (6, 384, 128)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    tokenizer = AutoTokenizer.from_pretrained(path)
    inputs = tokenizer(
        ["A man sleeps.", "Two dogs run across a wide green field."],
        ["Nobody is awake.", "Animals are outside."],
        padding=True,
        return_tensors="pt",
    )
    hidden, layers = model.begin(dict(inputs))
    theirs = AutoModel.from_pretrained(path, dtype=torch.float32).eval()
    for layer, expected in zip(
        layers, theirs(**inputs, output_hidden_states=True).hidden_states[1:], strict=True
    ):
        hidden = layer(hidden)
        torch.testing.assert_close(hidden, expected, rtol=0, atol=1e-5)
    pooled = theirs(**inputs).pooler_output
    torch.testing.assert_close(model(**inputs).states[:, -1], pooled, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"id2label": {0: "a", 1: "a"}}, "two classes one name"),
        ({"id2label": {0: "a", 1: None}}, "no text"),
        ({"pooling": "max"}, "pooling 'max'"),
        ({"pooler": "none"}, "pooler 'none'"),
        ({"max_tokens": "128"}, "max_tokens must be"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(tmp_path, tiny_model, settings, message) -> None:
    tiny_model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    with pytest.raises(BackboneError, match=message):
        load_model(tmp_path)
