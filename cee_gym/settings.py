"""Settings of agents and policies: dataclass fields that say their own range.

    @dataclass(kw_only=True)
    class Patience:
        patience: int = number(3, 1)

`check_settings` refuses values out of range; `settings_of` gives them as plain types.
"""

from collections.abc import Sequence
from dataclasses import field, fields
from typing import Any, NamedTuple

from cee_gym.errors import MOST, CeeGymError, check_number

MOST_SEED = 2**32 - 1  # numpy and torch take no higher ones


class Range(NamedTuple):
    """Numbers to search, from low to high, both included; whole ones where both are whole.

    Attributes:
        low: the lowest.
        high: the highest.
        log: whether to search evenly over the logarithm.
    """

    low: float
    high: float
    log: bool = False


def number(
    default: float | None,
    least: float = -MOST,
    most: float = MOST,
    *,
    search: Range | list[Any] | None = None,
) -> Any:
    """A number from `least` to `most`, both included.

    Args:
        default: where none is given; None where what learns chooses the number.
        least: the lowest that is allowed.
        most: the highest that is allowed.
        search: what `cee-gym tune` tries: a range, or a list of values; None for nothing.
    """
    return field(default=default, metadata={"range": (least, most), "search": search})


def one_of(default: Any, choices: Sequence[Any]) -> Any:
    """One of a few values."""
    return field(default=default, metadata={"choices": tuple(choices)})


def check_settings(settings: Any, prefix: str = "") -> None:
    """Refuses values out of range.

    Args:
        settings: a dataclass.
        prefix: before each name, for messages.

    Raises:
        CeeGymError: naming the setting, its value and its range.
    """
    for setting in fields(settings):
        value, name = getattr(settings, setting.name), prefix + setting.name
        if value is None and setting.default is None:
            continue
        if "range" in setting.metadata:
            whole = isinstance(setting.default, int)
            check_setting(name, value, *setting.metadata["range"], whole=whole)
        elif "choices" in setting.metadata and value not in setting.metadata["choices"]:
            known = " or ".join(map(repr, setting.metadata["choices"]))
            raise CeeGymError(f"{name} {value!r} is unknown: use {known}")


def check_setting(
    name: str, value: Any, least: float, most: float = MOST, *, whole: bool = False
) -> None:
    """Refuses what is not a number, or not a whole one where it has to be, or out of range.

    Raises:
        CeeGymError: naming the setting, its value and its range.
    """
    if not isinstance(value, int if whole else int | float) or isinstance(value, bool):
        raise CeeGymError(f"{name} must be a {'whole ' * whole}number, got {value!r}")
    check_number(name, value, least, most)


def settings_of(settings: Any) -> dict[str, Any]:
    """The values of a dataclass's own arguments, by name; JSON-able where they are."""
    return {one.name: getattr(settings, one.name) for one in fields(settings) if one.init}


def search_ranges(settings: Any) -> dict[str, Range | list[Any]]:
    """What a search tries of the settings of a dataclass, by name."""
    return {
        one.name: one.metadata["search"]
        for one in fields(settings)
        if one.metadata.get("search") is not None
    }
