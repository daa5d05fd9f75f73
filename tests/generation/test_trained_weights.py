"""Decoding with trained weights: stories260K from the package, SmolLM2 where it is at hand."""

import os
from typing import Any

import numpy as np
import pytest
import torch

from cee_gym.agents import LongstaffSchwartz
from cee_gym.envs import EarlyExitEnv
from cee_gym.exits.lm_head import MultiExitDecoder, load_lm_tokenizer
from cee_gym.generation import EarlyExitDecoding
from cee_gym.generation.text_generation import never
from cee_gym.policies.base import ExitPolicy
from cee_gym.tasks.prompted import get_prompted, load_examples
from cee_gym.traces.recordings import find_recording

ID = "EarlyExit-TinyLLaMA-Stories"
WEIGHTS = find_recording(ID) / "models" / "deployed"


@pytest.fixture(scope="module")
def decoder() -> MultiExitDecoder:
    return MultiExitDecoder.load(WEIGHTS).eval()


@pytest.fixture(scope="module")
def policy() -> ExitPolicy:
    return LongstaffSchwartz().learn(EarlyExitEnv(ID, alpha=0.15)).policy


def prompts(count: int) -> list[list[int]]:
    tokenizer: Any = load_lm_tokenizer(WEIGHTS)
    stories = load_examples(get_prompted("stories"))["dev"]
    return [
        [1, *tokenizer(one.answer, add_special_tokens=False)["input_ids"][: 3 + row % 12]]
        for row, one in enumerate(stories[:count])
    ]


def generate(decoder: MultiExitDecoder, ids: list[int], **given: Any) -> torch.Tensor:
    one = torch.tensor([ids])
    return decoder.generate(
        input_ids=one,
        attention_mask=torch.ones_like(one),
        max_new_tokens=16,
        do_sample=False,
        pad_token_id=2,
        **given,
    )


def test_verify_is_greedy_on_a_hundred_prompts(
    decoder: MultiExitDecoder, policy: ExitPolicy
) -> None:
    decoding = EarlyExitDecoding(policy, cache="verify")
    drafts = 0
    for ids in prompts(100):
        own = generate(decoder, ids)
        assert torch.equal(generate(decoder, ids, custom_generate=decoding), own)
        assert decoding.exits is not None
        drafts += int((decoding.exits.exit_layer < 5).sum())
    assert drafts > 100  # tokens that left early and were right


@pytest.mark.parametrize("cache", ["copy", "recompute"])
def test_a_batch_of_stories_is_its_rows(
    decoder: MultiExitDecoder, policy: ExitPolicy, cache: Any
) -> None:
    rows = prompts(8)
    longest = max(map(len, rows))
    ids = torch.tensor([[2] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    decoding = EarlyExitDecoding(policy, cache=cache)
    out = decoder.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=16,
        do_sample=False,
        pad_token_id=2,
        custom_generate=decoding,
    )
    assert decoding.exits is not None
    together = decoding.exits.exit_layer
    assert len(np.unique(together)) > 2
    for row, prompt in enumerate(rows):
        alone = generate(decoder, prompt, custom_generate=decoding)[0, len(prompt) :]
        new = len(alone)
        assert torch.equal(out[row, longest : longest + new], alone)
        assert np.array_equal(together[row, :new], decoding.exits.exit_layer[0])


@pytest.mark.real_data
@pytest.mark.skipif(
    "CEE_GYM_SMOLLM2" not in os.environ,
    reason="CEE_GYM_SMOLLM2 does not name SmolLM2's directory or .gguf file",
)
def test_smollm2_answers_and_is_generate_at_full_depth() -> None:
    path = os.environ["CEE_GYM_SMOLLM2"]
    decoder: Any = MultiExitDecoder.from_backbone(path, adapter_rank=0).eval()
    tokenizer: Any = load_lm_tokenizer(path)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        tokenize=False,
    )
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    own = generate(decoder, ids)
    assert "Paris" in tokenizer.decode(own[0, len(ids) :])
    for cache in ("copy", "recompute", "verify"):
        decoding = EarlyExitDecoding(never(decoder), cache=cache)  # type: ignore[arg-type]
        assert torch.equal(generate(decoder, ids, custom_generate=decoding), own)
