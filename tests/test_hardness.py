from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from cee_gym import Reward, memorized_layer
from cee_gym.errors import CeeGymError
from cee_gym.hardness import HARDNESS, register_hardness
from tests.made_traces import write_trace

TABLE = [  # correct at layers 1..12, memorized layer
    ("111111111111", 1),
    ("011111111111", 2),
    ("110111111111", 4),
    ("000000111111", 7),
    ("000000000001", 12),
    ("111111111110", 12),
    ("101010101010", 12),
    ("000000000000", 12),
]


def plain_definition(correct: list[bool]) -> int:
    """The smallest layer from which every classifier up to the last is right, or else the last."""
    depth = len(correct)
    return next((m for m in range(1, depth + 1) if all(correct[m - 1 :])), depth)


@pytest.mark.parametrize(("row", "layer"), TABLE)
def test_the_table_of_the_paper(row: str, layer: int) -> None:
    assert memorized_layer([[digit == "1" for digit in row]]).tolist() == [layer]


def test_rows_do_not_touch_each_other() -> None:
    rows = [[int(digit) for digit in row] for row, _ in TABLE]
    assert memorized_layer(rows).tolist() == [layer for _, layer in TABLE]


@given(arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=13)))
def test_the_plain_definition(correct: npt.NDArray[np.bool_]) -> None:
    layers = memorized_layer(correct)
    assert layers.tolist() == [plain_definition(row) for row in correct.tolist()]
    assert layers.dtype == np.int64


@given(st.sampled_from([np.int8, np.int64, np.uint8, np.float32]), st.integers(0, 2**32 - 1))
def test_numbers_count_as_truth_values(dtype: type, seed: int) -> None:
    correct = np.random.default_rng(seed).integers(2, size=(5, 6))
    expected = memorized_layer(correct.astype(bool))
    np.testing.assert_array_equal(memorized_layer(correct.astype(dtype)), expected)


def test_one_layer() -> None:
    assert memorized_layer([[True], [False]]).tolist() == [1, 1]


def test_no_instances() -> None:
    assert memorized_layer(np.zeros((0, 4), dtype=bool)).shape == (0,)


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4), (3, 0), ()])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"correct must have shape \[N, L\] with L >= 1, got \("):
        memorized_layer(np.ones(shape, dtype=bool))


def test_own_weights_are_known_by_name(own_module: str, tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "trace", n=20)
    weight = Reward(hardness="mine:mean_correct").hardness_weight(trace)
    np.testing.assert_array_equal(weight, trace.correct.mean(axis=1))
    assert "mean_correct" in HARDNESS
    assert HARDNESS.full_name("mean_correct") == "mine:mean_correct"
    assert HARDNESS.full_name("memorized_layer") == "memorized_layer"


def test_an_own_weight_that_is_not_one_per_instance_is_refused(
    own_module: str, tmp_path: Path
) -> None:
    register_hardness("flat")(lambda exits: exits.loss)
    with pytest.raises(CeeGymError, match=r"hardness must be 20 finite numbers.*\(20, 4\)"):
        Reward(hardness="flat").hardness_weight(write_trace(tmp_path / "trace", n=20))
