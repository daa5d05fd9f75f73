"""How far confidences can be trusted, against scikit-learn and cases done by hand."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from cee_gym.evaluation.calibration import (
    exits_report,
    exits_table,
    expected_calibration_error,
    ranking,
)
from tests.made_traces import write_trace


def test_the_calibration_error_of_a_case_done_by_hand() -> None:
    # Two bins: three of .9, of which two are right, and one of .55, which is wrong.
    confidence = np.array([[0.9], [0.9], [0.9], [0.55]])
    correct = np.array([[True], [True], [False], [False]])
    expected = 3 / 4 * abs(0.9 - 2 / 3) + 1 / 4 * 0.55
    assert expected_calibration_error(confidence, correct) == pytest.approx([expected])


def test_each_exit_has_its_own_error() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, size=(200, 3))
    correct = rng.random((200, 3)) < confidence
    together = expected_calibration_error(confidence, correct)
    for layer in range(3):
        alone = expected_calibration_error(confidence[:, [layer]], correct[:, [layer]])
        assert together[layer] == pytest.approx(alone[0])
    sure = expected_calibration_error(np.ones((4, 1)), np.array([[True], [True], [True], [False]]))
    assert sure == pytest.approx([0.25])


def test_the_ranking_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    confidence, correct = rng.random((50, 3)), rng.random((50, 3)) < 0.7
    correct[:, 2] = True
    found = ranking(confidence, correct)
    for layer in (0, 1):
        assert found[layer] == roc_auc_score(correct[:, layer], confidence[:, layer])
    assert found[2] is None


def test_the_report_undoes_the_temperatures(tmp_path) -> None:
    trace = write_trace(tmp_path / "t", n=80)
    plain = exits_report(trace, None)
    assert "uncalibrated" not in plain
    report = exits_report(trace, [1.0] * trace.num_layers)
    for name in ("cross_entropy", "ece", "auroc"):
        assert report["uncalibrated"][name] == pytest.approx(plain[name], abs=1e-5)
    cooler = exits_report(trace, [2.0] * trace.num_layers)["uncalibrated"]
    # Logits twice as large rank rows of two classes alike, and are surer.
    logits = 2 * np.asarray(trace.logits, dtype=float)
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    of_label = np.take_along_axis(probs, trace.labels[:, None, None].astype(int), -1)[..., 0]
    np.testing.assert_allclose(cooler["cross_entropy"], -np.log(of_label).mean(0), rtol=1e-4)
    table = exits_table(report)
    assert "(before temperatures)" in table
    assert len(table.splitlines()) == 2 + trace.num_layers
