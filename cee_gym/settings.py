"""Settings of agents, policies and training: dataclass fields that say their own range.

    @dataclass(kw_only=True)
    class Patience:
        patience: int = number(3, 1)

`check_settings` refuses values out of range; `settings_of` gives them as plain types.
"""

import math
from collections.abc import Sequence
from dataclasses import field, fields
from typing import Any

from cee_gym.errors import CeeGymError, check_number


def number(default: float, least: float = -math.inf, most: float = math.inf) -> Any:
    """A number from `least` to `most`, both included."""
    return field(default=default, metadata={"range": (least, most)})


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
        if "range" in setting.metadata:
            kind = int if isinstance(setting.default, int) else int | float
            if not isinstance(value, kind) or isinstance(value, bool):
                kinds = "a whole number" if kind is int else "a number"
                raise CeeGymError(f"{name} must be {kinds}, got {value!r}")
            check_number(name, value, *setting.metadata["range"])
        elif "choices" in setting.metadata and value not in setting.metadata["choices"]:
            known = " or ".join(map(repr, setting.metadata["choices"]))
            raise CeeGymError(f"{name} {value!r} is unknown: use {known}")


def settings_of(settings: Any) -> dict[str, Any]:
    """The values of a dataclass's own arguments, by name; JSON-able where they are."""
    return {one.name: getattr(settings, one.name) for one in fields(settings) if one.init}
