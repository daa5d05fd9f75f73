"""Progress with the time left: a bar on a terminal, elsewhere a line every ten seconds."""

import sys
from typing import Any

from tqdm import tqdm

from cee_gym import processes

EVERY = 10.0  # seconds


class _Lines:
    """A text stream that gets lines, and nothing that redraws one."""

    def write(self, text: str) -> None:
        if line := text.replace("\r", "").strip():
            sys.stderr.write(f"{line}\n")

    def flush(self) -> None:
        sys.stderr.flush()


def show_progress(*given: Any, **settings: Any) -> "tqdm[Any]":
    """A progress bar on the standard error, which is gone when it is complete.

    Where the standard error is no terminal, nothing is drawn again: a line is written every ten
    seconds, and none for what takes less. Of several processes only the main one shows it.

    Args:
        *given: of `tqdm.tqdm`.
        **settings: likewise.
    """
    if not sys.stderr.isatty():
        settings |= {"file": _Lines(), "mininterval": EVERY, "maxinterval": EVERY, "delay": EVERY}
    if not processes.is_main():
        settings["disable"] = True
    return tqdm(*given, leave=False, **settings)


def say(line: str) -> None:
    """Writes a line to the standard error, above whatever bar stands there."""
    if processes.is_main():
        tqdm.write(line, sys.stderr)
