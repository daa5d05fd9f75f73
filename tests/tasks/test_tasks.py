import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cee_gym.errors import CeeGymError, DataError
from cee_gym.tasks import Task, base, get_task, load_splits, register_task, task_names

GLUE = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2")


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base._TASKS, "_entries", dict(base._TASKS._entries))
    monkeypatch.setattr(base._TASKS, "_modules", dict(base._TASKS._modules))


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Writes a module into the working directory, and names it."""
    monkeypatch.chdir(tmp_path)

    def write(code: str) -> str:
        name = f"tasks_of_{tmp_path.name}"
        Path(f"{name}.py").write_text("from cee_gym.tasks import Task, register_task\n" + code)
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delitem(sys.modules, name)
        return name

    return write


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


def test_ones_own_task_is_one_dataclass_and_register_task() -> None:
    task = Task("polite", labels=("rude", "polite"), text="sentence")
    assert register_task(task) is task
    assert get_task("polite") is task
    assert "polite" in task_names()
    assert task.full_name == f"{__name__}:polite"
    assert get_task("rte").full_name == "rte"


def test_a_second_task_of_a_name_replaces_the_first_of_the_same_module() -> None:
    register_task(Task("polite", labels=("rude", "polite"), text="sentence"))
    other = register_task(Task("polite", labels=("no", "yes"), text="sentence"))
    assert get_task("polite") is other
    with pytest.raises(CeeGymError, match=r"'rte' is taken by cee_gym\.tasks: choose another name"):
        register_task(Task("rte", labels=("no", "yes"), text="sentence"))


def test_a_task_is_found_again_by_its_module(module: Callable[[str], str]) -> None:
    name = module("register_task(Task('polite', ('rude', 'polite'), 'sentence'))")
    assert get_task(f"{name}:polite").labels == ("rude", "polite")
    assert get_task("polite").full_name == f"{name}:polite"
    with pytest.raises(CeeGymError, match=f"unknown task 'polit' in {name}: did you mean polite"):
        get_task(f"{name}:polit")


def test_a_module_that_is_not_there_is_one_line() -> None:
    with pytest.raises(CeeGymError, match="module no_such_module cannot be imported"):
        get_task("no_such_module:polite")


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(CeeGymError, match=r"unknown task 'mrcp': did you mean mrpc\?"):
        get_task("mrcp")
    with pytest.raises(CeeGymError, match=r"unknown task 'translation': known: .*cola, .*rte"):
        get_task("translation")


@pytest.mark.parametrize("labels", [(), ("score",), ("yes", "no", "yes")])
def test_a_task_without_two_different_classes_is_refused(labels: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="task 'stsb' needs at least two different labels, got"):
        Task("stsb", labels=labels, text="sentence")


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(DataError, match="task 'polite': unknown metric 'bleu': known: accuracy, "):
        Task("polite", labels=("rude", "polite"), text="s", metrics=("accuracy", "bleu"))


def test_a_built_in_task_makes_its_own_splits() -> None:
    def splits() -> dict[str, dict[str, list[Any]]]:
        return {
            "train": {"sentence": ["a", "b"], "label": [0, 1], "difficulty": [2, 1]},
            "dev": {"sentence": ["c"], "label": [1]},
        }

    task = Task("parity", labels=("even", "odd"), text="sentence", built_in=splits)
    loaded = load_splits(task)
    assert loaded["train"].to_dict() == {
        "row_id": ["train/0", "train/1"],
        "text": ["a", "b"],
        "label": [0, 1],
    }
    assert loaded["dev"]["label"] == [1]
