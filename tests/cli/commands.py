"""Running commands, in this process and in one of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cee_gym.cli import main

ROOT = Path(__file__).parents[2]
CLAUSES = "EarlyExit-ToyBERT-Clauses"


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The one line in which a command is refused."""
    with pytest.raises(SystemExit) as stop:
        main(list(args))
    assert stop.value.code == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("cee-gym: ")
    return message


def installed(*args: str, code: int = 0) -> str:
    """What the installed program, which does not look for modules here by itself, prints."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "cee_gym", *args],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def interrupt(*args: object, **kwargs: object) -> None:
    """Ctrl-C, where something else was to be called."""
    raise KeyboardInterrupt
