"""What a task is, and the registry of the known ones."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cee_gym.errors import DataError, did_you_mean

Columns = Mapping[str, list[Any]]


@dataclass(frozen=True)
class Task:
    """A classification of one text or of a pair of texts.

    Attributes:
        name: short and lower-case; the key of the registry.
        labels: the class names; their positions are the class numbers.
        text: the column with the text.
        pair: the column with the second text, if there is one.
        label: the column with the class, as a name or a number.
        metrics: what is reported, the leading one first: `accuracy`, `f1` (of class 1) or
            `matthews`.
        hub: dataset name and configuration on the Hugging Face hub, or None where it is not there.
        dev_split: the hub's and the files' name of the dev split, where it is neither dev nor
            validation.
        other_names: column name in some files -> column name above.
        header: the columns of tsv files that have no header line.
        quoted: whether quotation marks in tsv files enclose fields (GLUE's do not).
        built_in: makes the splits instead of loading them.
    """

    name: str
    labels: tuple[str, ...]
    text: str
    pair: str | None = None
    label: str = "label"
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
        if unknown := set(self.metrics) - {"accuracy", "f1", "matthews"}:
            raise DataError(f"task {self.name!r}: unknown metric {', '.join(sorted(unknown))}")


_TASKS: dict[str, Task] = {}


def register(task: Task) -> None:
    """Makes a task known by its name; a second one of the same name replaces the first."""
    _TASKS[task.name] = task


def get_task(name: str) -> Task:
    """The task of this name.

    Raises:
        DataError: if there is none; names the nearest ones.
    """
    if name not in _TASKS:
        raise DataError(f"unknown task {name!r}: {did_you_mean(name, task_names())}")
    return _TASKS[name]


def task_names() -> list[str]:
    """The names of all known tasks, sorted."""
    return sorted(_TASKS)
