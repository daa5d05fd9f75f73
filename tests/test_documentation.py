"""What the documentation shows is run as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]


def test_the_quickstart_notebook_runs() -> None:
    notebook = nbformat.read(ROOT / "notebooks" / "quickstart.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "clear the outputs"
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    printed = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])
    )
    for expected in ("left at layer 3", "hindsight", "full depth", "mean return"):
        assert expected in printed


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("number", range(len(python_blocks())))
def test_the_readmes_python_runs_as_it_stands(number, tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:cee_gym", "-c", python_blocks()[number]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_the_readmes_commands_are_known() -> None:
    text = (ROOT / "README.md").read_text()
    commands = set(re.findall(r"cee-gym ([a-z]+)", text))
    assert commands >= {"envs", "build", "train", "evaluate"}
    from cee_gym import cli

    for command in commands - {"is"}:
        assert hasattr(cli, command.capitalize()), command
    for target in re.findall(r"^ *make ([a-z-]+)", text, flags=re.MULTILINE):
        assert f"\n{target}:" in (ROOT / "Makefile").read_text(), target


def test_every_result_the_readme_names_is_committed() -> None:
    for name in set(re.findall(r"results/([a-z_]+)\.json", (ROOT / "README.md").read_text())):
        assert (ROOT / "benchmarks" / "results" / f"{name}.json").exists(), name
