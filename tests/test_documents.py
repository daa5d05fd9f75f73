"""Files are written whole or not at all; JSON is refused in one line."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import cee_gym.documents
from cee_gym.documents import (
    publish,
    read_document,
    write_document,
    written_into,
    written_whole,
)
from cee_gym.errors import CeeGymError, TraceError


def read(path: Path, **more: Any) -> dict[str, Any]:
    return read_document(path, "profile", remedy="profile again", **more)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    document = {"format": "a profile", "version": 1, "text": "größer\n", "numbers": [1, 0.1, None]}
    write_document(tmp_path / "a.json", document)
    assert read(tmp_path / "a.json") == document
    assert read(tmp_path / "a.json", format="a profile", versions=[1, 2]) == document
    write_document(str(tmp_path / "a.json"), {"other": True})
    assert read(tmp_path / "a.json") == {"other": True}
    assert os.listdir(tmp_path) == ["a.json"]
    assert (tmp_path / "a.json").read_text().endswith("}\n")


@pytest.mark.parametrize("document", [{"a": float("nan")}, {"a": float("inf")}, {"a": object()}])
def test_what_json_cannot_hold_leaves_the_old_document(tmp_path: Path, document: Any) -> None:
    write_document(tmp_path / "a.json", {"old": 1})
    with pytest.raises((ValueError, TypeError)):
        write_document(tmp_path / "a.json", document)
    assert read(tmp_path / "a.json") == {"old": 1}
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError("the disk is full"), KeyboardInterrupt()])
def test_a_failure_while_writing_leaves_the_old_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, step: str
) -> None:
    def fail(*_: Any) -> None:
        raise error

    write_document(tmp_path / "a.json", {"old": 1})
    monkeypatch.setattr(cee_gym.documents.os, step, fail)
    with pytest.raises(type(error)):
        write_document(tmp_path / "a.json", {"new": 1})
    assert read(tmp_path / "a.json") == {"old": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_writer_that_is_killed_leaves_the_old_document_or_the_new_one(tmp_path: Path) -> None:
    program = """
import os, sys
from cee_gym import documents
documents.write_document(sys.argv[1], {"old": 1})
replace = os.replace
def killed(*paths):
    os.kill(os.getpid(), 9)
os.replace = killed
documents.write_document(sys.argv[1], {"new": 1})
"""
    path = tmp_path / "a.json"
    done = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert done.returncode == -9
    assert read(path) == {"old": 1}
    write_document(path, {"new": 1})  # what was left beside it is in nobody's way
    assert read(path) == {"new": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_an_error_in_the_block_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(UnicodeEncodeError), written_whole(tmp_path / "a") as file:
        file.write_text("ne\ud800", encoding="utf-8")
    assert (tmp_path / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_what_others_write_over_is_whole_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".partial").mkdir()
    (tmp_path / ".partial" / "a").write_text("of a command that was killed")
    (tmp_path / "old").write_text("old")
    (tmp_path / "both").write_text("old")
    with written_into(tmp_path) as folder:
        (folder / "both").write_text("new")
        (folder / "deep" / "er").mkdir(parents=True)
        (folder / "deep" / "er" / "new").write_text("new")
    found = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
    assert found == {"old", "both", "deep/er/new"}
    assert (tmp_path / "both").read_text() == "new"

    def fail(*_: Any) -> None:
        raise OSError("the disk is full")

    for step in ("fsync", "replace"):
        with monkeypatch.context() as patched:
            patched.setattr(cee_gym.documents.os, step, fail)
            with pytest.raises(OSError, match="full"), written_into(tmp_path) as folder:
                (folder / "both").write_text("newer")
        assert (tmp_path / "both").read_text() == "new"
        assert sorted(os.listdir(tmp_path)) == ["both", "deep", "old"]


def test_a_folder_has_its_name_once_all_in_it_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "made.partial" / "in").mkdir(parents=True)
    (tmp_path / "made.partial" / "in" / "a").write_text("a")
    flushed: list[Any] = []
    fsync = os.fsync

    def note(handle: int) -> None:
        flushed.append(os.readlink(f"/proc/self/fd/{handle}").removeprefix(f"{tmp_path}"))
        fsync(handle)

    if os.path.isdir("/proc/self/fd"):
        monkeypatch.setattr(cee_gym.documents.os, "fsync", note)
    publish(tmp_path / "made.partial", tmp_path / "made")
    assert (tmp_path / "made" / "in" / "a").read_text() == "a"
    assert os.listdir(tmp_path) == ["made"]
    if os.path.isdir("/proc/self/fd"):
        assert flushed == ["/made.partial/in", "/made.partial/in/a", "/made.partial", ""]


WRITES = re.compile(
    r"""\bopen\([^)]*["'][wa]|\.write_(text|bytes)\(|save_file\(|np\.savez?|to_parquet\("""
    r"""|savefig\(|chart\.save\(|json\.dump\(|torch\.save\(|\.rename\((?!["'])"""
)


def test_nothing_else_writes_a_file_in_its_place() -> None:
    """Every call that writes a file is given the `unfinished` one of documents.py."""
    package = Path(cee_gym.documents.__file__).parent
    root = package.parent
    found = [
        f"{file.relative_to(root)}: {line.strip()}"
        for folder in (package, root / "agents", root / "envs")
        for file in folder.rglob("*.py")
        for line in file.read_text().splitlines()
        if WRITES.search(line) and "unfinished" not in line
    ]
    assert found == []


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        (b'{"a": 1', {}, "the profile at .* is damaged .*: profile again"),
        (b"", {}, "is damaged"),
        (b"\xff\xfe", {}, "is damaged"),
        (b"[1, 2]", {}, "is damaged .it is no JSON object.: profile again"),
        (b"[" * 100_000, {}, "is damaged"),
        (b'{"format": "other"}', {"format": "cee-gym profile"}, "is not a cee-gym profile"),
        (b"{}", {"format": "cee-gym profile"}, "is not a cee-gym profile"),
        (
            b'{"version": 7}',
            {"versions": [2, 1]},
            "is of version 7, this cee-gym reads version 1, 2: profile again",
        ),
        (b"{}", {"versions": [1]}, "is of version None"),
        (b'{"version": [1]}', {"versions": {1}}, r"is of version \[1\]"),
    ],
)
def test_a_damaged_or_foreign_document_is_one_line(
    tmp_path: Path, content: bytes, more: dict[str, Any], message: str
) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(TraceError, match=message) as caught:
        read(path, error=TraceError, **more)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_document_that_is_not_there_or_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CeeGymError, match="there is no profile at"):
        read(tmp_path / "a.json")
    with pytest.raises(CeeGymError, match=r"the profile at .* cannot be read"):
        read(tmp_path)
