"""Weights that were not loaded, or that nobody asked for, are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertForMaskedLM, BertForSequenceClassification

from cee_gym.errors import BackboneError
from cee_gym.exits import MultiExitModel, load_model
from tests.conftest import tiny_config

LABELS = ("no", "yes")
Weights = dict[str, torch.Tensor]


def change(path: Path, weights: Callable[[Weights], Weights] | None = None, **config: Any) -> None:
    if weights is not None:
        file = path / "model.safetensors"
        save_file(weights(load_file(file)), file, {"format": "pt"})
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))


def refusal(load: Callable[[], Any]) -> str:
    with pytest.raises(BackboneError) as caught:
        load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("of", [BertForMaskedLM, BertForSequenceClassification])
def test_heads_of_other_tasks_and_a_pooler_that_lacks_are_no_harm(of: Any, tmp_path: Path) -> None:
    whole = of(tiny_config("bert"))
    whole.save_pretrained(tmp_path)
    model = MultiExitModel.from_backbone(str(tmp_path), LABELS)
    for name, weight in model.backbone.state_dict().items():
        assert torch.equal(weight, whole.bert.state_dict()[name]), name


@pytest.mark.parametrize(
    ("change_to", "message"),
    [
        (
            {"weights": lambda found: {f"module.{name}": w for name, w in found.items()}},
            "53 missing, the first of them embeddings.LayerNorm.bias",
        ),
        ({"num_hidden_layers": 6}, "48 missing, the first of them encoder.layer.3."),
        ({"num_hidden_layers": 2}, "16 unexpected, the first of them bert.encoder.layer.2."),
        (
            {"intermediate_size": 30},
            "9 of another size, the first of them encoder.layer.0.intermediate.dense.bias",
        ),
    ],
)
def test_weights_of_another_backbone(
    change_to: dict[str, Any], message: str, tmp_path: Path
) -> None:
    BertForMaskedLM(tiny_config("bert")).save_pretrained(tmp_path)
    change(tmp_path, **change_to)
    told = refusal(lambda: MultiExitModel.from_backbone(str(tmp_path), LABELS))
    assert told.startswith(f"the weights at {tmp_path} do not fit its config.json: {message}")


@pytest.mark.parametrize(
    ("change_to", "message"),
    [
        (
            {"weights": lambda found: {n: w for n, w in found.items() if n != "heads.1.bias"}},
            "1 missing, the first of them heads.1.bias",
        ),
        (
            {"weights": lambda found: found | {"temperatures": torch.ones(3)}},
            "1 unexpected, the first of them temperatures",
        ),
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, "6 of another size, the first of them he"),
    ],
)
def test_weights_of_another_model_with_exits(
    change_to: dict[str, Any], message: str, tmp_path: Path, tiny_model: MultiExitModel
) -> None:
    tiny_model.save_pretrained(tmp_path)
    change(tmp_path, **change_to)
    told = refusal(lambda: load_model(tmp_path))
    assert told.startswith(f"the weights at {tmp_path} do not fit its config.json: {message}")
