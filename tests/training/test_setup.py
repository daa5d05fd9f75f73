"""What does not fit is refused before anything is trained."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaModel

from cee_gym.errors import BackboneError
from cee_gym.exits import MultiExitModel
from cee_gym.tasks import Task
from cee_gym.training.config import RecordConfig
from cee_gym.training.setup import Setup

MOOD = Task("mood", labels=("bad", "good"), text="text")


@pytest.fixture
def trained(tiny_model: MultiExitModel, tiny_tokenizer: Any, tmp_path: Path) -> Path:
    """A backbone with exits for single texts that are bad or good."""
    tiny_model.save_pretrained(tmp_path / "trained")
    tiny_tokenizer.save_pretrained(tmp_path / "trained")
    return tmp_path / "trained"


@pytest.fixture
def plain(tiny_model: MultiExitModel, tiny_tokenizer: Any, tmp_path: Path) -> Path:
    tiny_model.backbone.save_pretrained(tmp_path / "plain")
    tiny_tokenizer.save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


def setup_for(task: Task, backbone: Path) -> Setup:
    return Setup(task, str(backbone), {}, RecordConfig())


def refusal(task: Task, backbone: Path) -> str:
    with pytest.raises(BackboneError) as caught:
        _ = setup_for(task, backbone).tokenizer
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change(backbone: Path, file: str, **settings: Any) -> None:
    path = backbone / file
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def test_exits_for_the_task_are_kept(trained: Path) -> None:
    setup = setup_for(MOOD, trained)
    assert setup.initial_model().labels == ["bad", "good"]
    assert setup.max_tokens == 40


@pytest.mark.parametrize(
    "labels", [("good", "bad"), ("no", "spam"), ("bad", "good", "neither")], ids="-".join
)
def test_exits_for_other_classes_or_another_order_are_refused(
    labels: tuple[str, ...], trained: Path
) -> None:
    told = refusal(Task("other", labels=labels, text="text"), trained)
    assert "has exits for the classes bad, good, in this order" in told
    assert f"and task other has {', '.join(labels)}:" in told


def test_classes_go_by_their_numbers_and_not_by_the_order_of_the_file(trained: Path) -> None:
    change(trained, "config.json", id2label={"1": "good", "0": "bad"})
    assert setup_for(MOOD, trained).initial_model().labels == ["bad", "good"]
    change(trained, "config.json", id2label={"1": "bad", "2": "good"})
    assert "id2label numbers 2 classes as 1, 2: number them from 0 to 1" in refusal(MOOD, trained)


def test_exits_for_single_texts_are_not_for_pairs(trained: Path) -> None:
    pairs = Task("pairs", labels=MOOD.labels, text="text", pair="other")
    assert "has exits for single texts, and task pairs is about pairs" in refusal(pairs, trained)


@pytest.mark.parametrize("pair", [None, "other"])
def test_the_model_says_whether_it_is_about_pairs(pair: str | None, plain: Path) -> None:
    task = Task("mood", labels=MOOD.labels, text="text", pair=pair)
    assert setup_for(task, plain).initial_model().config.pair == (pair is not None)


def test_a_decoder_is_refused_by_its_configuration(tmp_path: Path, tiny_tokenizer: Any) -> None:
    size = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    LlamaModel(LlamaConfig(vocab_size=24, num_hidden_layers=2, **size)).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(BackboneError, match="llama is a decoder"):
        setup_for(MOOD, tmp_path)


def test_a_tokenizer_of_another_model_is_refused(plain: Path, tiny_tokenizer: Any) -> None:
    larger = copy.deepcopy(tiny_tokenizer)
    larger.add_tokens(["fish", "bird"])
    larger.save_pretrained(plain)
    told = refusal(MOOD, plain)
    assert told.startswith("the tokenizer gives token ids up to 24, and BertModel knows only those")
    assert "below 23" in told


def test_a_tokenizer_without_a_padding_token_is_refused(plain: Path) -> None:
    change(plain, "tokenizer_config.json", pad_token=None)
    assert "has no padding token" in refusal(MOOD, plain)
