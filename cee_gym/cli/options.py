"""How the options of a command are shown: in groups, with the type of their value, without clutter.

tyro makes options of the fields of dataclasses. Here the fields are annotated for it: a field that
is a dataclass is a group of options, whose names do not repeat that of the group.
"""

import types
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro

_DONE = "__cee_gym_options__"
_METAVARS = {str: "STR", int: "INT", float: "FLOAT", Path: "PATH"}


def command(name: str) -> Callable[[type], type]:
    """Makes a dataclass with a method `run` a command, as `main` takes it.

    Args:
        name: of the command.
    """

    def annotate(kind: type) -> type:
        _annotate(kind, depth=0)
        kind.command = name  # type: ignore[attr-defined]
        return kind

    return annotate


def _annotate(kind: type, depth: int) -> None:
    """Annotates the fields of a dataclass, and of those in it.

    Args:
        kind: the dataclass.
        depth: 0 for a command, 1 for a group of its options, 2 for a part of a group, whose options
            keep its name, as in `--adapters.epochs`.
    """
    if _DONE in vars(kind):
        return
    setattr(kind, _DONE, True)
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        hint = hints[field.name]
        bare, *extras = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        if is_dataclass(bare):
            _annotate(bare, depth + 1)  # type: ignore[arg-type]
        settings: dict[str, Any] = {"help_behavior_hint": _hint, "metavar": _metavar(bare)}
        if depth == 1:
            settings["prefix_name"] = False
        if is_dataclass(bare) and not extras:
            settings["name"] = field.name.replace("_", "-")  # it is the title of the group
        kind.__annotations__[field.name] = Annotated[bare, tyro.conf.arg(**settings), *extras]


def _metavar(kind: Any) -> str | None:
    """What stands for the value of an optional one; None where tyro's own word is good."""
    if get_origin(kind) not in (Union, types.UnionType):
        return None
    (inner,) = (part for part in get_args(kind) if part is not type(None))
    if get_origin(inner) is Literal:
        return "{" + ",".join(get_args(inner)) + "}"
    if get_origin(inner) is tuple:
        word = _METAVARS[get_args(inner)[0]]
        return f"{word} [{word} ...]"
    return _METAVARS.get(inner)


def _hint(default: str) -> str:
    return "" if default in ("None", "", "False", "True") else f"(default: {default})"
