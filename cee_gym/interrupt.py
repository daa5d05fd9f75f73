"""Ctrl-C while the program `cee-gym` is still being imported: one line in place of a traceback.

An `except KeyboardInterrupt` around the imports would not do. The package itself is imported before
any code of the command line runs, and out of a half-imported library an interrupt may come as any
other error. So the signal ends the program at once, until `cee_gym.cli.main` takes over.
"""

import os
import signal
import sys
from pathlib import Path
from types import FrameType


def stop(number: int, frame: FrameType | None) -> None:
    """Says so in one line and leaves with exit code 130; nothing has begun that could be kept."""
    os.write(2, b"\nstopped before anything was begun\n")
    os._exit(130)


def is_program() -> bool:
    """Whether it is `cee-gym` or `python -m cee_gym` that runs, and not a program that imports."""
    return Path(sys.argv[0]).stem == "cee-gym" or sys.orig_argv[1:3] == ["-m", "cee_gym"]


def raise_again() -> None:
    """From here on Ctrl-C raises KeyboardInterrupt, as it does in other programs."""
    if signal.getsignal(signal.SIGINT) is stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# A job that is told to ignore Ctrl-C goes on ignoring it.
if is_program() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, stop)
