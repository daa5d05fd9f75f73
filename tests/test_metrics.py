import subprocess
import sys

import numpy as np
import pytest
from sklearn.metrics import f1_score, matthews_corrcoef

from cee_gym.errors import CeeGymError, DataError
from cee_gym.metrics import METRICS, check_metrics, register_metric, score
from cee_gym.tasks import Task

LABELS = np.array([0, 1, 1, 0, 1])
PREDICTIONS = np.array([0, 1, 0, 1, 1])
THREE = ("worse", "same", "better")


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METRICS, "_entries", dict(METRICS._entries))
    monkeypatch.setattr(METRICS, "_modules", dict(METRICS._modules))


def test_each_metric_is_scikit_learns() -> None:
    assert score(["f1", "accuracy", "macro_f1", "matthews"], LABELS, PREDICTIONS) == {
        "f1": pytest.approx(f1_score(LABELS, PREDICTIONS)),
        "accuracy": 0.6,
        "macro_f1": pytest.approx(f1_score(LABELS, PREDICTIONS, average="macro")),
        "matthews": pytest.approx(matthews_corrcoef(LABELS, PREDICTIONS)),
    }


def test_macro_f1_is_the_mean_over_three_classes() -> None:
    found = score(["macro_f1"], np.array([0, 1, 2, 2]), np.array([0, 1, 1, 2]))
    assert found["macro_f1"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)


@pytest.mark.filterwarnings("error")
def test_a_class_that_is_never_predicted_is_worth_nothing() -> None:
    assert score(["f1"], np.array([0, 1]), np.array([0, 0])) == {"f1": 0.0}


def test_f1_of_three_classes_is_refused_when_the_task_is_made() -> None:
    with pytest.raises(DataError, match="'mood': metric f1 is defined for at most 2 classes") as no:
        Task("mood", labels=THREE, text="text", metrics=("f1",))
    assert "use accuracy or macro_f1 or matthews" in str(no.value)
    assert Task("mood", labels=THREE, text="text", metrics=("macro_f1",))


@pytest.mark.parametrize(
    ("metrics", "why"), [((), "at least one"), (("acuracy",), "mean accuracy")]
)
def test_metrics_that_there_are_not(metrics: tuple[str, ...], why: str) -> None:
    with pytest.raises(CeeGymError, match=why):
        check_metrics(metrics, 2)


def test_ones_own_metric_is_one_function() -> None:
    @register_metric("errors", most_classes=2)
    def errors(labels, predictions):
        return (labels != predictions).sum()

    assert score(["errors"], LABELS, PREDICTIONS) == {"errors": 2.0}
    # By which another process finds it.
    task = Task("polite", labels=("rude", "polite"), text="text", metrics=("errors",))
    assert task.metrics == (f"{__name__}:errors",)
    assert score(task.metrics, LABELS, PREDICTIONS) == {f"{__name__}:errors": 2.0}
    with pytest.raises(DataError, match="errors is defined for at most 2 classes"):
        Task("mood", labels=THREE, text="text", metrics=("errors",))


def test_tasks_import_neither_scikit_learn_nor_datasets() -> None:
    program = "import sys, cee_gym.tasks; print({'sklearn', 'datasets', 'torch'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
