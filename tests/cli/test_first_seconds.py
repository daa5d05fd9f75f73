"""A wrong argument is answered within a second of CPU time; help and tables fit 80 columns."""

import os
import re
import subprocess
import sys

import pytest

from cee_gym.cli import COMMANDS, main
from tests.cli.commands import refused
from tests.made_traces import write_recording

HEAVY = ("torch", "transformers", "datasets", "stable_baselines3", "sklearn", "matplotlib")
WRONG = [
    ("trian x", "did you mean train"),
    ("train EarlyExit-BERT-RTE --agent reinforc", "did you mean reinforce"),
    ("train EarlyExit-BERT-RT", "did you mean EarlyExit-BERT-RTE"),
    ("train EarlyExit-BERT-RTE --backbone /nope", "--backbone /nope: there is no such"),
    ("train EarlyExit-BERT-RTE --backbone x --data /no.csv", "--data /no.csv: there is no"),
    ("train EarlyExit-BERT-RTE --alpha -1", "alpha must be"),
    ("build EarlyExit-BERT-RTE --backbone ./nope", "there is no such"),
    ("tune EarlyExit-BERT-RTE --agent nope", "unknown agent"),
    ("evaluate /nope", "there is no run"),
    ("predict /nope", "there is no directory"),
    ("predict /nope --input no.csv", "there is no file no.csv"),
    ("generate /nope --prompt x", "there is no directory"),
    ("serve /nope --port 99999", "--port must be 0 to 65535"),
    ("serve /nope", "there is no directory"),
    ("profile /nope", "there is no directory"),
    ("export /nope --output x", "there is no directory"),
    ("suitability /nope --data x --text a --label b", "there is no such"),
]


@pytest.mark.parametrize(("words", "said"), WRONG)
def test_a_wrong_argument_is_one_line(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(capsys, *words.split())


def test_it_is_answered_before_anything_heavy_is_imported() -> None:
    code = (
        "import sys, time\n"
        "from cee_gym.cli import main\n"
        f"for words, _ in {WRONG!r}:\n"
        "    try:\n        main(words.split())\n"
        "    except SystemExit as stop:\n        assert stop.code == 2, words\n"
        f"assert not [m for m in {HEAVY!r} if m in sys.modules]\n"
        "print(time.process_time())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 4  # all of them in one process; each alone is within a second


@pytest.mark.parametrize("command", [kind.command for kind in COMMANDS])
def test_help_fits_and_is_without_clutter(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    assert "{None}" not in said
    assert "(default: )" not in said
    assert "(default: None)" not in said


def test_no_word_names_both_an_option_and_a_group(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    said = capsys.readouterr().out
    lines = said.splitlines()
    groups = set(re.findall(r"(\S+) options \W*$", said, flags=re.MULTILINE)) - {"─", "╭─"}
    options = {word for line in lines for word in line.split() if word.startswith("--")}
    assert len(groups) > 5
    assert not {f"--{group}" for group in groups} & options


def test_the_version_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out.startswith("cee-gym 0.")


@pytest.mark.parametrize("command", ["envs", "agents"])
def test_lists_fit_80_columns(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    main([command])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_the_tables_of_a_run_fit_80_columns(
    tmp_path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    recording = write_recording(tmp_path / "r")
    run = ["--agent", "confidence", "--trace", str(recording)]
    main(["train", *run, "--output", "one"])
    main(["train", *run, "--output", "many", "--seeds", "0", "1"])
    main(["evaluate", "one", "--per-class"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_a_listener_that_has_enough_ends_it_quietly() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "cee_gym", "agents"], stdout=writing, stderr=subprocess.PIPE
    )
    os.close(writing)
    assert done.returncode == 1
    assert done.stderr == b""
