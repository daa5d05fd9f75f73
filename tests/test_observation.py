"""The parts of an observation: what they hold, the same wherever they are read."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import array_api_compat.torch
import numpy as np
import pytest
import torch

import cee_gym.recorded_observations
from cee_gym.envs import EarlyExitEnv
from cee_gym.errors import CeeGymError
from cee_gym.observation import (
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
from tests.made_traces import write_trace

ALL = ("alpha", "layer", "probs", "hidden", "confidence", "entropy")
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
    problem = Problem(trace, observe=ALL, alpha=0.5)
    observations = problem.observe()
    part = {name: observations[..., where] for name, where in problem.layout.items()}
    assert list(problem.layout) == list(ALL)
    assert observations.shape == (20, 4, 1 + 4 + 3 + 6 + 1 + 1)
    assert observations.dtype == np.float32
    np.testing.assert_array_equal(part["hidden"], trace.states)
    np.testing.assert_array_equal(part["layer"], np.broadcast_to(np.eye(4), (20, 4, 4)))
    np.testing.assert_allclose(part["probs"], trace.probabilities)
    np.testing.assert_allclose(part["probs"].sum(axis=-1), 1, rtol=1e-6)
    np.testing.assert_allclose(part["confidence"][..., 0], part["probs"].max(axis=-1), rtol=1e-6)
    np.testing.assert_allclose(part["entropy"][..., 0], trace.entropy / np.log(3), rtol=1e-6)
    np.testing.assert_array_equal(part["alpha"], 0.5)


def test_bounds_are_the_true_ones() -> None:
    layout = layout_of(ALL, SIZES)
    space = space_of(layout, (0.25, 0.5))
    for name in ("layer", "probs", "confidence", "entropy"):
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
        trace=replace(trace, entropy=entropy, confidence=confidence),
        observe=("entropy", "confidence"),
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
    EarlyExitEnv(trace=trace, observe=("confidence", "entropy", "hidden", "layer"))


@pytest.mark.parametrize("read", [False, True], ids=["computed", "recorded"])
@pytest.mark.parametrize("part", [*ALL, "mine:margin", "mine:in_a_row"])
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
    assert not needs_path([*ALL, "mine:margin"])
    assert needs_path(["hidden", "mine:in_a_row"])


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
    observe = (*ALL, "mine:in_a_row")
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
