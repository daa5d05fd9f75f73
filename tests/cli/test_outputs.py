"""What is written belongs to one command at a time, and what the system refuses is one line."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from cee_gym.agents import load_agent
from cee_gym.cli import main
from cee_gym.cli.listing import Envs
from cee_gym.hold import hold
from cee_gym.traces.recordings import recorded_splits, shipped_backbone
from tests.cli.commands import CLAUSES, refused


def begin(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "cee_gym", *words], stderr=subprocess.PIPE, text=True
    )


def ends(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Exit code and last line of each, the ones that ended well first."""
    errors = [process.communicate()[1] for process in processes]
    codes = [process.returncode for process in processes]
    lines = [error.strip().splitlines()[-1] if error.strip() else "" for error in errors]
    return sorted(zip(codes, lines, strict=True))


def test_every_command_that_writes_refuses_what_another_is_writing(run, data, capsys) -> None:
    run = Path(shutil.copytree(run, "run"))  # others read its points
    (data.parent / "in.jsonl").write_text('{"text": "about julia : paul was amused ."}\n')
    commands = (
        ("train", CLAUSES, "--agent", "confidence"),
        ("train", CLAUSES, "--agent", "confidence", "--seeds", "0", "1"),
        ("build", CLAUSES, "--data", str(data)),
        ("tune", CLAUSES, "--agent", "cat", "--trials", "1"),
        ("predict", str(run), "--input", "in.jsonl"),
        ("export", str(run)),
    )
    for words in commands:
        with hold(Path("out")):
            said = refused(capsys, *words, "--output", "out")
        assert "another process is writing" in said, words
        assert not Path("out").exists()
    before = (run / "points.json").read_bytes() if (run / "points.json").exists() else None
    with hold(run / "points.json"):
        pass
    main(["evaluate", str(run), "--saved-layers", "0.3"])
    assert (run / "points.json").read_bytes() != before
    assert not [path for path in Path().iterdir() if path.name.endswith(".lock")]


def test_two_trainings_into_one_directory_are_one(capsys) -> None:
    agents = ("confidence", "entropy")
    both = [begin("train", CLAUSES, "--agent", agent, "--output", "out") for agent in agents]
    (first, _), (second, said) = ends(both)
    assert (first, second) == (0, 2)
    assert "another process is writing" in said or "holds a run already" in said
    settings = json.loads(Path("out/config.json").read_text())
    assert load_agent("out/round-0/agent").name == settings["agent"]
    evaluation = json.loads(Path("out/round-0/evaluation.json").read_text())
    assert evaluation["agent"] == settings["agent"]


def test_two_builds_of_one_recording_are_one(data) -> None:
    words = ("build", CLAUSES, "--data", str(data), "--output", "out")
    words += ("--backbone", str(shipped_backbone(CLAUSES)))
    (first, _), (second, said) = ends([begin(*words) for _ in range(2)])
    assert (first, second) == (0, 2)
    assert "another process is writing" in said or "already" in said
    assert recorded_splits("out") == ["train", "calibration", "dev"]
    known = {"models", "recording.json", "train", "calibration", "dev"}
    assert {path.name for path in Path("out").iterdir()} == known
    assert {path.name for path in Path().iterdir()} <= {"out", "data", "home"}


def test_two_predictions_into_one_file_are_one(run) -> None:
    texts = [json.dumps({"id": n, "text": "about julia : paul was amused ."}) for n in range(200)]
    Path("in.jsonl").write_text("\n".join(texts) + "\n")
    for resume in ((), ("--resume",)):
        words = ("predict", str(run), "--input", "in.jsonl", "--output", "out.jsonl", *resume)
        codes = [code for code, _ in ends([begin(*words) for _ in range(2)])]
        assert set(codes) <= {0, 2}
        lines = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
        assert [line["id"] for line in lines] == list(range(200))


def test_a_killed_build_leaves_nothing_to_the_next_command(data, capsys) -> None:
    main(["build", CLAUSES, "--data", str(data), "--output", "out"])
    Path("out.build").mkdir()
    Path("out.build/config.json").write_text("{}")
    assert "already" in refused(capsys, "build", CLAUSES, "--data", str(data), "--output", "out")
    assert not Path("out.build").exists()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.EROFS, os.strerror(errno.EROFS), "a/b"), "a/b: Read-only file system"),
        (
            OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), "x"),
            "x: File name too long",
        ),
        (OSError(errno.ELOOP, os.strerror(errno.ELOOP), "l"), "l: Too many levels"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "q"), "the disk is full"),
        (SafetensorError("I/O error: Read-only file system (os error 30)"), "Read-only file"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "the disk is full"),
    ],
)
def test_what_the_system_refuses_is_one_line(monkeypatch, capsys, error, said) -> None:
    def fail(self) -> None:
        raise error

    monkeypatch.setattr(Envs, "run", fail)
    assert said in refused(capsys, "envs")


def test_an_error_of_our_own_is_not_hidden(monkeypatch) -> None:
    def fail(self) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(Envs, "run", fail)
    with pytest.raises(RuntimeError, match="a fault"):
        main(["envs"])


def test_links_that_lead_nowhere_and_long_names_are_refused(capsys) -> None:
    Path("loop").symlink_to("loop")
    words = ("train", CLAUSES, "--agent", "confidence", "--output")
    assert "loop" in refused(capsys, *words, "loop/run")
    assert "File name too long" in refused(capsys, *words, "x" * 300)
