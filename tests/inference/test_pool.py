"""The pool gives what the runtime gives, whoever calls and whatever runs together."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cee_gym.agents import FixedLayer
from cee_gym.errors import CeeGymError
from cee_gym.inference import EarlyExitRuntime, Exits, Pool
from cee_gym.inference.pool import _Call, _Group
from cee_gym.inference.runtime import Batch
from cee_gym.returns import first_exit
from tests.inference.test_runtime import (
    assert_as_said,
    clear_threshold,
    few,
    learned,
    make_env,
    make_model,
    many_texts,
    padded,
    runs_of,
    texts_of_a_batch,
    whole,
)


def called_at_once(pool: Pool, batches: list[dict[str, torch.Tensor]]) -> list[Exits]:
    with ThreadPoolExecutor(len(batches)) as threads:
        return list(threads.map(pool, batches, timeout=60))


@few
@given(texts=texts_of_a_batch, data=st.data())
@pytest.mark.parametrize("agent_name", ["reinforce", "patience"])
def test_a_text_leaves_where_it_would_alone_whoever_calls(
    family: str, agent_name: str, texts: list[list[int]], data: st.DataObject
) -> None:
    model = make_model(family)
    agent = learned(agent_name, make_env(model.num_layers))
    scores, logits = whole(model, agent, texts)
    threshold = clear_threshold(scores)
    batch_of = np.array(data.draw(st.lists(st.integers(0, 3), min_size=9, max_size=9)))
    orders = [rows for n in range(4) if len(rows := np.flatnonzero(batch_of[: len(texts)] == n))]
    pool = Pool(
        EarlyExitRuntime(model, agent, threshold=threshold),
        batch_size=data.draw(st.integers(1, 12)),
        max_wait_ms=data.draw(st.sampled_from([0, 5, 1000])),
    )
    for _ in range(2):
        found = called_at_once(pool, [padded(model, [texts[i] for i in rows]) for rows in orders])
        for exits, rows in zip(found, orders, strict=True):
            assert_as_said(exits, scores, logits, threshold, rows)


def test_what_is_left_of_batches_runs_together() -> None:
    """One batch is held up in the first layer until three others wait behind it."""
    model = make_model("bert")
    agent = learned("reinforce", make_env(model.num_layers))
    texts = many_texts()
    scores, logits = whole(model, agent, texts)
    threshold = clear_threshold(scores)
    pool = Pool(EarlyExitRuntime(model, agent, threshold=threshold), batch_size=10**6)
    everyone = Event()

    def hold(*_: Any) -> None:
        while not everyone.is_set() and len(pool._waiting[0]) < 3:
            everyone.wait(0.01)
        everyone.set()

    quarters = np.array_split(np.arange(len(texts)), 4)
    handle = model.backbone.get_submodule("encoder.layer.0").register_forward_hook(hold)
    with runs_of(model) as (of_layers, _):
        found = called_at_once(pool, [padded(model, [texts[i] for i in q]) for q in quarters])
    handle.remove()
    for exits, rows in zip(found, quarters, strict=True):
        assert_as_said(exits, scores, logits, threshold, rows)
    depth = np.concatenate([exits.exit_layer for exits in found])
    sizes = [size for size, _ in of_layers]
    # No text runs through a layer twice, and from the second layer on all four run as one.
    assert sum(sizes) == depth.sum()
    assert sizes[-1] == (depth == depth.max()).sum()
    assert len(sizes) == depth.max() + 1


def group(pool: Pool, texts: int, since: float, owner: _Call | None = None) -> _Group:
    return _Group({}, np.full(texts, owner, dtype=object), np.arange(texts), since)


@pytest.fixture
def pool() -> Pool:
    model = make_model("bert")
    agent = FixedLayer(layer=3).learn(make_env(model.num_layers))
    return Pool(EarlyExitRuntime(model, agent), batch_size=4, max_wait_ms=1000)


def test_the_deepest_that_are_enough_run_first_then_the_most(pool: Pool, monkeypatch: Any) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 10.0)
    pool._waiting[0] = [group(pool, 4, 9.5), group(pool, 4, 9.6)]
    pool._waiting[1] = [group(pool, 3, 9.8), group(pool, 1, 9.7)]
    pool._waiting[2] = [group(pool, 1, 9.7)]
    assert [part.size for part in pool._next()] == [1, 3]  # at depth 1, oldest first
    assert [part.since for part in pool._next()] == [9.5]
    assert [part.since for part in pool._next()] == [9.6]
    pool._waiting[1] = [group(pool, 2, 9.9)]
    assert [part.since for part in pool._next()] == [9.9]
    assert [part.since for part in pool._next()] == [9.7]


def test_who_has_waited_for_too_long_goes_first(pool: Pool, monkeypatch: Any) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 10.0)
    pool._waiting[0] = [group(pool, 4, 9.5)]
    pool._waiting[1] = [group(pool, 1, 8.9), group(pool, 1, 8.8)]
    pool._waiting[2] = [group(pool, 4, 8.9)]
    assert [part.since for part in pool._next()] == [8.8, 8.9]


def test_what_fails_fails_for_its_own_call_and_the_rest_go_on(pool: Pool) -> None:
    model = pool.runtime.model
    good, bad = padded(model, [[5, 6, 7]]), padded(model, [[5, 6, 7, 8]])

    def refuse_four_tokens(module: Any, given: Any) -> None:
        if given[0].shape[1] == 4:
            raise RuntimeError("out of memory")

    layer = model.backbone.get_submodule("encoder.layer.0")
    handle = layer.register_forward_pre_hook(refuse_four_tokens)
    for _ in range(3):
        assert pool(good).exit_layer == [3]
        with pytest.raises(RuntimeError, match="out of memory"):
            pool(bad)
    handle.remove()
    assert pool(bad).exit_layer == [3]


def test_a_failure_is_not_that_of_a_call_whose_texts_have_left() -> None:
    """Two calls run together until the text of one leaves; that of the other goes on, and fails."""
    model = make_model("bert")
    agent = learned("reinforce", make_env(model.num_layers))
    texts = many_texts()
    scores = whole(model, agent, texts)[0]
    threshold = clear_threshold(scores)
    exits = first_exit(scores > threshold)
    leaves, stays = texts[exits.argmin()], texts[exits.argmax()]
    pool = Pool(EarlyExitRuntime(model, agent, threshold=threshold), batch_size=1)
    calls = [_Call(1), _Call(1)]
    group = _Group(padded(model, [leaves, stays]), np.array(calls), np.zeros(2, dtype=np.int64))
    pool._waiting[0].append(group)

    def fail(batch: Batch) -> Any:
        if batch.layer:
            raise RuntimeError("out of memory")
        return EarlyExitRuntime.run_until_some_leave(pool.runtime, batch)

    pool.runtime.run_until_some_leave = fail
    with torch.inference_mode():
        pool._run()
    assert calls[0].done
    assert calls[0].error is None
    assert calls[1].error is not None


def test_what_nobody_waits_for_any_more_is_not_run(pool: Pool) -> None:
    """A caller that has gone leaves a text in the pool."""
    gone, there = _Call(1), _Call(1)
    pool._calls = [there, gone]
    pool._waiting[1] = [group(pool, 1, 9.0, gone), group(pool, 1, 9.1, there)]
    pool._leave(gone)
    assert [left.owners for left in pool._waiting[1]] == [there]
    assert pool._calls == [there]


def test_what_others_must_give_is_forgotten_with_them(pool: Pool) -> None:
    inputs = padded(pool.runtime.model, [[5, 6, 7], [5]])
    pool({**inputs, "token_type_ids": torch.zeros_like(inputs["input_ids"])})
    assert pool(inputs).exit_layer.tolist() == [3, 3]


def test_a_runner_that_is_interrupted_does_not_leave_others_waiting(pool: Pool) -> None:
    inputs = padded(pool.runtime.model, [[5, 6, 7]])

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    layer = pool.runtime.model.backbone.get_submodule("encoder.layer.1")
    handle = layer.register_forward_pre_hook(interrupt)
    with ThreadPoolExecutor(3) as threads:
        calls = [threads.submit(pool, inputs) for _ in range(3)]
        assert all(isinstance(c.exception(timeout=60), KeyboardInterrupt) for c in calls)
    handle.remove()
    assert pool(inputs).exit_layer == [3]


def test_bad_input_is_refused_before_it_joins_others(pool: Pool) -> None:
    inputs = padded(pool.runtime.model, [[5, 6, 7], [5]])
    with pytest.raises(CeeGymError, match="padding on the right"):
        pool({**inputs, "attention_mask": inputs["attention_mask"].flip(1)})
    pool._calls = [_Call(1)]  # another is in it
    pool._names = set(inputs)
    with pytest.raises(CeeGymError, match=r"token_type_ids, .* take one tokenizer"):
        pool({**inputs, "token_type_ids": torch.zeros_like(inputs["input_ids"])})
    for numbers in ({"batch_size": 0}, {"max_wait_ms": -1}):
        with pytest.raises(CeeGymError, match=next(iter(numbers))):
            Pool(pool.runtime, **numbers)
