"""Settings that say their own range."""

from dataclasses import dataclass, field

import pytest

from cee_gym.errors import CeeGymError
from cee_gym.settings import (
    MOST_SEED,
    Range,
    check_setting,
    check_settings,
    number,
    one_of,
    search_ranges,
    settings_of,
)


@dataclass(kw_only=True)
class Settings:
    rate: float = number(0.1, 0, search=Range(0.01, 1.0, log=True))
    count: int = number(3, 1, 10, search=[1, 3, 10])
    seed: int = number(0, 0, MOST_SEED)
    kind: str = one_of("plain", ("plain", "fancy"))
    other: str = "anything"
    _kept: int = field(default=7, init=False)


@pytest.mark.parametrize(
    "given",
    [{}, {"rate": 0}, {"rate": 1e9}, {"count": 10}, {"seed": MOST_SEED}, {"kind": "fancy"}],
)
def test_what_is_in_range_is_allowed(given) -> None:
    check_settings(Settings(**given))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rate": -0.1}, r"rate must be at least 0, got -0\.1"),
        ({"rate": float("nan")}, "rate must be at least 0, got nan"),
        ({"rate": float("inf")}, "rate must be 0 to 1000000000000, got inf"),
        ({"rate": "0.1"}, r"rate must be a number, got '0\.1'"),
        ({"rate": None}, "rate must be a number, got None"),
        ({"rate": True}, "rate must be a number, got True"),
        ({"count": 0}, "count must be 1 to 10, got 0"),
        ({"count": 10**13}, "count must be 1 to 10, got 10000000000000"),
        ({"count": 3.0}, r"count must be a whole number, got 3\.0"),
        ({"count": True}, "count must be a whole number, got True"),
        ({"seed": -1}, "seed must be 0 to 4294967295, got -1"),
        ({"seed": 2**32}, "seed must be 0 to 4294967295, got 4294967296"),
        ({"kind": "odd"}, "kind 'odd' is unknown: use 'plain' or 'fancy'"),
    ],
)
def test_what_is_not_is_refused_with_its_name_value_and_range(given, said) -> None:
    with pytest.raises(CeeGymError, match=said):
        check_settings(Settings(**given))


def test_a_prefix_stands_before_the_name() -> None:
    with pytest.raises(CeeGymError, match=r"warm-up\.count must be 1 to 10"):
        check_settings(Settings(count=0), "warm-up.")


def test_a_single_setting_is_checked_the_same() -> None:
    check_setting("seed", 3, 0, whole=True)
    for value, said in ((2.5, "a whole number"), (-1, "at least 0"), ("3", "a whole number")):
        with pytest.raises(CeeGymError, match=f"seed must be {said}"):
            check_setting("seed", value, 0, whole=True)


def test_settings_are_the_arguments_as_plain_types() -> None:
    given = {"rate": 0.2, "count": 2, "seed": 1, "kind": "fancy", "other": "x"}
    assert settings_of(Settings(**given)) == given


def test_what_is_searched_is_what_says_so() -> None:
    assert search_ranges(Settings()) == {"rate": Range(0.01, 1.0, log=True), "count": [1, 3, 10]}


def test_beyond_all_reason_is_refused_even_where_nothing_is_said_of_a_highest_value() -> None:
    with pytest.raises(CeeGymError, match=r"rate must be 0 to 1000000000000, got 1e\+308"):
        check_setting("rate", 1e308, 0)
    with pytest.raises(CeeGymError, match="folds must be 2 to 1000000000000, got 10000000000000"):
        check_setting("folds", 10**13, 2, whole=True)
