"""What labels mean, all of them together."""

from collections.abc import Sequence
from typing import Any

import pytest

from cee_gym.errors import DataError
from cee_gym.tasks.labels import LabelColumn

WORDS = ("negative", "positive")


def column(
    labels: Sequence[Any], names: Sequence[str] = WORDS, first_numbers: tuple[int, ...] = (0,)
) -> LabelColumn:
    made = LabelColumn(names, first_numbers, "opinion")
    for row, label in enumerate(labels):
        made.add(label, f"row {row}")
    return made


def classes(labels: Sequence[Any], *args: Any) -> list[int]:
    read = column(labels, *args).reader()
    return [read(label) for label in labels]


def refusal(labels: Sequence[Any], *args: Any) -> str:
    with pytest.raises(DataError) as caught:
        column(labels, *args).reader()
    return str(caught.value)


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        (["positive", "negative"], WORDS, [1, 0]),
        ([1, "0", 1.0, "1.0"], WORDS, [1, 0, 1, 1]),
        ([True, "false", "TRUE"], WORDS, [1, 0, 1]),
        ([True, "false", "True"], ("true", "false"), [0, 1, 0]),
        ([0, 1], ("true", "false"), [0, 1]),
        ([-1, "1", 1.0], ("-1", "1"), [0, 1, 1]),
        ([2, 0, 1], ("2", "1", "0"), [0, 2, 1]),
        (["0", 1, "more"], ("0", "1", "more"), [0, 1, 2]),
        ([], WORDS, []),
    ],
)
def test_one_way_fits_all(labels: list[Any], names: tuple[str, ...], expected: list[int]) -> None:
    assert classes(labels, names) == expected


@pytest.mark.parametrize(
    ("labels", "expected"), [([0, 1], [0, 1]), ([1, 2], [0, 1]), ([2.0], [1]), ([0], [0])]
)
def test_where_numbers_begin_is_seen_from_all_of_them(
    labels: list[Any], expected: list[int]
) -> None:
    assert classes(labels, WORDS, (0, 1)) == expected


@pytest.mark.parametrize(
    ("labels", "names", "first_numbers", "ways"),
    [
        ([1], WORDS, (0, 1), ("a class number from 0 on", "a class number from 1 on")),
        (["2.0", "1.0"], ("1", "2", "3"), (0,), ("a class name", "a class number from 0 on")),
        ([True], ("1", "0"), (0,), ("a class name", "false or true")),
    ],
)
def test_two_ways_that_disagree_are_both_named(
    labels: list[Any], names: tuple[str, ...], first_numbers: tuple[int, ...], ways: tuple[str, str]
) -> None:
    message = refusal(labels, names, first_numbers)
    assert all(f"if read as {way}" in message for way in ways)
    assert "row 0" in message


@pytest.mark.parametrize("labels", [[0, "positive"], [True, 0], ["true", "positive"]])
def test_a_mixture_is_refused(labels: list[Any]) -> None:
    message = refusal(labels)
    assert f"row 0: label {labels[0]!r} is" in message
    assert (
        f"row 1: label {labels[1]!r} is not: write all labels of all splits in one way" in message
    )


@pytest.mark.parametrize("label", [None, "", -1, "-1", -1.0])
def test_no_label(label: Any) -> None:
    assert LabelColumn(WORDS, (0,), "opinion").is_none(label)


def test_a_class_named_minus_1_is_a_label() -> None:
    assert not LabelColumn(("-1", "1"), (0,), "opinion").is_none("-1")


@pytest.mark.parametrize("label", ["neutral", "Positive", [1], {"a": 1}, b"positive", "1_0"])
def test_what_is_no_class_is_said_with_the_classes(label: Any) -> None:
    assert refusal([label]) == f"row 0: label {label!r} is none of opinion's: negative, positive"


def test_a_label_alone_is_read_where_no_other_can_change_it() -> None:
    words = LabelColumn(WORDS, (0,), "opinion")
    assert words.read_alone("positive") == 1
    assert words.read_alone("true") == 1
    assert LabelColumn(("0", "1"), (0,), "opinion").read_alone(1) == 1
    for labels in (words, LabelColumn(("1", "2"), (0,), "opinion")):
        with pytest.raises(DataError, match="label 1 is a number, and which class it stands for"):
            labels.read_alone(1)
    with pytest.raises(DataError, match="label 'bad' is none of opinion's"):
        words.read_alone("bad")
