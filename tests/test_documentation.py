"""What the documentation shows is run as it stands."""

import os
import re
import shlex
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


RECIPES = {
    title: (code, [shlex.split(line)[1:] for line in commands.splitlines()])
    for title, code, commands in re.findall(
        r"^### ([^\n]+)\n.*?```python\n(.*?)```\n\n```sh\n(.*?)```",
        (ROOT / "CONTRIBUTING.md").read_text(),
        flags=re.DOTALL | re.MULTILINE,
    )
}


def test_there_is_a_recipe_for_everything_that_is_found_by_name() -> None:
    assert list(RECIPES) == [
        *("A rule", "An agent", "A quality", "A part of an observation", "A task")
    ]


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_is_one_file_and_its_commands(title, tmp_path, tiny_model, tiny_tokenizer) -> None:
    code, commands = RECIPES[title]
    (tmp_path / "mine.py").write_text(code)
    tiny_model.backbone.save_pretrained(tmp_path / "NAME_OR_PATH")
    tiny_tokenizer.save_pretrained(tmp_path / "NAME_OR_PATH")
    (tmp_path / "DIR").mkdir()
    for split in ("train", "dev"):
        rows = [f"{text}\t{label}" for text, label in (("a good cat", 1), ("a bad dog", 0))] * 40
        text = "\n".join(["sentence\tlabel", *rows])
        (tmp_path / "DIR" / f"{split}.tsv").write_text(text + "\n")
    # The program does not look for modules in the working directory by itself.
    run = "from cee_gym.cli import main; [main(words) for words in " + repr(commands) + "]"
    done = subprocess.run(
        [sys.executable, "-P", "-c", run],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CEE_GYM_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "hindsight" in done.stdout


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
