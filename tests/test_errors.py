import pytest

from cee_gym.errors import (
    BackboneError,
    CeeGymError,
    DataError,
    TraceError,
    did_you_mean,
    first_line,
)


@pytest.mark.parametrize("kind", [TraceError, DataError, BackboneError])
def test_every_message_for_the_user_is_one_kind_of_error(kind: type[Exception]) -> None:
    assert issubclass(kind, CeeGymError)
    assert issubclass(kind, ValueError)


@pytest.mark.parametrize(
    ("word", "suggestion"),
    [
        ("RTE", "did you mean rte?"),
        ("sst-2", "did you mean sst2?"),
        ("Colla", "did you mean CoLA?"),
        ("", "known: CoLA, rte, sst2"),
        ("translation", "known: CoLA, rte, sst2"),
    ],
)
def test_the_nearest_names_are_suggested_as_they_are_spelt(word: str, suggestion: str) -> None:
    assert did_you_mean(word, ["sst2", "rte", "CoLA"]) == suggestion


def test_the_nearest_name_comes_first() -> None:
    assert did_you_mean("qnl", ["qqp", "qnli", "mnli"]).startswith("did you mean qnli")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError("\nno such file\nsecond line"), "no such file"),
        (OSError(), "OSError"),
        (ConnectionError("  "), "ConnectionError"),
    ],
)
def test_an_error_is_told_in_one_line(error: Exception, line: str) -> None:
    assert first_line(error) == line
