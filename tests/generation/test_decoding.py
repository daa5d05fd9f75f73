"""Decoding with early exits, held against transformers' own and against one forward pass."""

import numpy as np
import pytest
import torch
from transformers import TextIteratorStreamer  # noqa: F401

from cee_gym.errors import CeeGymError
from cee_gym.exits.forced import at_exits, forward_with_exits
from cee_gym.exits.lm_head import MultiExitDecoder
from cee_gym.generation import EarlyExitDecoding
from cee_gym.generation.decisions import Decisions, Path
from tests.generation.decoders import CONFIGS, decoder_of, policy_for, prompts

NEW = 12
FAMILIES = list(CONFIGS)
SETTINGS = {"max_new_tokens": NEW, "do_sample": False}


def run(decoder: MultiExitDecoder, inputs: dict, cache: str, share: float, **given):  # type: ignore[no-untyped-def]
    decoding = EarlyExitDecoding(policy_for(decoder, share), cache=cache)  # type: ignore[arg-type]
    ids = decoder.generate(**inputs, **{**SETTINGS, **given}, custom_generate=decoding)
    assert decoding.exits is not None
    return ids, decoding.exits


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("cache", ["copy", "recompute"])
@pytest.mark.parametrize("family", FAMILIES)
def test_full_depth_is_generate(family: str, cache: str, rows: int) -> None:
    decoder, inputs = decoder_of(family), prompts(rows)
    for given in ({}, {"do_sample": True, "top_k": 20, "temperature": 1.3}):
        torch.manual_seed(1)
        own = decoder.generate(**inputs, **{**SETTINGS, **given})
        torch.manual_seed(1)
        ids, exits = run(decoder, inputs, cache, 0.0, **given)
        assert torch.equal(ids, own)
        assert set(np.unique(exits.exit_layer)) <= {0, 4}


@pytest.mark.parametrize("cache", ["copy", "recompute"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_is_its_rows_one_by_one(family: str, cache: str) -> None:
    decoder, inputs = decoder_of(family), prompts(8)
    ids, exits = run(decoder, inputs, cache, 0.4)
    assert len(np.unique(exits.exit_layer)) >= 4  # depths are mixed
    for row in range(8):
        mask = inputs["attention_mask"][row].bool()
        alone = {"input_ids": inputs["input_ids"][row, mask][None]}
        one, own = run(decoder, alone, cache, 0.4)
        new = one.shape[1] - int(mask.sum())
        start = len(mask)
        assert torch.equal(ids[row, start : start + new], one[0, -new:])
        assert (ids[row, start + new :] == 0).all()
        assert np.array_equal(exits.exit_layer[row, :new], own.exit_layer[0])
        assert (exits.exit_layer[row, new:] == 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_copy_is_one_parallel_forward(family: str) -> None:
    decoder, inputs = decoder_of(family), prompts(1, shortest=4)
    policy = policy_for(decoder)
    ids, exits = run(decoder, inputs, "copy", 0.4)
    prompt, text = inputs["input_ids"].shape[1], ids[:, :-1]
    decisions = Decisions(decoder, policy)

    path = Path(decoder)

    def leave(exit: int, states: torch.Tensor) -> torch.Tensor:
        nonlocal path
        path = Path(decoder) if exit == 1 else path
        path.show(states.flatten(0, 1))
        found = torch.tensor(decisions.leave(exit, path)).view(text.shape)
        found[:, : prompt - 1] = False
        return found

    with torch.no_grad():
        forced = forward_with_exits(decoder, text, leave)
        both = forward_with_exits(decoder, text, leave, all_states=True)
    numbers = forced.exits[0, prompt - 1 :]
    assert np.array_equal(np.array([0, *decoder.depths])[numbers], exits.exit_layer[0])
    for place, exit in enumerate(numbers.tolist(), start=prompt - 1):
        logits = decoder.answer(forced.left_with[0, place], exit)
        assert int(logits.argmax()) == int(ids[0, place + 1])
        torch.testing.assert_close(
            both.states[exit - 1][0, place], forced.left_with[0, place], rtol=1e-4, atol=1e-4
        )
    assert torch.equal(both.exits, forced.exits)


@pytest.mark.parametrize("family", FAMILIES)
def test_states_after_an_exit_are_those_of_a_token_that_goes_on(family: str) -> None:
    """What `all_states` says of each token is what it shows where it alone goes to full depth."""
    decoder = decoder_of(family)
    ids = prompts(1, seed=3, shortest=7)["input_ids"]
    length = ids.shape[1]
    exits = torch.from_numpy(np.random.default_rng(0).integers(1, 5, (1, length)))
    with torch.no_grad():
        both = forward_with_exits(decoder, ids, at_exits(exits), all_states=True)
        for place in range(length):
            other = exits.clone()
            other[0, place] = 4
            alone = forward_with_exits(decoder, ids, at_exits(other)).left_with[0, place]
            torch.testing.assert_close(both.states[-1][0, place], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_recompute_is_the_trace(family: str) -> None:
    decoder, inputs = decoder_of(family), prompts(1, shortest=4)
    ids, exits = run(decoder, inputs, "recompute", 0.4)
    with torch.no_grad():
        states = decoder(ids[:, :-1])
    for place, depth in enumerate(exits.exit_layer[0], start=inputs["input_ids"].shape[1] - 1):
        exit = decoder.depths.index(depth) + 1
        logits = decoder.answer(states[exit - 1][0, place], exit)
        assert int(logits.argmax()) == int(ids[0, place + 1])


@pytest.mark.parametrize("family", FAMILIES)
def test_verify_is_greedy(family: str) -> None:
    decoder = decoder_of(family)
    for seed in range(3):
        inputs = prompts(1, seed=seed)
        own = decoder.generate(**inputs, **SETTINGS, repetition_penalty=1.2)
        ids, exits = run(decoder, inputs, "verify", 0.6, repetition_penalty=1.2)
        assert torch.equal(ids, own)
        assert exits.tokens == own.shape[1] - inputs["input_ids"].shape[1]


def test_layers_run_are_those_that_ran() -> None:
    decoder, inputs = decoder_of("llama"), prompts(5)
    ran = [0]

    def count(module: object, given: tuple[torch.Tensor, ...], output: object) -> None:
        ran[0] += len(given[0])

    handles = [layer.mlp.register_forward_hook(count) for layer in decoder.backbone.model.layers]
    _, exits = run(decoder, inputs, "copy", 0.4)
    prefill = 5 * 4 if inputs["input_ids"].shape[1] > 1 else 0
    assert ran[0] - prefill == exits.layers_run == exits.exit_layer.sum()
    assert exits.heads_evaluated == exits.tokens  # this policy reads none
    for handle in handles:
        handle.remove()


def test_some_layers_have_exits() -> None:
    decoder, inputs = decoder_of("llama", (2, 4)), prompts(4)
    ids, exits = run(decoder, inputs, "copy", 0.5)
    assert set(np.unique(exits.exit_layer)) <= {0, 2, 4}
    assert ids.shape[1] <= inputs["input_ids"].shape[1] + NEW


def test_what_cannot_be_honoured_is_refused() -> None:
    decoder, inputs = decoder_of("llama"), prompts(2)
    for given, word in (
        ({"num_beams": 2}, "num_beams"),
        ({"output_scores": True, "return_dict_in_generate": True}, "output_scores"),
        ({"max_new_tokens": 100}, "context"),
    ):
        with pytest.raises(CeeGymError, match=word):
            run(decoder, inputs, "copy", 0.4, **given)
    with pytest.raises(CeeGymError, match="one row"):
        run(decoder, inputs, "verify", 0.4)
    with pytest.raises(CeeGymError, match="MultiExitDecoder"):
        decoder.backbone.generate(
            **inputs, **SETTINGS, custom_generate=EarlyExitDecoding(policy_for(decoder))
        )


def test_min_prefill_runs_the_first_tokens_at_full_depth() -> None:
    decoder, inputs = decoder_of("llama"), prompts(4)
    decoding = EarlyExitDecoding(policy_for(decoder, 0.9), min_prefill=11)
    decoder.generate(**inputs, **SETTINGS, custom_generate=decoding)
    assert decoding.exits is not None
    prompt = inputs["attention_mask"].sum(1).numpy()
    for row, exits in enumerate(decoding.exits.exit_layer):
        before = exits[: max(0, 11 - int(prompt[row]) + 1)]
        assert (before[before > 0] == 4).all()
    assert (decoding.exits.exit_layer == 1).any()
