"""What a task is, and the registry of the known ones."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cee_gym.errors import CeeGymError, DataError
from cee_gym.metrics import METRICS, check_metrics
from cee_gym.registry import Registry

Columns = Mapping[str, list[Any]]

OWN = "own-data"
"""The name of every task of which only the columns were said; see `cee_gym.tasks.own`."""
OWN_METRICS = ("accuracy", "macro_f1")


@dataclass(frozen=True)
class Task:
    """A classification of one text or of a pair of texts.

    Attributes:
        name: short and lower-case; the key of the registry.
        labels: the class names; their positions are the class numbers.
        text: the column with the text.
        pair: the column with the second text, if there is one.
        label: the column with the class; `cee_gym.tasks.labels` says how it is read.
        first_number: the number of the first class in files that number the classes; None where
            labels are never such numbers, but always the names.
        metrics: what is reported, the leading one first; names of `cee_gym.metrics`.
        hub: dataset name and configuration on the Hugging Face hub, or None where it is not there.
        dev_split: the hub's and the files' name of the dev split, where it is neither dev nor
            validation.
        other_names: column name in some files -> column name above.
        header: the columns of tsv files that have no header line.
        quoted: whether quotation marks in tsv files enclose fields (GLUE's do not).
        built_in: makes the splits instead of loading them.

    Raises:
        DataError: if there are not at least two different class names, or a metric is unknown or
            not defined for so many classes.
    """

    name: str
    labels: tuple[str, ...]
    text: str
    pair: str | None = None
    label: str = "label"
    first_number: int | None = 0
    metrics: tuple[str, ...] = ("accuracy",)
    hub: tuple[str, str | None] | None = None
    dev_split: str | None = None
    other_names: Mapping[str, str] = field(default_factory=dict)
    header: tuple[str, ...] | None = None
    quoted: bool = True
    built_in: Callable[[], Mapping[str, Columns]] | None = None

    def __post_init__(self) -> None:
        if len(self.labels) < 2 or len(set(self.labels)) < len(self.labels):
            raise DataError(
                f"task {self.name!r} needs at least two different labels, got {list(self.labels)}: "
                "regression is not supported"
            )
        try:
            check_metrics(self.metrics, len(self.labels))
        except CeeGymError as error:
            raise DataError(f"task {self.name!r}: {error}") from None
        # By which a process that has not imported the metric's module finds it.
        object.__setattr__(self, "metrics", tuple(map(METRICS.full_name, self.metrics)))

    @property
    def full_name(self) -> str:
        """The name by which any process finds the task: `MODULE:NAME` for one of your own."""
        return _TASKS.full_name(self.name)

    @property
    def is_own(self) -> bool:
        """Whether only its columns were said, so that no registry knows it."""
        return self.name == OWN

    @property
    def columns(self) -> dict[str, str]:
        """The names of its columns `text`, `label` and, where it has one, `pair`."""
        pair = {} if self.pair is None else {"pair": self.pair}
        return {"text": self.text, **pair, "label": self.label}

    def to_json(self) -> str | dict[str, Any]:
        """What `from_json` makes it of in any process, JSON-able."""
        if not self.is_own:
            return self.full_name
        return {"labels": list(self.labels), **self.columns}

    @classmethod
    def from_json(cls, written: str | Mapping[str, Any]) -> "Task":
        """The task that `to_json` wrote down.

        Raises:
            CeeGymError: if it is of a registry and not available.
        """
        if isinstance(written, str):
            return get_task(written)
        columns = {**written, "labels": tuple(written["labels"])}
        return cls(OWN, first_number=None, metrics=OWN_METRICS, **columns)


_TASKS: Registry[Task] = Registry("task")


def register_task(task: Task) -> Task:
    """Makes a task known by its name, and the calling module as the one that defines it.

    A second task of the same name from the same module replaces the first.

    Returns:
        The task itself.

    Raises:
        CeeGymError: if the name is taken by another module.
    """
    if task.is_own:
        raise CeeGymError(f"the task name {OWN!r} is taken by cee_gym.tasks: choose another name")
    _TASKS.add(task.name, task, sys._getframe(1).f_globals.get("__name__", "__main__"))
    return task


def get_task(name: str) -> Task:
    """The task of this name; `MODULE:NAME` imports the module that registers it.

    Raises:
        CeeGymError: if there is none, naming the nearest ones, or the module cannot be imported.
    """
    return _TASKS.get(name)


def task_names() -> list[str]:
    """The names of all known tasks, sorted."""
    return sorted(_TASKS)
