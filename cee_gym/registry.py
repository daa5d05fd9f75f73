"""Names to things: what cee-gym brings, and what a module of the user's own adds.

A registry knows cee-gym's own entries as `"module:attribute"` and imports the module when an entry
is first asked for. A user's module adds entries with a decorator. `"MODULE:NAME"` names the entry
NAME that MODULE, imported for the purpose, adds.
"""

import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Generic, TypeVar

from cee_gym.errors import CeeGymError, did_you_mean, first_line

T = TypeVar("T")


class Registry(Generic[T]):
    """Entries of one kind, by name.

    Args:
        kind: what the entries are, for messages: `"agent"`.
        own: the entries of cee-gym, each `"module:attribute"`.
    """

    def __init__(self, kind: str, own: Mapping[str, str] | None = None) -> None:
        self.kind = kind
        self._own = dict(own or {})
        self._entries: dict[str, T] = {}
        self._modules: dict[str, str] = {}

    def add(self, name: str, entry: T, module: str | None = None) -> None:
        """Adds an entry, or replaces the one that the same module has added before.

        Args:
            name: without a colon.
            entry: what the name stands for.
            module: the module that defines it; by default the entry's own `__module__`.

        Raises:
            CeeGymError: if the name holds a colon or is taken by another module.
        """
        module = module or str(getattr(entry, "__module__", "__main__"))
        if ":" in name:
            raise CeeGymError(f"the {self.kind} name {name!r} holds a colon: choose one without")
        owner = self._own[name].partition(":")[0] if name in self._own else None
        owner = self._modules.get(name, owner)
        if owner not in (None, module):
            raise CeeGymError(
                f"the {self.kind} name {name!r} is taken by {owner}: choose another name"
            )
        self._entries[name], self._modules[name] = entry, module

    def get(self, name: str) -> T:
        """The entry of this name.

        Raises:
            CeeGymError: if there is none, naming the nearest ones, or its module cannot be
                imported.
        """
        if name in self._entries:  # first, as a running model asks at every layer
            return self._entries[name]
        module, _, short = name.rpartition(":")
        if module == "__main__" and short not in self._entries:
            raise CeeGymError(
                f"the {self.kind} {short!r} was defined in a script that was run by itself: put it "
                "into a module and import that, or define it here again"
            )
        if module not in ("", "__main__"):
            import_user_module(module)
        if short not in self._entries and short in self._own and not module:
            where, _, attribute = self._own[short].partition(":")
            self._entries[short] = getattr(import_module(where), attribute)
            self._modules[short] = where
        if short not in self._entries or not self._is_of(short, module):
            where = f" in {module}" if module else ""
            raise CeeGymError(
                f"unknown {self.kind} {short!r}{where}: {did_you_mean(short, list(self))}"
            )
        return self._entries[short]

    def _is_of(self, name: str, module: str) -> bool:
        """Whether an entry is that of a module, or of another one in the same package."""
        packages = {one.partition(".")[0] for one in (self._modules[name], module)}
        return module in ("", "__main__") or len(packages) == 1

    def full_name(self, name: str) -> str:
        """The name by which another process finds the entry: `MODULE:NAME` for a user's own.

        Raises:
            CeeGymError: if the name says a module, and that cannot be imported or adds none.
        """
        short = name.rpartition(":")[2]
        if ":" in name:
            self.get(name)
        module = self._modules.get(short, "cee_gym")
        return short if module.partition(".")[0] == "cee_gym" else f"{module}:{short}"

    def __contains__(self, name: object) -> bool:
        return name in self._own or name in self._entries

    def __iter__(self) -> Iterator[str]:
        """The names, cee-gym's own first."""
        return iter(dict.fromkeys([*self._own, *self._entries]))


def import_user_module(name: str) -> Any:
    """Imports a module of the user's, from the working directory too.

    Programs that are installed, as `cee-gym` is, do not look there by themselves.

    Raises:
        CeeGymError: if it cannot be imported.
    """
    here = str(Path.cwd())
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        return import_module(name)
    except ImportError as error:
        raise CeeGymError(
            f"module {name} cannot be imported ({first_line(error)}); {here} was searched too"
        ) from error
    finally:
        if added:
            sys.path.remove(here)
