import copy
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModel, BertConfig, BertModel, PreTrainedTokenizerFast

from cee_gym.backbones.encoding import EncodedText, Rows, check_tokenizer, encode, load_tokenizer
from cee_gym.errors import BackboneError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def text(tiny_data: Dataset, tiny_tokenizer: PreTrainedTokenizerFast) -> EncodedText:
    return EncodedText(tiny_data, tiny_tokenizer, max_tokens=40)


@pytest.fixture(scope="module")
def pairs(tiny_data: Dataset) -> Dataset:
    return tiny_data.add_column("pair", list(reversed(tiny_data["text"])))


def tokenized(
    tokenizer: PreTrainedTokenizerFast, data: Dataset, max_tokens: int = 40
) -> dict[str, torch.Tensor]:
    """The tokenizer's own padded batch of a whole dataset."""
    second = list(data["pair"]) if "pair" in data.column_names else None
    return tokenizer(
        list(data["text"]),
        second,
        truncation=True,
        max_length=max_tokens,
        padding=True,
        return_tensors="pt",
    )


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == torch.int64
        assert torch.equal(tensor, other[name]), name


def test_labels_and_lengths(text: EncodedText, tiny_data: Dataset) -> None:
    assert len(text) == len(tiny_data)
    assert text.labels.tolist() == tiny_data["label"]
    assert text.labels.dtype == torch.int64
    assert text.lengths.tolist() == [len(line.split()) + 2 for line in tiny_data["text"]]


@pytest.mark.parametrize("rows", [[0], [3, 17, 5], [23, 22, 21, 20], list(range(24))])
def test_a_batch_is_what_the_tokenizer_pads_itself(
    text: EncodedText,
    tiny_data: Dataset,
    tiny_tokenizer: PreTrainedTokenizerFast,
    rows: list[int],
) -> None:
    batch = text.batch(np.array(rows), CPU)
    assert_equal(batch, dict(tokenized(tiny_tokenizer, tiny_data.select(rows))))
    assert batch["input_ids"].shape == (len(rows), text.lengths[rows].max())


def test_pairs_are_read_together(pairs: Dataset, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    text = EncodedText(pairs, tiny_tokenizer, max_tokens=40)
    batch = text.batch(np.arange(len(pairs)), CPU)
    assert_equal(batch, dict(tokenized(tiny_tokenizer, pairs)))
    assert set(batch["token_type_ids"].unique().tolist()) == {0, 1}


@pytest.mark.parametrize("max_tokens", [4, 7, 12])
def test_long_texts_are_cut(
    tiny_data: Dataset,
    pairs: Dataset,
    tiny_tokenizer: PreTrainedTokenizerFast,
    max_tokens: int,
) -> None:
    for data in (tiny_data, pairs):
        text = EncodedText(data, tiny_tokenizer, max_tokens)
        assert text.lengths.max() == max_tokens
        batch = text.batch(np.arange(len(data)), CPU)
        assert_equal(batch, dict(tokenized(tiny_tokenizer, data, max_tokens)))


def test_encoding_on_the_fly_gives_the_same_tensors(
    pairs: Dataset, tiny_data: Dataset, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = np.array([4, 9, 2])
    for data in (tiny_data, pairs):
        picked = data.select(rows)
        second = picked["pair"] if "pair" in data.column_names else None
        one = encode(tiny_tokenizer, picked["text"], second, max_tokens=9)
        assert_equal(one, EncodedText(data, tiny_tokenizer, 9).batch(rows, CPU))


def test_padding_is_on_the_right_whatever_the_tokenizer_says(
    pairs: Dataset, tiny_data: Dataset, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    left = copy.deepcopy(tiny_tokenizer)
    left.padding_side = "left"
    for data in (tiny_data, pairs):
        expected = dict(tokenized(tiny_tokenizer, data))
        second = data["pair"] if "pair" in data.column_names else None
        assert_equal(encode(left, data["text"], second, max_tokens=40), expected)
        text = EncodedText(data, left, max_tokens=40)
        assert_equal(text.batch(np.arange(len(data)), CPU), expected)


# Batches


@given(
    rows=st.lists(st.integers(0, 23), unique=True, min_size=1),
    batch_size=st.integers(1, 30),
    seed=st.none() | st.integers(0, 2**32 - 1),
)
def test_each_row_comes_exactly_once(
    text: EncodedText, rows: list[int], batch_size: int, seed: int | None
) -> None:
    rng = None if seed is None else np.random.default_rng(seed)
    batches = list(text.batches(np.array(rows), batch_size, rng))
    assert sorted(np.concatenate(batches)) == sorted(rows)
    sizes = sorted(len(batch) for batch in batches)
    assert all(size == batch_size for size in sizes[1:])
    assert len(batches) == -(-len(rows) // batch_size)


def test_without_a_generator_the_longest_come_first(text: EncodedText) -> None:
    rows = np.random.default_rng(0).permutation(24)
    order = np.concatenate(list(text.batches(rows, 5)))
    assert text.lengths[order].tolist() == sorted(text.lengths, reverse=True)


def test_batches_depend_on_the_generator_alone(text: EncodedText) -> None:
    def epoch(seed: int) -> list[list[int]]:
        rng = np.random.default_rng(seed)
        return [batch.tolist() for batch in text.batches(np.arange(24), 4, rng)]

    assert epoch(1) == epoch(1)
    assert epoch(1) != epoch(2)


def test_a_second_epoch_mixes_rows_differently(text: EncodedText) -> None:
    rng = np.random.default_rng(0)
    epochs = [
        {frozenset(batch.tolist()) for batch in text.batches(np.arange(24), 4, rng)}
        for _ in range(2)
    ]
    assert epochs[0] != epochs[1]


def test_training_batches_hold_rows_of_like_length(text: EncodedText) -> None:
    def padding(batches: Iterable[Rows]) -> int:
        return sum((text.lengths[batch].max() - text.lengths[batch]).sum() for batch in batches)

    rng = np.random.default_rng(0)
    rows = np.arange(24)
    spent = [padding(text.batches(rows, 4, rng)) for _ in range(50)]
    at_random = [padding(np.split(rng.permutation(rows), 6)) for _ in range(50)]
    assert sum(spent) < 0.6 * sum(at_random)


def test_training_batches_come_in_no_order_of_length(text: EncodedText) -> None:
    rng = np.random.default_rng(0)
    first = [next(iter(text.batches(np.arange(24), 4, rng))) for _ in range(50)]
    lengths = [text.lengths[batch].mean() for batch in first]
    assert min(lengths) < 6
    assert max(lengths) > 11


def test_no_rows_make_no_batches(text: EncodedText) -> None:
    assert list(text.batches(np.array([], dtype=np.int64), 4)) == []


# The tokenizer of a backbone


def test_a_tokenizer_is_loaded_from_a_directory(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    tiny_tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert loaded("the cat sat", "not bad") == tiny_tokenizer("the cat sat", "not bad")


@pytest.mark.parametrize("where", ["no/such", "/no/such/directory"])
def test_a_tokenizer_out_of_reach_is_told_in_one_line(where: str) -> None:
    with pytest.raises(BackboneError, match=f"no tokenizer at {where}") as caught:
        load_tokenizer(where)
    assert "\n" not in str(caught.value)


def test_weights_without_a_vocabulary_have_no_tokenizer(tmp_path: Path) -> None:
    """Transformers makes one of special tokens only, to which every word is unknown."""
    config = BertConfig(
        vocab_size=24,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
    )
    AutoModel.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match=f"no tokenizer at {tmp_path}: there is no vocabulary"):
        load_tokenizer(str(tmp_path))


SIZE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def test_a_tokenizer_that_fits_is_let_pass(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    for pair in (False, True):
        check_tokenizer(tiny_tokenizer, BertModel(BertConfig(vocab_size=23, **SIZE)), pair=pair)


def test_token_ids_beyond_the_vocabulary_of_the_model(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    backbone = BertModel(BertConfig(vocab_size=22, **SIZE))
    with pytest.raises(BackboneError, match=r"ids up to 22, and BertModel knows only those below"):
        check_tokenizer(tiny_tokenizer, backbone, pair=False)


def test_token_types_beyond_those_of_the_model(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    backbone = BertModel(BertConfig(vocab_size=23, type_vocab_size=1, **SIZE))
    check_tokenizer(tiny_tokenizer, backbone, pair=False)
    with pytest.raises(BackboneError, match="token_type_ids up to 1, and BertModel knows only"):
        check_tokenizer(tiny_tokenizer, backbone, pair=True)


def test_inputs_that_the_model_does_not_take(
    tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = BertModel(BertConfig(vocab_size=23, **SIZE))

    def forward(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> None:
        pass

    monkeypatch.setattr(backbone, "forward", forward)
    with pytest.raises(BackboneError, match="gives token_type_ids, which BertModel does not take"):
        check_tokenizer(tiny_tokenizer, backbone, pair=False)


def test_a_broken_tokenizer_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(BackboneError, match=f"no tokenizer at {tmp_path}") as caught:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_a_mask_is_refused(tiny_tokenizer, tiny_model) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.model_input_names = ["input_ids"]
    with pytest.raises(BackboneError, match="gives no attention_mask"):
        check_tokenizer(tokenizer, tiny_model.backbone, pair=False)


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("tokenizer_config.json", '"model_max_length": 32', '"model_max_length": [1]'),
        ("tokenizer_config.json", '"model_max_length": 32', '"model_max_length": "x"'),
        ("tokenizer.json", '"unk_token"', '"unknown"'),
    ],
)
def test_what_is_damaged_in_a_tokenizer_is_told_when_it_is_loaded(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, file: str, before: str, after: str
) -> None:
    tiny_tokenizer.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "tokenizer_config.json").read_text())
    content["model_max_length"] = 32
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(content))
    text = (tmp_path / file).read_text()
    assert before in text
    (tmp_path / file).write_text(text.replace(before, after))
    with pytest.raises(BackboneError, match=f"no tokenizer at {tmp_path}"):
        load_tokenizer(str(tmp_path))
