"""Figures by class are those of a count by hand, and those of scikit-learn."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import classification_report

from cee_gym import Trace
from cee_gym.evaluation.classes import by_class
from tests.made_traces import write_arrays, write_trace


@pytest.fixture
def trace(tmp_path) -> Trace:
    return write_trace(tmp_path / "trace", n=80, num_labels=3)


def test_figures_by_class_are_scikit_learns(trace) -> None:
    exits = np.random.default_rng(0).integers(1, trace.num_layers + 1, len(trace))
    found = by_class(trace, {"own": exits})
    predictions = trace.prediction[np.arange(len(trace)), exits - 1]
    expected = classification_report(trace.labels, predictions, output_dict=True)
    assert len(set(predictions.tolist())) == 3
    for number in range(3):
        theirs = expected[str(number)]
        assert found["rows"][number] == theirs["support"]
        for ours, name in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
            assert found["own"][ours][number] == pytest.approx(theirs[name])


def test_a_confusion_matrix_has_labels_in_rows(trace) -> None:
    found = by_class(trace, {"first": np.ones(len(trace), dtype=int)})
    counts = np.zeros((3, 3), dtype=int)
    np.add.at(counts, (trace.labels, trace.prediction[:, 0]), 1)
    assert not np.array_equal(counts, counts.T)
    assert found["first"]["confusion"] == counts.tolist()
    assert found["names"] == list(trace.header.labels)


@pytest.mark.filterwarnings("error")
def test_a_class_without_rows_and_predictions_is_worth_nothing(tmp_path) -> None:
    logits = np.zeros((4, 2, 3))
    logits[:, :, 0] = 1
    labels = np.array([0, 0, 1, 0])
    trace = write_arrays(tmp_path / "trace", np.zeros((4, 2, 5)), logits, labels)
    found = by_class(trace, {"last": np.full(4, 2)})
    assert found["rows"] == [3, 1, 0]
    assert found["last"] == {
        "precision": [0.75, 0.0, 0.0],
        "recall": [1.0, 0.0, 0.0],
        "f1": [pytest.approx(6 / 7), 0.0, 0.0],
        "confusion": [[3, 0, 0], [1, 0, 0], [0, 0, 0]],
    }


@pytest.mark.parametrize("change", [{"labels": None}, {"target": "full_depth"}])
def test_answers_without_names_or_labels_have_no_classes(trace, change) -> None:
    other = replace(trace, header=replace(trace.header, **change))
    assert by_class(other, {"own": np.ones(len(trace), dtype=int)}) is None
