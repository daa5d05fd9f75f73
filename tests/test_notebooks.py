"""The notebooks run, and what they keep is what they say when run."""

import re
from pathlib import Path

import nbformat
import pytest

from notebooks.execute import executed

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def outputs(cell: nbformat.NotebookNode) -> list[tuple[str, ...]]:
    """The kind of each output of a cell, and of what is printed its words, numbers left out."""
    found = []
    for one in cell.get("outputs", []):
        words = tuple(re.findall(r"[A-Za-z]{3,}", one.get("text", "")))
        found.append((one.output_type, *words))
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_gives_what_is_kept(path) -> None:
    kept = nbformat.read(path, as_version=4)
    again = executed(path)
    assert any(cell.get("outputs") for cell in kept.cells)
    for before, after in zip(kept.cells, again.cells, strict=True):
        if path.stem != "tokens":  # a story may go on in another way on another machine
            assert outputs(before) == outputs(after), before.source
        else:
            assert [one[0] for one in outputs(before)] == [one[0] for one in outputs(after)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_kept_is_clean(path) -> None:
    text = path.read_text()
    assert len(text) < 200_000
    assert "Traceback" not in text
    assert "/home/" not in text
    assert "site-packages" not in text
    kept = nbformat.read(path, as_version=4)
    assert all(
        one.get("name") != "stderr" for cell in kept.cells for one in cell.get("outputs", [])
    )
    assert all(set(cell.metadata) == set() for cell in kept.cells)
