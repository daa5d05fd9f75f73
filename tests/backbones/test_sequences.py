"""Prompts and answers as token ids."""

from pathlib import Path

import numpy as np
import pytest

from cee_gym.backbones.sequences import TokenSequences, encode_examples, prompt_ids
from cee_gym.errors import DataError
from cee_gym.exits.lm_head import load_lm_tokenizer
from cee_gym.tasks.prompted import Example, PromptedTask, get_prompted
from cee_gym.traces.recordings import shipped_backbone

TOKENIZER = load_lm_tokenizer(str(shipped_backbone("EarlyExit-TinyLLaMA-Stories")))
ASKED = PromptedTask("asked", prompt=str, answer="a", template="Q: {prompt} A:")


def test_only_places_before_answer_tokens_decide() -> None:
    text = encode_examples(
        ASKED, TOKENIZER, [Example("train/0", "cat", "dog"), Example("train/1", "a", "b c d")], 64
    )
    rows = np.arange(2)
    batch, decides = text.batch(rows), text.decides(rows)
    for row in rows:
        answer = text.of(row)[text.prompts[row] :]
        assert answer[-1] == TOKENIZER.eos_token_id
        places = decides[row].nonzero()[:, 0]
        assert batch[row, places + 1].tolist() == answer.tolist()
    assert (text.answer_tokens == decides.sum(1).numpy()).all()


def test_long_texts_are_cut() -> None:
    example = Example("train/0", "word " * 200, "word " * 200)
    text = encode_examples(ASKED, TOKENIZER, [example], 40)
    assert text.lengths.tolist() == [40]
    assert text.prompts.tolist() == [30]


def test_every_row_is_in_one_batch(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 30, 50)
    text = TokenSequences(
        rng.integers(0, 9, lengths.sum()),
        np.concatenate([[0], lengths.cumsum()]),
        np.ones(50, dtype=np.int64),
    )
    rows = rng.permutation(50)[:37]
    for generator in (None, np.random.default_rng(1)):
        found = np.concatenate(list(text.batches(rows, 8, generator)))
        assert sorted(found) == sorted(rows)
    text.save(tmp_path / "text.safetensors")
    loaded = TokenSequences.load(tmp_path / "text.safetensors")
    assert all(np.array_equal(getattr(text, n), getattr(loaded, n)) for n in vars(text))


def test_a_story_begins_with_the_first_token() -> None:
    assert prompt_ids(get_prompted("stories"), TOKENIZER, "") == [TOKENIZER.bos_token_id]


def test_an_empty_prompt_without_a_first_token_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load_lm_tokenizer(str(shipped_backbone("EarlyExit-TinyLLaMA-Stories")))
    tokenizer.bos_token = None
    with pytest.raises(DataError, match="is empty"):
        encode_examples(get_prompted("stories"), tokenizer, [Example("train/0", "", "a")], 9)
