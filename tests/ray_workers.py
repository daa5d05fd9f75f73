"""A local Ray for tests, and how one of its workers dies."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

NEEDED = 'Ray is not installed: pip install "cee-gym[cluster]"'


def workers(function: str) -> list[int]:
    """The processes of Ray that run a function just now."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                name = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if name.startswith(f"ray::{function}".encode()):
                found.append(int(entry.name))
    return found


@contextmanager
def one_dies(function: str, when: Callable[[], object] = lambda: True) -> Iterator[None]:
    """Kills one worker that runs a function, once something is so; fails if none could be killed.

    Args:
        function: its name.
        when: what has to be so.
    """
    killed: list[int] = []
    over = threading.Event()

    def kill_one() -> None:
        while not killed and not over.is_set():
            if when() and (found := workers(function)):
                os.kill(found[0], signal.SIGKILL)
                killed.append(found[0])
            time.sleep(0.005)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    try:
        yield
    finally:
        over.set()
        killer.join()
    assert killed
