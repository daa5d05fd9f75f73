"""How labels are read: all of them, in every split, in one way.

There are three ways to write a class:

- its name, or a number or truth value that equals it: 1.0 for a class named 1;
- its number, counted from 0, or from where the task says;
- false and true, for the first and the second of two classes.

Labels that are all written just as the classes are named are names. Otherwise they are read in the
way that fits all of them, and refused where no way does, or where two do and disagree.

Where a data set keeps labels back, None, an empty text and -1 stand for "no label"; -1 does not
where a class is named so.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from cee_gym.errors import DataError

Way = Callable[[Any], int | None]


class LabelColumn:
    """The labels of all splits: first all are added, then all are read in one way.

    Args:
        names: the class names; their positions are the class numbers.
        first_numbers: the number of the first class in data that numbers the classes; several
            where that is not known, none where it numbers no classes.
        owner: whose classes they are, for messages.
    """

    def __init__(self, names: Sequence[str], first_numbers: Sequence[int], owner: str) -> None:
        self._names = list(names)
        self._first_numbers = first_numbers
        self._owner = owner
        self._by_name = {name: at for at, name in enumerate(names)}
        self._by_value = {
            value: at for at, name in enumerate(names) if (value := _number(name)) is not None
        }
        self._by_truth = {
            truth: at for at, name in enumerate(names) if (truth := _truth(name)) is not None
        }
        self._ways: dict[str, Way] = {"a class name": self._named}
        for first in first_numbers:
            self._ways[f"a class number from {first} on"] = partial(self._numbered, first)
        if len(names) == 2 and not self._by_truth:
            self._ways["false or true"] = _truth
        # Of each label, in each way it is written, the first place where it stands.
        self._found: dict[tuple[type, str], tuple[Any, str]] = {}
        self._unreadable: tuple[Any, str] | None = None

    def is_none(self, label: Any) -> bool:
        """Whether it stands for no label."""
        return label in (None, "") or (_number(label) == -1 and -1 not in self._by_value)

    def may_be_class(self, label: Any) -> bool:
        """Whether it is a number, or else a class in at least one way."""
        return _number(label) is not None or bool(self._classes_of(label))

    def add(self, label: Any, where: str) -> None:
        """Takes a label into account.

        Args:
            label: as it stands in the data.
            where: it stands, for messages.
        """
        if _key(label) in self._found:
            return
        if self._classes_of(label):
            self._found[_key(label)] = (label, where)
        elif self._unreadable is None:
            self._unreadable = (label, where)

    def reader(self) -> Callable[[Any], int]:
        """The one way to read all labels, from a label to its class number.

        It raises a DataError for a label that has not been added.

        Raises:
            DataError: if there is no such way, or two disagree; names a label and where it stands.
        """
        if self._unreadable is not None:
            label, where = self._unreadable
            raise DataError(f"{where}: {self._complaint(label)}")
        way = self._one_way()
        classes = {key: way(label) for key, (label, _) in self._found.items()}

        def read(label: Any) -> int:
            found = classes.get(_key(label))
            if found is None:
                raise DataError(self._complaint(label))
            return found

        return read

    def read_alone(self, label: Any) -> int:
        """The class number of a label whose column cannot be looked through first.

        Raises:
            DataError: if it is no class, or only all labels can tell which.
        """
        classes = self._classes_of(label)
        number = _number(label)
        if number is not None and (len(classes) > 1 or number not in self._by_value):
            raise DataError(
                f"label {label!r} is a number, and which class it stands for depends on all "
                "labels, which a stream does not show: give class names, or a file"
            )
        if len(classes) != 1:
            raise DataError(self._complaint(label))
        return classes.pop()

    def _one_way(self) -> Way:
        found = list(self._found.values())
        if all(self._as_written(label) is not None for label, _ in found):
            return self._as_written
        fitting = [
            (title, way)
            for title, way in self._ways.items()
            if all(way(label) is not None for label, _ in found)
        ]
        if not fitting:
            label, where = found[0]
            title, way = next((t, way) for t, way in self._ways.items() if way(label) is not None)
            other, there = next(one for one in found if way(one[0]) is None)
            raise DataError(
                f"{where}: label {label!r} is {title}, and {there}: label {other!r} is not: write "
                "all labels of all splits in one way"
            )
        title, way = fitting[0]
        for other_title, other_way in fitting[1:]:
            for label, where in found:
                names = [self._names[one(label) or 0] for one in (way, other_way)]
                if names[0] != names[1]:
                    raise DataError(
                        f"{where}: label {label!r} is {names[0]!r} if read as {title}, "
                        f"{names[1]!r} if read as {other_title}, and all labels can be read "
                        "either way: write them as the classes are named"
                    )
        return way

    def _classes_of(self, label: Any) -> set[int]:
        """The classes that a label stands for, one way or another."""
        return {at for way in self._ways.values() if (at := way(label)) is not None}

    def _as_written(self, label: Any) -> int | None:
        return (
            self._by_truth.get(label) if isinstance(label, bool) else self._by_name.get(str(label))
        )

    def _named(self, label: Any) -> int | None:
        if isinstance(label, str) and label in self._by_name:
            return self._by_name[label]
        truth, number = _truth(label), _number(label)
        if truth in self._by_truth:
            return self._by_truth[truth]
        if len(self._names) == 2 and truth is not None:
            number = truth
        return None if number is None else self._by_value.get(number)

    def _numbered(self, first: int, label: Any) -> int | None:
        number = _number(label)
        if number is None or not number.is_integer():
            return None
        at = int(number) - first
        return at if 0 <= at < len(self._names) else None

    def _complaint(self, label: Any) -> str:
        number = _number(label)
        if number is None or self._by_value or not self._first_numbers:
            return f"label {label!r} is none of {self._owner}'s: {', '.join(self._names)}"
        if not number.is_integer():
            return f"label {label} is not a class number: regression is not supported"
        count = len(self._names)
        ranges = " or ".join(f"{first} to {first + count - 1}" for first in self._first_numbers)
        said = f"label {label} is out of range: {self._owner} has the classes {ranges}"
        if self._first_numbers == (0,) and number == count:
            said += ". If they are numbered from 1, say so by the task's first_number"
        return said


def _key(label: Any) -> tuple[type, str]:
    return type(label), str(label)


def _number(label: Any) -> float | None:
    """The number that a label is or spells."""
    if isinstance(label, bool) or not isinstance(label, int | float | str) or "_" in str(label):
        return None
    try:
        return float(label)
    except (ValueError, OverflowError):
        return None


def _truth(label: Any) -> int | None:
    """The truth value that a label is or spells, as 0 or 1."""
    word = str(label).lower() if isinstance(label, bool | str) else None
    return {"false": 0, "true": 1}.get(word or "")
