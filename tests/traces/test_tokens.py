"""Traces of tokens."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cee_gym.backbones.sequences import TokenSequences
from cee_gym.envs import EarlyExitEnv
from cee_gym.errors import CeeGymError
from cee_gym.evaluation.guarantee import guaranteed_threshold
from cee_gym.exits.forced import forward_with_exits
from cee_gym.generation.decisions import policy_leave
from cee_gym.traces import TraceWriter
from cee_gym.traces.tokens import collect_tokens
from tests.generation.decoders import decoder_of, policy_for

ABOUT: dict[str, Any] = {"task": "stories", "split": "train", "backbone": "tiny"}


def text_of(rows: int = 6) -> TokenSequences:
    rng = np.random.default_rng(0)
    lengths = rng.integers(6, 15, rows)
    return TokenSequences(
        rng.integers(3, 50, lengths.sum()),
        np.concatenate([[0], lengths.cumsum()]),
        rng.integers(1, 5, rows),
    )


def record(path: Path, **given: Any) -> Any:
    text = text_of()
    ids = [f"train/{row}" for row in range(len(text))]
    return collect_tokens(decoder_of("llama"), text, ids, path, ABOUT, dtype="float32", **given)


def test_a_trace_is_what_the_decoder_says_text_by_text(tmp_path: Path) -> None:
    decoder, text, trace = decoder_of("llama"), text_of(), record(tmp_path / "t", batch_size=4)
    assert len(trace) == text.answer_tokens.sum()
    assert trace.header.labels is None
    for row in range(len(text)):
        own = trace.sequence == row
        assert trace.row_ids[own][0] == f"train/{row}"
        places = trace.position[own]
        assert places.tolist() == list(range(text.prompts[row] - 1, text.lengths[row] - 1))
        with torch.no_grad():
            states = decoder(torch.from_numpy(text.of(row))[None])
            for exit, of_exit in enumerate(states, start=1):
                shown = of_exit[0, places]
                np.testing.assert_allclose(trace.states[own, exit - 1], shown, atol=2e-4, rtol=1e-3)
                said = decoder.answer(shown, exit).argmax(-1).numpy()
                assert (trace.prediction[own, exit - 1] == said).mean() > 0.95  # ties may round
    assert (trace.labels == trace.prediction[:, -1]).all()
    assert trace.correct[:, -1].all()


def test_gold_labels_are_the_next_tokens(tmp_path: Path) -> None:
    text, trace = text_of(), record(tmp_path / "t", gold=True)
    expected = np.concatenate([text.of(row)[text.prompts[row] :] for row in range(len(text))])
    assert (trace.labels == expected).all()


def test_under_a_policy_the_exit_taken_is_that_of_the_forward_pass(tmp_path: Path) -> None:
    decoder, text = decoder_of("llama"), text_of()
    policy = policy_for(decoder)
    trace = record(tmp_path / "t", leave=policy_leave(decoder, policy))
    for row in range(len(text)):
        ids = torch.from_numpy(text.of(row))[None]
        free = text.decides(np.array([row]))
        with torch.no_grad():
            leave = policy_leave(decoder, policy)
            forced = forward_with_exits(decoder, ids, lambda e, s, f=free, g=leave: g(e, s) & f)
        own = np.flatnonzero(trace.sequence == row)
        exits = forced.exits[0, trace.position[own]].numpy()
        left_with = forced.left_with[0, trace.position[own]].numpy()
        np.testing.assert_allclose(trace.states[own, exits - 1], left_with, atol=2e-4, rtol=1e-3)
    scores = policy.score.scores(np.asarray(trace.states), policy.layout)
    assert len(np.unique(policy.exit_layers(scores))) == 4


def test_a_recording_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = record(tmp_path / "whole", batch_size=2)
    write, calls = TraceWriter.write, [0]

    def stop(self: TraceWriter, *args: Any) -> None:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        write(self, *args)

    monkeypatch.setattr(TraceWriter, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        record(tmp_path / "t", batch_size=2)
    monkeypatch.undo()
    assert record(tmp_path / "t", batch_size=2).fingerprint == whole.fingerprint


def test_exits_at_some_layers_say_so_everywhere(tmp_path: Path) -> None:
    text = text_of()
    decoder = decoder_of("llama", (2, 4))
    trace = collect_tokens(decoder, text, ["a"] * len(text), tmp_path / "t", ABOUT, dtype="float32")
    env = EarlyExitEnv(trace=trace, alpha=0.1)
    env.reset(seed=0)
    *_, info = env.step(1)
    assert (info["exit_layer"], info["saved_layers"]) == (2, 0.5)
    assert info["reward_components"]["price"] == 2.0


def test_no_guarantee_for_tokens(tmp_path: Path) -> None:
    trace = record(tmp_path / "t")
    scores = np.zeros((len(trace), 4), dtype=np.float32)
    with pytest.raises(CeeGymError, match="depend on one another"):
        guaranteed_threshold(trace, scores, risk="harm", epsilon=0.9, delta=0.5)
