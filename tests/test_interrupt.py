"""Ctrl-C while the command is still being imported, in real processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SAYS_SO_AND_WAITS = "import time; print('here', flush=True); time.sleep(60)"


@pytest.fixture
def script(tmp_path) -> Path:
    """What pip makes of the entry point."""
    path = tmp_path / "cee-gym"
    path.write_text("import sys\nfrom cee_gym.cli import main\nsys.exit(main())\n")
    return path


def interrupted(command: list[str], path: Path) -> tuple[int, str]:
    """Exit code and standard error of a process that gets Ctrl-C when it says `here`."""
    process = subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(path)},
        # The tests may run as a job that is told to ignore Ctrl-C, which is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGINT)
        error = process.communicate(timeout=30)[1]
    finally:
        process.kill()
    return process.returncode, error


# The package itself imports the first, the command line the second.
@pytest.mark.parametrize("importing", ["gymnasium", "tyro"])
@pytest.mark.parametrize("way", ["script", "module"])
def test_ctrl_c_during_imports_is_one_line(tmp_path, script, importing, way) -> None:
    (tmp_path / f"{importing}.py").write_text(SAYS_SO_AND_WAITS)
    command = [str(script)] if way == "script" else ["-m", "cee_gym"]
    code, error = interrupted([*command, "envs"], tmp_path)
    assert code == 130
    assert error == "\nstopped before anything was begun\n"


def test_later_it_says_how_to_go_on(tmp_path, script) -> None:
    (tmp_path / "torch.py").write_text(SAYS_SO_AND_WAITS)
    code, error = interrupted([str(script), "train", "EarlyExit-BERT-RTE"], tmp_path)
    assert code == 130
    assert error.endswith("To go on: cee-gym train EarlyExit-BERT-RTE --resume\n")
    assert error.count("\n") == 2


def test_a_program_that_imports_the_package_keeps_its_own(tmp_path) -> None:
    program = tmp_path / "program.py"
    program.write_text(f"import cee_gym\n{SAYS_SO_AND_WAITS}")
    assert "KeyboardInterrupt" in interrupted([str(program)], tmp_path)[1]
