from typing import Any

import pytest

from cee_gym.errors import DataError
from cee_gym.tasks import Task, base, get_task, load_splits, register, task_names

GLUE = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2")


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_TASKS", dict(base._TASKS))


def test_the_tasks_of_the_paper_are_known() -> None:
    assert {*GLUE, "mcid", "stackoverflow"} <= set(task_names())
    assert task_names() == sorted(task_names())


@pytest.mark.parametrize("name", task_names())
def test_a_known_task_is_found_by_its_own_name(name: str) -> None:
    task = get_task(name)
    assert task.name == name == name.lower()
    assert len(set(task.labels)) == len(task.labels) >= 2
    assert task.metrics


@pytest.mark.parametrize(
    ("name", "metrics"),
    [
        ("rte", ("accuracy",)),
        ("mrpc", ("f1", "accuracy")),
        ("sst2", ("accuracy",)),
        ("qnli", ("accuracy",)),
        ("qqp", ("f1", "accuracy")),
        ("mnli", ("accuracy",)),
        ("cola", ("matthews",)),
    ],
)
def test_metrics_are_those_of_glue(name: str, metrics: tuple[str, ...]) -> None:
    assert get_task(name).metrics == metrics


@pytest.mark.parametrize(
    ("name", "classes"),
    [("mnli", 3), ("mcid", 16), ("stackoverflow", 20), ("rte", 2), ("cola", 2)],
)
def test_number_of_classes(name: str, classes: int) -> None:
    assert len(get_task(name).labels) == classes


@pytest.mark.parametrize("name", GLUE)
def test_glue_tasks_have_their_hub_name(name: str) -> None:
    assert get_task(name).hub == ("nyu-mll/glue", name)


def test_ones_own_task_is_one_dataclass_and_register() -> None:
    task = Task("polite", labels=("rude", "polite"), text="sentence")
    register(task)
    assert get_task("polite") is task
    assert "polite" in task_names()


def test_a_second_task_of_a_name_replaces_the_first() -> None:
    register(Task("polite", labels=("rude", "polite"), text="sentence"))
    other = Task("polite", labels=("no", "yes"), text="sentence")
    register(other)
    assert get_task("polite") is other


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(DataError, match=r"unknown task 'mrcp': did you mean mrpc\?"):
        get_task("mrcp")
    with pytest.raises(DataError, match=r"unknown task 'translation': known: .*cola, .*rte"):
        get_task("translation")


@pytest.mark.parametrize("labels", [(), ("score",), ("yes", "no", "yes")])
def test_a_task_without_two_different_classes_is_refused(labels: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="task 'stsb' needs at least two different labels, got"):
        Task("stsb", labels=labels, text="sentence")


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(DataError, match="task 'polite': unknown metric bleu"):
        Task("polite", labels=("rude", "polite"), text="s", metrics=("accuracy", "bleu"))


def test_a_built_in_task_makes_its_own_splits() -> None:
    def splits() -> dict[str, dict[str, list[Any]]]:
        return {
            "train": {"sentence": ["a", "b"], "label": [0, 1], "difficulty": [2, 1]},
            "dev": {"sentence": ["c"], "label": ["odd"]},
        }

    task = Task("parity", labels=("even", "odd"), text="sentence", built_in=splits)
    loaded = load_splits(task)
    assert loaded["train"].to_dict() == {
        "row_id": ["train/0", "train/1"],
        "text": ["a", "b"],
        "label": [0, 1],
    }
    assert loaded["dev"]["label"] == [1]
