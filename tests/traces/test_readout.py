from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from array_api_compat import torch as array_api_torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import entropy

from cee_gym.traces import Readout, read_out
from cee_gym.traces.readout import MOST_LABELS_WITH_LOGITS, log_softmax

ARRAYS = ("loss", "prediction", "correct", "confidence", "entropy", "logits", "gap")
# What gives a readout of numpy arrays, in numpy and in torch.
LIBRARIES = {
    "numpy": read_out,
    "torch": lambda logits, labels=None: read_out(
        torch.from_numpy(logits),
        None if labels is None else torch.from_numpy(labels),
        array_api_torch,
    ).apply(lambda array: array.numpy()),
}


@pytest.fixture(params=LIBRARIES)
def read(request: pytest.FixtureRequest) -> Any:
    """Reads out, in each library in turn."""
    return LIBRARIES[request.param]


@given(
    arrays(np.float32, (3, 2, 5), elements=st.floats(-60, 60, width=32)),
    arrays(np.int64, (3, 2), elements=st.integers(0, 4)),
)
def test_read_out_agrees_with_torch_and_scipy(
    logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]
) -> None:
    readout = read_out(logits, labels)
    theirs = torch.from_numpy(logits).double()
    p = theirs.softmax(dim=-1)
    loss = torch.nn.functional.cross_entropy(
        theirs.flatten(0, 1), torch.from_numpy(labels).flatten(), reduction="none"
    )
    np.testing.assert_allclose(readout.loss, loss.view(3, 2), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(readout.confidence, p.amax(dim=-1), rtol=1e-5)
    np.testing.assert_allclose(readout.entropy, entropy(p, axis=-1), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(readout.prediction, logits.argmax(axis=-1))
    np.testing.assert_array_equal(readout.correct, logits.argmax(axis=-1) == labels)
    assert readout.logits is logits
    assert (readout.loss >= 0).all()
    assert (readout.confidence <= 1).all()
    assert (readout.entropy >= 0).all()


@given(st.sampled_from([2, 5, 300]), st.floats(0, 60), st.integers(0, 2**32 - 1))
def test_numpy_and_torch_read_the_same(classes: int, scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = (scale * rng.normal(size=(3, 2, classes))).astype(np.float32)
    labels = rng.integers(classes, size=(3, 1))
    ours, theirs = (read(logits, labels) for read in LIBRARIES.values())
    for name in ARRAYS:
        one, other = getattr(ours, name), getattr(theirs, name)
        assert (one is None) == (other is None)
        if one is not None:
            assert one.dtype == other.dtype
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_without_labels_there_is_neither_loss_nor_correct(read: Any) -> None:
    logits = np.array([[0.0, 2.0, 1.0]], dtype=np.float32)
    readout = read(logits)
    assert readout.loss is None
    assert readout.correct is None
    assert readout.prediction.tolist() == [1]
    known = read(logits, np.array([2]))
    assert readout.confidence == known.confidence
    assert known.correct.tolist() == [False]


def test_labels_of_instances_are_those_of_all_their_exits(read: Any) -> None:
    logits = np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float32)
    labels = np.array([0, 1, 1, 0], dtype=np.int32)
    one, other = read(logits, labels[:, None]), read(logits, np.repeat(labels[:, None], 3, axis=1))
    np.testing.assert_array_equal(one.loss, other.loss)
    np.testing.assert_array_equal(one.correct, logits.argmax(axis=2) == labels[:, None])


def test_a_single_exit_is_read_as_many_are(read: Any) -> None:
    logits = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    labels = np.array([0, 1, 2, 0])
    many = read(logits, labels)
    for row in range(4):
        one = read(logits[row], labels[row : row + 1].reshape(()))
        for name in ("loss", "prediction", "correct", "confidence", "entropy"):
            np.testing.assert_allclose(getattr(one, name), getattr(many, name)[row], rtol=1e-6)


def test_large_logits_do_not_overflow(read: Any) -> None:
    readout = read(np.array([[1e4, -1e4]], dtype=np.float32), np.array([1]))
    assert readout.loss == 2e4
    assert readout.confidence == 1
    assert readout.entropy == 0


def test_of_equal_logits_the_first_class_is_predicted(read: Any) -> None:
    readout = read(np.zeros((1, 4), dtype=np.float32), np.array([2]))
    assert readout.prediction == 0
    assert readout.entropy == pytest.approx(np.log(4))


def test_the_gap_stands_in_for_the_logits_of_many_classes(read: Any) -> None:
    logits = np.zeros((2, MOST_LABELS_WITH_LOGITS + 1), dtype=np.float32)
    logits[0, [7, 200]] = 9, 8
    logits[1, [0, 1]] = 9  # two as likely as each other
    readout = read(logits)
    p = np.exp(log_softmax(logits))
    np.testing.assert_allclose(readout.gap, [p[0, 7] - p[0, 200], 0], rtol=1e-5)
    assert read(logits[:, :-1]).gap is None


def test_a_function_is_applied_to_every_array_there_is() -> None:
    readout = read_out(np.zeros((2, 3), dtype=np.float32)).apply(lambda array: array + 1)
    assert readout.prediction.tolist() == [1, 1]
    assert readout.logits.min() == 1
    assert readout.loss is readout.gap is None
    assert isinstance(readout, Readout)
