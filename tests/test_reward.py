import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cee_gym import Reward, Trace, memorized_layer
from cee_gym.errors import CeeGymError
from cee_gym.reward import alpha_range, register_quality
from cee_gym.traces import read_out
from tests.made_traces import made_header


def trace_of(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int32]) -> Trace:
    """A trace in memory only."""
    n, num_layers, num_labels = logits.shape
    readout = read_out(logits, labels[:, None])
    return Trace(
        states=np.zeros((n, num_layers, 1), dtype=np.float32),
        loss=readout.loss,
        prediction=readout.prediction,
        confidence=readout.confidence,
        entropy=readout.entropy,
        labels=labels,
        row_ids=np.array([f"train/{row}" for row in range(n)]),
        logits=logits,
        header=made_header(num_layers, num_labels),
        path=Path("nowhere"),
    )


DEPTHS = np.arange(1, 5)


@pytest.fixture
def trace() -> Trace:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(50, 4, 3), scale=2).astype(np.float32)
    return trace_of(logits, rng.integers(3, size=50).astype(np.int32))


HARDNESS: list[tuple[Any, Any]] = [
    (None, lambda trace: np.ones(50)),
    ("memorized_layer", lambda trace: 1 - memorized_layer(trace.correct) / 4),
    ("last_layer_loss", lambda trace: np.exp(-trace.loss[:, 3])),
    (np.linspace(0, 2, 50), lambda trace: np.linspace(0, 2, 50)),
    ([1] * 50, lambda trace: np.ones(50)),
]
COSTS: list[tuple[Any, list[float]]] = [
    ("layers", [1, 2, 3, 4]),
    ((0.5, 1.5, 1.5, 7), [0.5, 1.5, 1.5, 7]),
    (np.array([10, 20, 30, 40]), [10, 20, 30, 40]),
]


@pytest.mark.parametrize(("hardness", "weight"), HARDNESS)
@pytest.mark.parametrize(("cost", "costs"), COSTS)
def test_price_is_hardness_weight_times_cost(
    trace: Trace, hardness: Any, weight: Any, cost: Any, costs: list[float]
) -> None:
    price = Reward(hardness=hardness, cost=cost).price_of(trace, DEPTHS)
    expected = weight(trace)
    for row in range(50):
        for layer in range(4):
            assert price[row, layer] == pytest.approx(expected[row] * costs[layer], rel=1e-6)
    assert price.dtype == np.float32


def test_quality_is_minus_the_loss_or_whether_it_is_right(trace: Trace) -> None:
    quality = Reward.paper().quality_of(trace)
    np.testing.assert_array_equal(quality, -trace.loss)
    quality = Reward().quality_of(trace)
    np.testing.assert_array_equal(quality, trace.prediction == trace.labels[:, None])
    assert quality.dtype == np.float32
    assert set(quality.ravel()) == {0.0, 1.0}


@given(
    arrays(np.float32, (3, 5, 2), elements=st.floats(-8, 8, width=32)),
    arrays(np.int32, 3, elements=st.integers(0, 1)),
    st.floats(0, 1),
)
def test_the_reward_of_the_paper(
    logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int32], alpha: float
) -> None:
    trace = trace_of(logits, labels)
    paper = Reward.paper()
    reward = paper.quality_of(trace) - alpha * paper.price_of(trace, np.arange(1, 6))
    for i, label in enumerate(labels):
        exponentials = np.exp(logits[i].astype(np.float64))
        p = exponentials[:, label] / exponentials.sum(axis=1)
        right = (logits[i].argmax(axis=1) == label).tolist()
        m = next((m for m in range(1, 6) if all(right[m - 1 :])), 5)
        for t in range(1, 6):
            expected = np.log(p[t - 1]) - alpha * (1 - m / 5) * t
            assert reward[i, t - 1] == pytest.approx(expected, abs=1e-5)


def test_an_instance_memorized_last_goes_deep_for_free() -> None:
    logits = np.zeros((2, 3, 2), dtype=np.float32)
    logits[0, :, 0] = 1  # always right: m = 1
    logits[1, :, 1] = 1  # never right: m = L
    trace = trace_of(logits, np.zeros(2, dtype=np.int32))
    price = Reward.paper().price_of(trace, np.arange(1, 4))
    np.testing.assert_allclose(price[0], [2 / 3, 4 / 3, 2], rtol=1e-6)
    np.testing.assert_array_equal(price[1], 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quality": "accuracy"}, "unknown quality 'accuracy': known: correctness, cross_entropy"),
        ({"quality": "corectness"}, "unknown quality 'corectness': did you mean correctness"),
        ({"hardness": "memorised"}, "unknown hardness 'memorised': .*memorized_layer"),
        ({"cost": "flops"}, "cost 'flops' is unknown: use 'layers', one number per exit"),
        ({"cost": "json:flops"}, "unknown cost 'flops' in json"),
        ({"quality": "no_such_module:mine"}, "module no_such_module cannot be imported"),
    ],
)
def test_an_unknown_kind_is_refused_at_once(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(CeeGymError, match=message) as caught:
        Reward(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hardness": np.ones(49)}, r"hardness must be 50 finite numbers.*\(49,\)"),
        ({"hardness": np.ones((50, 1))}, "hardness must be 50 finite numbers"),
        ({"hardness": np.full(50, np.nan)}, "hardness must be 50 finite numbers"),
        ({"hardness": ["hard"] * 50}, "hardness must be 50 finite numbers"),
        ({"hardness": 1.0}, "hardness must be 50 finite numbers"),
        ({"cost": (1, 2, 3)}, r"cost must be 4 finite numbers, one per layer, got shape \(3,\)"),
        ({"cost": (1, 2, 3, np.inf)}, "cost must be 4 finite numbers"),
        ({"cost": ("a", "b", "c", "d")}, "cost must be 4 finite numbers"),
        ({"cost": None}, "cost must be 4 finite numbers"),
    ],
)
def test_numbers_that_do_not_fit_the_trace_are_refused(
    trace: Trace, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(CeeGymError, match=message) as caught:
        Reward(**arguments).price_of(trace, DEPTHS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "quality", "hardness"),
    [
        ("paper", "cross_entropy", "memorized_layer"),
        ("correctness", "correctness", None),
        ("cross_entropy", "cross_entropy", None),
        (Reward("correctness", "last_layer_loss"), "correctness", "last_layer_loss"),
        ({"quality": "correctness", "hardness": None}, "correctness", None),
    ],
)
def test_a_reward_by_its_short_name(given: Any, quality: str, hardness: str | None) -> None:
    reward = Reward.named(given)
    assert (reward.quality, reward.hardness, reward.cost) == (quality, hardness, "layers")


@pytest.mark.parametrize(
    ("given", "message"),
    [("both", "unknown quality 'both'"), (1, "got 1"), ({"q": 1}, "got {'q': 1}")],
)
def test_any_other_short_name_is_refused(given: Any, message: str) -> None:
    with pytest.raises(CeeGymError, match=message):
        Reward.named(given)


def test_what_is_registered_is_one_function_each(own_module: str, trace: Trace) -> None:
    reward = Reward("mine:probability", "mine:mean_correct", "mine:squares")
    np.testing.assert_allclose(reward.quality_of(trace), np.exp(-trace.loss))
    assert reward.quality_of(trace).dtype == np.float32
    weight = trace.correct.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(reward.price_of(trace, DEPTHS), weight * [1, 4, 9, 16], rtol=1e-6)
    assert reward.quality_bounds == (0.0, 1.0)
    # Once the module is known its names do without it; a reward keeps them whole.
    short = Reward("probability", "mean_correct", "squares")
    assert (short.quality, short.hardness, short.cost) == (
        *("mine:probability", "mine:mean_correct", "mine:squares"),
    )


def test_a_name_of_one_module_is_not_taken_for_that_of_another(own_module: str) -> None:
    Reward("mine:probability")
    Path("other.py").write_text(Path("mine.py").read_text())  # in the working directory
    with pytest.raises(CeeGymError, match="quality name 'probability' is taken by mine"):
        Reward("other:probability")


@pytest.mark.parametrize(
    "of", [lambda exits: exits.loss[:, 0], lambda exits: exits.loss * np.nan, lambda exits: "high"]
)
def test_a_quality_that_is_no_number_for_each_exit_is_refused(
    own_module: str, trace: Trace, of: Any
) -> None:
    register_quality("wrong", low=0.0, high=1.0)(of)
    with pytest.raises(CeeGymError, match=r"'.*wrong' must give a finite number for each exit"):
        Reward("wrong").quality_of(trace)


def test_a_reward_cannot_be_changed(trace: Trace) -> None:
    weight = np.ones(50)
    reward = Reward(hardness=weight)
    before = reward.price_of(trace, DEPTHS)
    weight[:] = 2
    np.testing.assert_array_equal(reward.price_of(trace, DEPTHS), before)
    with pytest.raises(ValueError, match="read-only"):
        reward.hardness[0] = 2  # type: ignore[index]
    assert copy.copy(reward) is copy.deepcopy(reward) is reward
    again = pickle.loads(pickle.dumps(reward))
    np.testing.assert_array_equal(again.price_of(trace, DEPTHS), before)


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [
        (0, (0.0, 0.0)),
        (0.035, (0.035, 0.035)),
        (np.float32(0.5), (0.5, 0.5)),
        (np.int64(1), (1.0, 1.0)),
        (np.array(0.25), (0.25, 0.25)),
        ((0, 0.1), (0.0, 0.1)),
        ([0.1, 0.1], (0.1, 0.1)),
        (np.array([0.5, 2]), (0.5, 2.0)),
    ],
)
def test_alpha_is_a_number_or_a_range(alpha: Any, expected: tuple[float, float]) -> None:
    assert alpha_range(alpha) == expected
    assert all(type(bound) is float for bound in alpha_range(alpha))


@pytest.mark.parametrize(
    "alpha",
    [
        -0.01,
        -1,
        1e308,
        1.1e6,
        (0.0, 1e308),
        10**309,
        np.nan,
        np.inf,
        -np.inf,
        (0.2, 0.1),
        (-0.1, 0.1),
        (0.0, np.inf),
        (np.nan, 0.1),
        (),
        (0.1,),
        (0.1, 0.2, 0.3),
        ((0.1, 0.2), (0.3, 0.4)),
        None,
        "cheap",
        ("0.1", "high"),
        1j,
    ],
)
def test_any_other_alpha_is_refused(alpha: Any) -> None:
    with pytest.raises(CeeGymError, match="alpha must be") as caught:
        alpha_range(alpha)
    assert "\n" not in str(caught.value)
    assert repr(alpha) in str(caught.value)
