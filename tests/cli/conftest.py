"""A working directory and a home of recordings for each test, and a little text."""

import json
from pathlib import Path

import pytest

from cee_gym.cli import main
from cee_gym.traces.recordings import shipped_backbone
from tests.cli.commands import CLAUSES


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CEE_GYM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A few sentences of Clauses as files, so that runs take seconds."""
    return write_sentences(tmp_path / "data")


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the confidence rule with weights of its own; `data` lies beside it."""
    directory = tmp_path_factory.mktemp("clauses")
    data = write_sentences(directory / "data")
    backbone = str(shipped_backbone(CLAUSES))
    text = ("--backbone", backbone, "--data", str(data), "--policy-data", "fitted")
    main(["train", CLAUSES, *text, "--agent", "confidence", "--output", str(directory / "run")])
    return directory / "run"


def write_sentences(directory: Path) -> Path:
    from cee_gym.tasks.clauses import sentences

    directory.mkdir()
    for split, n, seed in (("train", 120, 5), ("dev", 60, 6)):
        rows = sentences(n, seed)
        lines = [
            json.dumps({"text": text, "label": label})
            for text, label in zip(rows["text"], rows["label"], strict=True)
        ]
        (directory / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return directory
