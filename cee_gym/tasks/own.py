"""Your own text, of which only the columns are said: its classes are those it is labelled with.

`own_task` reads the classes from train and makes an ordinary `Task`. `Task.to_json` writes it down
with what is recorded of it, so that nobody need say the columns again.
"""

from collections import Counter
from typing import Any

from cee_gym.errors import DataError
from cee_gym.tasks.base import Task
from cee_gym.tasks.loading import read_splits


def own_task(data: str, text: str, label: str, pair: str | None = None) -> Task:
    """The task of your own text.

    Args:
        data: a directory, a single file or the name of a hub dataset; see `load_splits`.
        text: the column with the text.
        label: the column with the class: text, a whole number or a truth value.
        pair: the column with the second text, where it is about pairs.

    Returns:
        The classes are sorted: whole numbers by their value, all others as text.

    Raises:
        DataError: if the data cannot be reached, has not the columns, or its labels are no classes.
    """
    said = {"text": text, "pair": pair, "label": label}
    columns = {role: column for role, column in said.items() if column is not None}
    if len(set(columns.values())) < len(columns):
        roles = ", ".join(f"{role} {column!r}" for role, column in columns.items())
        raise DataError(f"each of text, pair and label is a column of its own, got {roles}")
    # What reads columns does not ask for the classes, which are not known yet.
    unread = Task.from_json({"labels": ("", "?"), **columns})
    train = read_splits(unread, data)["train"]
    assert train is not None  # None stands for a test split without labels
    classes = _classes(train.columns[label], f"{train.where}, column {label}")
    return Task.from_json({"labels": classes, **columns})


def _classes(labels: list[Any], where: str) -> list[str]:
    """The names of the classes in a column of labels, in order."""
    rows = Counter(_name(label, f"{where}, row {row}") for row, label in enumerate(labels))
    if len(rows) == 1:
        raise DataError(
            f"{where}: all {len(labels)} rows are of one class, {next(iter(rows))!r}: give text of "
            "at least two"
        )
    if len(rows) == len(labels):
        raise DataError(
            f"{where}: no two of the {len(labels)} rows are of the same class: give the column "
            "with the classes, and several rows of each"
        )
    numbers = [name for name in rows if _is_number(name)]
    if len(numbers) < len(rows):
        return sorted(rows)
    if decimal := [name for name in numbers if not _is_whole(name)]:
        raise DataError(
            f"{where}: {decimal[0]} is a decimal number, and regression is not supported: write "
            "classes as text or whole numbers"
        )
    return sorted(rows, key=lambda name: (int(name), name))


def _name(label: Any, where: str) -> str:
    """A label as the name of its class, as `LabelColumn` reads it."""
    if label is None or (isinstance(label, str) and not label.strip()):
        raise DataError(f"{where}: the label is missing: take the row out, or give it one")
    if isinstance(label, bool):
        return str(label).lower()
    if isinstance(label, float):
        raise DataError(
            f"{where}: {label} is a decimal number, and regression is not supported: write classes "
            "as text or whole numbers"
        )
    if not isinstance(label, str | int):
        raise DataError(f"{where}: {label!r:.60} is no class: write text or a whole number")
    return str(label)


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return "_" not in name


def _is_whole(name: str) -> bool:
    try:
        int(name)
    except ValueError:
        return False
    return True
