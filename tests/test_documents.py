"""JSON documents: whole or not at all, and refused in one line."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import cee_gym.documents
from cee_gym.documents import read_document, write_document
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


@pytest.mark.parametrize("error", [OSError("the disk is full"), KeyboardInterrupt()])
def test_a_failure_while_writing_leaves_the_old_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: Any) -> None:
        raise error

    write_document(tmp_path / "a.json", {"old": 1})
    monkeypatch.setattr(cee_gym.documents.os, "fsync", fail)
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
