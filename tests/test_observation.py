"""The parts of an observation: what they hold, the same wherever they are read."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import array_api_compat.torch
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import cee_gym.recorded_observations
from cee_gym.envs import EarlyExitEnv
from cee_gym.errors import CeeGymError
from cee_gym.observation import (
    EXITS_BEFORE,
    PARTS,
    Seen,
    Sizes,
    layout_of,
    needs_path,
    observe_into,
    observe_last,
    register_observation,
    space_of,
    width_of,
)
from cee_gym.problem import Problem
from cee_gym.recorded_observations import RecordedObservations, recorded_observations
from cee_gym.reward import Reward
from cee_gym.traces.trace import Trace
from tests.made_traces import write_arrays, write_trace

ALL = ("alpha", "layer", "probs", "hidden", "confidence", "entropy", "margin")
PATH = ("agreement", "previous")
SIZES = Sizes(num_layers=4, width=6, num_labels=3)


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    return write_trace(tmp_path / "trace", n=20, num_layers=4, width=6, num_labels=3)


@pytest.fixture(autouse=True)
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forgets the parts that a test has added."""
    monkeypatch.setattr(PARTS, "_entries", dict(PARTS._entries))
    monkeypatch.setattr(PARTS, "_modules", dict(PARTS._modules))


def test_parts_hold_what_they_say(trace: Trace) -> None:
    problem = Problem(trace, observe=(*ALL, *PATH), alpha=0.5)
    observations = problem.observe()
    part = {name: observations[..., where] for name, where in problem.layout.items()}
    assert list(problem.layout) == [*ALL, *PATH]
    assert observations.shape == (20, 4, 1 + 4 + 3 + 6 + 1 + 1 + 1 + 1 + EXITS_BEFORE)
    assert observations.dtype == np.float32
    np.testing.assert_array_equal(part["hidden"], trace.states)
    np.testing.assert_array_equal(part["layer"], np.broadcast_to(np.eye(4), (20, 4, 4)))
    np.testing.assert_allclose(part["probs"], trace.probabilities)
    np.testing.assert_allclose(part["probs"].sum(axis=-1), 1, rtol=1e-6)
    np.testing.assert_allclose(part["confidence"][..., 0], part["probs"].max(axis=-1), rtol=1e-6)
    np.testing.assert_allclose(part["entropy"][..., 0], trace.entropy / np.log(3), rtol=1e-6)
    best = np.sort(trace.probabilities, axis=-1)
    np.testing.assert_allclose(part["margin"][..., 0], best[..., -1] - best[..., -2], atol=1e-6)
    np.testing.assert_array_equal(part["agreement"][:, 0], 1 / 4)
    np.testing.assert_array_equal(part["previous"][:, 0], 1)
    np.testing.assert_array_equal(part["previous"][:, 1:, 0], part["entropy"][:, :-1, 0])
    np.testing.assert_array_equal(part["alpha"], 0.5)


@given(
    prediction=arrays(np.int64, (3, 6), elements=st.integers(0, 2)),
    entropy=arrays(np.float32, (3, 6), elements=st.floats(0, 1, width=32)),
    exits=st.integers(1, 6),
)
@pytest.mark.parametrize("xp", [np, array_api_compat.torch], ids=["numpy", "torch"])
def test_what_the_path_has_shown_is_what_a_loop_over_it_finds(
    xp: Any, prediction: np.ndarray, entropy: np.ndarray, exits: int
) -> None:
    of = np.asarray if xp is np else torch.tensor
    hidden = np.zeros((3, exits, 1), dtype=np.float32)
    nats = entropy * np.float32(np.log(3))
    seen = Seen(
        xp,
        Sizes(num_layers=6, width=1, num_labels=3),
        (1, exits),
        None,
        of(hidden),
        None,
        entropy=of(nats[:, :exits]),
        prediction=of(prediction[:, :exits]),
    )
    agreement, *previous = np.asarray(observe_last(PATH, seen)).T
    for i, row in enumerate(prediction[:, :exits].tolist()):
        run = 0
        while run < exits and row[exits - 1 - run] == row[exits - 1]:
            run += 1
        assert agreement[i] == np.float32(run) / np.float32(6)
        for back in range(1, EXITS_BEFORE + 1):
            before = entropy[i, exits - 1 - back] if back < exits else 1.0
            assert previous[back - 1][i] == pytest.approx(before, abs=1e-6)


def test_bounds_are_the_true_ones() -> None:
    layout = layout_of((*ALL, *PATH), SIZES)
    space = space_of(layout, (0.25, 0.5))
    for name in ("layer", "probs", "confidence", "entropy", "margin", *PATH):
        assert (space.low[layout[name]] == 0).all()
        assert (space.high[layout[name]] == 1).all()
    assert space.low[layout["alpha"]] == 0.25
    assert space.high[layout["alpha"]] == 0.5
    assert np.isfinite(space.high).all()
    assert space.high[layout["hidden"]].min() > 1e38
    fixed = space_of(layout, (0.25, 0.25))  # an episode may pay any other price
    assert (fixed.low[layout["alpha"]], fixed.high[layout["alpha"]]) == (0, 1e6)


def test_rounding_does_not_lead_out_of_the_space(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "trace", n=2, num_layers=2, num_labels=7)
    # A sum of seven float32 numbers may end a few units in the last place above what it should be.
    entropy = np.full_like(trace.entropy, np.log(7) * (1 + 1e-6))
    confidence = np.full_like(trace.confidence, 1 + 1e-6)
    env = EarlyExitEnv(
        trace=replace(trace, entropy=entropy, confidence=confidence, gap=confidence),
        observe=("entropy", "confidence", "margin", "previous"),
    )
    assert env.observation_space.contains(env.reset(seed=0)[0])


@pytest.mark.parametrize(
    ("observe", "message"),
    [
        (("hidden", "layers"), "unknown part of an observation 'layers': did you mean layer"),
        (("hidden", "layer", "hidden"), "names 'hidden' twice"),
        ((), "must name parts"),
        ("hidden", "must name parts"),
    ],
)
def test_bad_parts(trace: Trace, observe: tuple[str, ...], message: str) -> None:
    with pytest.raises(CeeGymError, match=message) as caught:
        EarlyExitEnv(trace=trace, observe=observe)
    assert "\n" not in str(caught.value)


def test_probs_need_logits(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "trace", n=3, num_layers=2, num_labels=300)
    with pytest.raises(CeeGymError, match="holds no logits, as it has 300 classes"):
        EarlyExitEnv(trace=trace, observe=("probs",))
    others = ("confidence", "entropy", "margin", "agreement", "previous", "hidden", "layer")
    EarlyExitEnv(trace=trace, observe=others)


def test_what_is_recorded_in_place_of_many_logits_is_what_they_tell(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    states, logits = np.zeros((20, 4, 1), np.float32), rng.normal(0, 3, size=(20, 4, 300))
    logits[:, 2:] = logits[:, 2:3] + 0.1 * logits[:, 2:]  # the last two mostly agree
    trace = write_arrays(tmp_path / "trace", states, logits, rng.integers(300, size=20))
    assert trace.logits is None
    parts = ("margin", *PATH)
    whole = Problem(trace, observe=parts).observe()
    assert set(whole[:, 3, 1].tolist()) == {0.25, 0.5}
    for layer in range(1, 5):
        seen = Seen(
            array_api_compat.torch,
            Sizes(num_layers=4, width=1, num_labels=300),
            (1, layer),
            None,
            torch.tensor(states[:, :layer]),
            torch.tensor(logits[:, :layer], dtype=torch.float32),
        )
        shown = np.asarray(observe_last(parts, seen))
        np.testing.assert_allclose(shown, whole[:, layer - 1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("read", [False, True], ids=["computed", "recorded"])
@pytest.mark.parametrize("part", [*ALL, *PATH, "mine:runner_up", "mine:in_a_row"])
def test_a_part_is_the_same_for_numpy_and_torch(
    own_module: str, trace: Trace, part: str, read: bool
) -> None:
    layout = layout_of([part], SIZES)
    (part,) = layout  # without its module
    recorded = (
        {"confidence": trace.confidence, "entropy": trace.entropy, "prediction": trace.prediction}
        if read
        else {}
    )
    alpha = np.linspace(0, 1, 20, dtype=np.float32)[:, None, None]
    numpy_seen = Seen(np, SIZES, (1, 4), alpha, trace.states, trace.logits, **recorded)
    whole = np.empty((20, 4, width_of(layout)), dtype=np.float32)
    observe_into(whole, layout, numpy_seen)
    for layer in range(1, 5):
        for first in {1, layer} if not PARTS.get(part).path else {1}:
            exits = slice(first - 1, layer)
            for xp, of in ((np, np.asarray), (array_api_compat.torch, torch.tensor)):
                seen = Seen(
                    xp,
                    SIZES,
                    (first, layer),
                    of(alpha),
                    of(trace.states[:, exits]),
                    of(trace.logits[:, exits]),
                    **{name: of(array[:, exits]) for name, array in recorded.items()},
                )
                last = observe_last([part], seen)
                assert last.dtype == xp.float32
                assert tuple(last.shape) == (20, width_of(layout))
                np.testing.assert_allclose(
                    np.asarray(last), whole[:, layer - 1], rtol=2e-6, atol=1e-7
                )


@pytest.mark.parametrize("xp", [np, array_api_compat.torch], ids=["numpy", "torch"])
def test_parts_are_put_side_by_side_and_alpha_may_be_one_number(trace: Trace, xp: Any) -> None:
    of = np.asarray if xp is np else torch.tensor
    one = (of(trace.states[:, 1:2]), of(trace.logits[:, 1:2]))
    observed = np.asarray(observe_last(ALL, Seen(xp, SIZES, (2, 2), 0.25, *one)))
    expected = Problem(trace, observe=ALL, alpha=0.25).observe()[:, 1]
    np.testing.assert_allclose(observed, expected, rtol=2e-6)


def test_states_in_float16_are_read_as_the_float32_of_a_running_model(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "trace", n=5, dtype="float16")

    @register_observation("length", low=0.0, high=np.inf)
    def length(seen: Seen) -> Any:
        return seen.xp.sum(seen.hidden**2, axis=-1)[..., None] * 30_000

    observed = RecordedObservations(trace, ["length"]).table
    assert observed is not None
    expected = (trace.states.astype(np.float32) ** 2).sum(axis=-1) * 30_000
    np.testing.assert_allclose(observed[..., 0], expected, rtol=1e-6)
    assert expected.max() > np.finfo(np.float16).max


def test_which_parts_need_the_path(own_module: str) -> None:
    assert not needs_path([*ALL, "mine:runner_up"])
    for part in (*PATH, "mine:in_a_row"):
        assert needs_path(["hidden", part])


def test_a_part_of_another_shape_is_refused(trace: Trace) -> None:
    @register_observation("flat", low=0.0, high=1.0)
    def flat(seen: Seen) -> Any:
        return seen.confidence

    @register_observation("narrow", width=2, low=0.0, high=1.0)
    def narrow(seen: Seen) -> Any:
        return seen.confidence[..., None]

    for name, message in (
        ("flat", r"part 'flat' of an observation must give \[n, t, 1\].* got \[8, 4\]"),
        ("narrow", r"part 'narrow' of an observation must give \[n, t, 2\].* got \[8, 4, 1\]"),
    ):
        with pytest.raises(CeeGymError, match=message) as caught:
            EarlyExitEnv(trace=trace, observe=("hidden", name))
        assert "\n" not in str(caught.value)


def test_a_part_that_reads_what_a_running_model_does_not_know_is_refused(trace: Trace) -> None:
    @register_observation("first", low=0.0, high=1.0)
    def first(seen: Seen) -> Any:
        return seen.xp.broadcast_to(seen.confidence[:, :1], seen.confidence.shape)[..., None]

    @register_observation("last", low=0.0, high=1.0, path=True)
    def last(seen: Seen) -> Any:
        return seen.xp.broadcast_to(seen.confidence[:, -1:], seen.confidence.shape)[..., None]

    @register_observation("dear", low=0.0, high=1.0)
    def dear(seen: Seen) -> Any:
        return seen.alpha * seen.confidence[..., None]

    for name, message in (
        ("first", "'first' .*reads other exits than the present one: register it with path=True"),
        ("last", "'last' .*reads exits after the present one"),
        ("dear", "is made of alpha.*observe 'alpha' beside it"),
    ):
        with pytest.raises(CeeGymError, match=message) as caught:
            EarlyExitEnv(trace=trace, observe=("hidden", name))
        assert "\n" not in str(caught.value)


def test_all_prices_and_rewards_share_one_table(trace: Trace) -> None:
    one = Problem(trace, Reward(), ALL, alpha=0.1)
    for other in (
        Problem(trace, Reward(), ALL, alpha=(0.0, 0.5)),
        Problem(trace, Reward("correctness", hardness=None), ALL, alpha=0.1),
    ):
        assert other.recorded is one.recorded
        assert other.recorded.table is one.recorded.table
    assert Problem(trace, Reward(), ("hidden",)).recorded is not one.recorded


def test_a_part_that_is_defined_anew_is_observed_anew(trace: Trace) -> None:
    @register_observation("own", low=0.0, high=1.0)
    def own(seen: Seen) -> Any:
        return seen.confidence[..., None]

    before = recorded_observations(trace, ["own"])
    assert before.table is not None

    @register_observation("own", low=0.0, high=1.0)
    def again(seen: Seen) -> Any:
        return 1 - seen.confidence[..., None]

    after = recorded_observations(trace, ["own"])
    np.testing.assert_allclose(after[:], 1 - before[:], rtol=1e-6)


@pytest.mark.parametrize("rows", [slice(None), slice(3, 9), np.array([7, 7, 0])])
def test_observations_too_large_for_memory_are_computed_and_equal_the_table(
    own_module: str, trace: Trace, monkeypatch: pytest.MonkeyPatch, rows: Any
) -> None:
    observe = (*ALL, *PATH, "mine:in_a_row")
    monkeypatch.setattr(
        cee_gym.recorded_observations, "_BYTES_AT_A_TIME", 1000
    )  # three instances at a time
    in_memory = RecordedObservations(trace, observe)
    assert in_memory.table is not None
    monkeypatch.setattr(
        cee_gym.recorded_observations, "MOST_BYTES_IN_MEMORY", in_memory.table.nbytes - 1
    )
    computed = RecordedObservations(trace, observe)
    assert computed.table is None
    np.testing.assert_array_equal(computed[rows], in_memory[rows])
    instances, layers = np.array([5, 0, 5]), np.array([4, 1, 2])
    at = in_memory.at(instances, layers)
    np.testing.assert_array_equal(at, in_memory.table[instances, layers - 1])
    np.testing.assert_array_equal(computed.at(instances, layers), at)
