"""What is known of families, what is refused in one line, and what is tried."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModel, PreTrainedConfig

from cee_gym.backbones.families import FAMILIES, Family, family_of, register_family
from cee_gym.errors import BackboneError, CeeGymError
from cee_gym.exits import MultiExitConfig, MultiExitModel, load_model

LABELS = ("no", "yes")
SIZE: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "pad_token_id": 1,
}
GROUPED = {**SIZE, "num_key_value_heads": 2, "head_dim": 8}
OF_DEBERTA = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0}


def config_of(name: str, **settings: Any) -> PreTrainedConfig:
    return getattr(transformers, f"{name}Config")(**settings)


def checkpoint(config: PreTrainedConfig, path: Path) -> Path:
    """With weights so large that tokens and layers differ."""
    torch.manual_seed(0)
    backbone = AutoModel.from_config(config)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    backbone.save_pretrained(path)
    return path


def refusal(config: PreTrainedConfig, path: Path) -> str:
    with pytest.raises(BackboneError) as caught:
        MultiExitModel.from_backbone(str(checkpoint(config, path)), LABELS)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def inputs() -> dict[str, torch.Tensor]:
    """Three texts of 9, 5 and 2 tokens."""
    mask = (torch.arange(9) < torch.tensor([9, 5, 2])[:, None]).long()
    ids = torch.randint(5, 30, mask.shape, generator=torch.Generator().manual_seed(1))
    return {"input_ids": torch.where(mask == 1, ids, 1), "attention_mask": mask}


@torch.no_grad()
def assert_last_state_is_read_from(path: Path, model: MultiExitModel) -> None:
    """The state of the last layer is the pooled first token of transformers' last hidden state."""
    theirs = AutoModel.from_pretrained(path).eval()(**inputs()).last_hidden_state[:, 0]
    states = model.eval()(**inputs()).states
    torch.testing.assert_close(states[:, -1], model.poolers[0](theirs))
    assert not torch.allclose(states[:, 0], states[:, -1], atol=1e-2)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forgets what a test registers."""
    monkeypatch.setattr(FAMILIES, "_entries", dict(FAMILIES._entries))
    monkeypatch.setattr(FAMILIES, "_modules", dict(FAMILIES._modules))


# What works


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("EuroBert", GROUPED),
        ("Esm", {**SIZE, "mask_token_id": 3}),
        ("RobertaPreLayerNorm", SIZE),
        ("Deberta", SIZE | OF_DEBERTA),
        ("DebertaV2", SIZE | OF_DEBERTA | {"position_buckets": 4}),
        ("ModernBert", {**SIZE, "bos_token_id": 2, "eos_token_id": 3}),
    ],
)
def test_the_norm_after_the_last_layer_is_known(
    name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    path = checkpoint(config_of(name, **settings), tmp_path)
    model = MultiExitModel.from_backbone(str(path), LABELS)
    assert family_of(model.backbone.config) != Family()
    assert_last_state_is_read_from(path, model)


@pytest.mark.parametrize("name", ["Camembert", "Ernie", "Data2VecText"])
def test_what_is_not_in_the_table_is_tried(name: str, tmp_path: Path) -> None:
    config = config_of(name, **SIZE)
    assert config.model_type not in FAMILIES
    path = checkpoint(config, tmp_path)
    assert_last_state_is_read_from(path, MultiExitModel.from_backbone(str(path), LABELS))


@torch.no_grad()
def test_a_family_of_ones_own_is_kept_with_the_model(tmp_path: Path, registry: None) -> None:
    path = checkpoint(config_of("MegatronBert", **SIZE), tmp_path / "backbone")
    register_family("megatron-bert", Family(norm="encoder.ln", tuples=True))
    model = MultiExitModel.from_backbone(str(path), LABELS).eval()
    assert_last_state_is_read_from(path, model)
    model.save_pretrained(tmp_path / "model")
    del FAMILIES._entries["megatron-bert"]
    loaded = load_model(tmp_path / "model")
    torch.testing.assert_close(loaded(**inputs()).states, model(**inputs()).states)


def test_a_family_that_is_known_is_not_replaced(registry: None) -> None:
    with pytest.raises(CeeGymError, match="'bert' is taken by cee_gym"):
        register_family("bert", Family(norm="final_norm"))


def test_a_norm_that_is_not_there_is_told(tmp_path: Path, registry: None) -> None:
    register_family("camembert", Family(norm="final_norm"))
    message = refusal(config_of("Camembert", **SIZE), tmp_path)
    assert message.startswith("CamembertModel has no final_norm")


# What is refused


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("Llama", GROUPED, "llama is a decoder, whose first token sees no other"),
        ("Qwen3", GROUPED, "qwen3 is a decoder"),
        (
            "GPT2",
            {"vocab_size": 40, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 40},
            "gpt2 is a decoder",
        ),
        ("Bert", {**SIZE, "is_decoder": True}, "bert is a decoder"),
        (
            "Bart",
            {
                "vocab_size": 40,
                "d_model": 16,
                "encoder_layers": 2,
                "decoder_layers": 2,
                "encoder_attention_heads": 2,
                "decoder_attention_heads": 2,
                "encoder_ffn_dim": 32,
                "decoder_ffn_dim": 32,
                "max_position_embeddings": 40,
            },
            "bart is an encoder-decoder",
        ),
        (
            "T5",
            {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2},
            "t5 is an encoder-decoder",
        ),
        ("Bert", {**SIZE, "num_hidden_layers": 1}, "this bert has one layer"),
    ],
)
def test_what_cannot_carry_exits_is_refused(
    name: str, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = config_of(name, **settings)
    assert refusal(config, tmp_path).startswith(message)
    with pytest.raises(BackboneError, match=message):
        MultiExitModel(MultiExitConfig(config, num_labels=2))


def test_flex_attention_is_refused(tmp_path: Path) -> None:
    checkpoint(config_of("Bert", **SIZE), tmp_path)
    file = tmp_path / "config.json"
    settings = json.loads(file.read_text()) | {"attn_implementation": "flex_attention"}
    file.write_text(json.dumps(settings))
    with pytest.raises(BackboneError, match="by flex_attention, from whose masks") as caught:
        MultiExitModel.from_backbone(str(tmp_path), LABELS)
    assert "\n" not in str(caught.value)
