import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import entropy

from cee_gym.traces.readout import read_out


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
    assert (readout.loss >= 0).all()
    assert (readout.confidence <= 1).all()
    assert (readout.entropy >= 0).all()


def test_large_logits_do_not_overflow() -> None:
    readout = read_out(np.array([[1e4, -1e4]], dtype=np.float32), np.array([1]))
    assert readout.loss == 2e4
    assert readout.confidence == 1
    assert readout.entropy == 0


def test_of_equal_logits_the_first_class_is_predicted() -> None:
    readout = read_out(np.zeros((1, 4), dtype=np.float32), np.array([2]))
    assert readout.prediction == 0
    assert readout.entropy == pytest.approx(np.log(4))
