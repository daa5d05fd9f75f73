"""Progress where the standard error is no terminal, and where it is one."""

import io
import sys
import time

import pytest

from cee_gym import progress


def test_what_takes_less_than_ten_seconds_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress.show_progress(range(5), desc="x")) == list(range(5))
    assert capsys.readouterr().err == ""


def test_elsewhere_each_sign_of_life_is_a_line_of_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.01)
    for _ in progress.show_progress(range(5), desc="x"):
        time.sleep(0.02)
    said = capsys.readouterr().err
    assert "\r" not in said
    assert 2 <= len(said.splitlines()) <= 7
    assert all(line.startswith("x:") for line in said.splitlines())


def test_on_a_terminal_it_is_drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    for _ in progress.show_progress(range(5), desc="x", mininterval=0):
        pass
    assert screen.getvalue().count("\r") > 2
    assert "\n" not in screen.getvalue()


def test_a_line_stays(capsys: pytest.CaptureFixture[str]) -> None:
    progress.say("epoch 1 of 2")
    assert capsys.readouterr().err == "epoch 1 of 2\n"
