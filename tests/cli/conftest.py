"""A working directory and a home of recordings for each test, and a little text."""

import json
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CEE_GYM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A few sentences of Clauses as files, so that runs take seconds."""
    from cee_gym.tasks.clauses import sentences

    directory = tmp_path / "data"
    directory.mkdir()
    for split, n, seed in (("train", 120, 5), ("dev", 60, 6)):
        rows = sentences(n, seed)
        lines = [
            json.dumps({"text": text, "label": label})
            for text, label in zip(rows["text"], rows["label"], strict=True)
        ]
        (directory / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return directory
