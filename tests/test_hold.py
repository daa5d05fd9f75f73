"""One process at a time writes an output, and what a dead one held is free."""

import signal
import subprocess
import sys

import pytest

from cee_gym.errors import CeeGymError
from cee_gym.hold import hold

HOLDER = """
import sys, time
from pathlib import Path
from cee_gym.hold import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds `out`."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_refused_in_one_line(holder, tmp_path) -> None:
    said = r"another process is writing .*/out: wait for it, or give another output"
    with pytest.raises(CeeGymError, match=said), hold(tmp_path / "out"):
        pytest.fail("two hold it")


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
def test_what_a_dead_process_held_is_free(holder, tmp_path, by) -> None:
    holder.send_signal(by)
    holder.wait()
    with hold(tmp_path / "out"):
        pass
    assert not list(tmp_path.iterdir())


def test_it_waits_as_long_as_it_is_asked_to(holder, tmp_path) -> None:
    with pytest.raises(CeeGymError), hold(tmp_path / "out", wait=0.1):
        pytest.fail("two hold it")
    holder.kill()
    with hold(tmp_path / "out", wait=10):
        pass


def test_many_take_turns_and_leave_nothing(tmp_path) -> None:
    code = """
import sys
from pathlib import Path
from cee_gym.hold import hold
file = Path(sys.argv[1])
for _ in range(50):
    with hold(file, wait=60):
        count = int(file.read_text())
        file.write_text(str(count + 1))
"""
    file = tmp_path / "count"
    file.write_text("0")
    command = [sys.executable, "-c", code, str(file)]
    processes = [subprocess.Popen(command) for _ in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    assert file.read_text() == "200"
    assert [path.name for path in tmp_path.iterdir()] == ["count"]


def test_the_folder_of_an_output_is_made(tmp_path) -> None:
    with hold(tmp_path / "new" / "out"):
        assert (tmp_path / "new").is_dir()
    assert not list((tmp_path / "new").iterdir())
