"""One clear line with exit code 2 for what is wrong, and with 130 for Ctrl-C."""

from pathlib import Path

import pytest

from cee_gym.cli import main
from tests.cli.commands import interrupt, refused


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("build ID", "what is done is kept. To go on: cee-gym build ID"),
        (
            "predict m --output out",
            "what is done is kept. To go on: cee-gym predict m --output out --resume",
        ),
        ("profile m", "nothing is kept"),
        ("evaluate run", "nothing is kept"),
        ("export m --output out", "what there is in out is not complete: export to another"),
    ],
)
def test_ctrl_c_says_what_is_kept(command, message, monkeypatch, capsys) -> None:
    name = command.split()[0]
    monkeypatch.setattr(f"cee_gym.cli.{name.title()}.run", interrupt)
    with pytest.raises(SystemExit) as stop:
        main(command.split())
    assert stop.value.code == 130
    assert f"\nstopped; {message}" in capsys.readouterr().err


def test_a_file_that_cannot_be_made_is_one_line(monkeypatch, capsys) -> None:
    monkeypatch.setattr("cee_gym.cli.Profile.run", lambda self: Path("no/where").write_text(""))
    assert "no/where: No such file or directory" in refused(capsys, "profile", "m")
