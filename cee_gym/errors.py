"""Errors whose message is meant for the person at the keyboard.

The command line prints the message of a `CeeGymError` as one line and leaves with exit code 2.
Anything else that escapes is a defect of cee-gym and keeps its traceback.
"""

import math


class CeeGymError(ValueError):
    """What was asked for cannot be done; the message says why and what to do instead."""


class TraceError(CeeGymError):
    """A trace is missing, damaged, foreign, of another version, or cannot be written."""


class DataError(CeeGymError):
    """Labelled text cannot be reached or does not fit its task."""


class BackboneError(CeeGymError):
    """A backbone cannot be reached, or its layers cannot be run one at a time."""


# No setting is above: nobody waits for so many steps, and no memory holds so many rows. What is
# above is a slip of the pen, and would be found out only after hours, or by an overflow.
MOST = 10**12


def check_number(name: str, value: float, least: float, most: float = MOST) -> None:
    """Refuses a setting out of range, NaN and infinity among them.

    Raises:
        CeeGymError: naming the setting and its range.

    >>> check_number("folds", 1, 2)
    Traceback (most recent call last):
    cee_gym.errors.CeeGymError: folds must be at least 2, got 1
    """
    if not least <= value <= most or abs(value) == math.inf:
        below = most >= MOST and not value > most
        span = f"at least {least}" if below else f"{least} to {most}"
        raise CeeGymError(f"{name} must be {span}, got {value}")


def first_line(error: BaseException) -> str:
    r"""The first line of what an error says, or its kind where it says nothing.

    >>> first_line(OSError("no such file\ntry another"))
    'no such file'
    """
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def is_a_path(name: object) -> bool:
    """Whether it can only be the path of a file or directory, and no name on the hub.

    >>> [is_a_path(name) for name in ("/nope", "./a", "~/a", "a/b/c", "me/model", "model")]
    [True, True, True, True, False, False]
    """
    text = str(name)
    return text.startswith(("/", ".", "~")) or text.count("/") > 1 or text.endswith(".gguf")


def did_you_mean(word: str, known: list[str]) -> str:
    """Suggests the nearest known names.

    >>> did_you_mean("reinforc", ["reinforce", "expected-return"])
    'did you mean reinforce?'
    >>> did_you_mean("zzz", ["b", "a"])
    'known: a, b'
    """
    from difflib import get_close_matches

    near = get_close_matches(word.lower(), [k.lower() for k in known], n=3, cutoff=0.6)
    spelt = [k for n in near for k in known if k.lower() == n]
    return f"did you mean {' or '.join(spelt)}?" if spelt else f"known: {', '.join(sorted(known))}"


def unreachable_backbone(name: str, error: BaseException) -> BackboneError:
    """The error for a backbone that cannot be loaded: why, and the three ways out."""
    return BackboneError(
        f"backbone {name} cannot be loaded ({first_line(error)}): give a local directory, run "
        "this where the hub can be reached, or use an id that is recorded here (cee-gym envs)"
    )
