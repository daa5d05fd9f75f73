"""Recordings that are elsewhere: commands take their address where they take a path."""

import json
from pathlib import Path

import fsspec
import pytest

from cee_gym.cli import main
from cee_gym.runs import Run
from cee_gym.traces.recordings import home
from cee_gym.traces.remote import fetched, push
from tests.cli.commands import refused
from tests.made_traces import write_recording


@pytest.fixture(params=["file", "memory"])
def address(request, tmp_path, monkeypatch) -> str:
    """Where a recording is, that is nowhere else."""
    monkeypatch.setenv("CEE_GYM_HOME", str(tmp_path / "home"))
    fetched.cache_clear()
    fsspec.filesystem("memory").store.clear()
    given = f"file://{tmp_path}/elsewhere" if request.param == "file" else "memory://made"
    return push(write_recording(tmp_path / "recording"), given)


def train(address: str, *more: str) -> None:
    words = f"train EarlyExit --trace {address} --agent expected-return --total-timesteps 300"
    main([*words.split(), "--output", "run", *more])


def test_a_run_remembers_the_address(address, tmp_path, capsys) -> None:
    train(address)
    assert json.loads(Path("run/config.json").read_text())["recording"] == address
    assert Run.open("run").recording.parent == home() / "fetched"
    main(["evaluate", "run"])
    words = f"train EarlyExit --trace {address} --agent policy-improvement --output other"
    main(words.split())
    assert len(list((home() / "fetched").iterdir())) == 1
    train(address, "--resume")
    same = tmp_path / "recording"
    words = f"train EarlyExit --trace {same} --agent expected-return --total-timesteps 300"
    said = refused(capsys, *words.split(), "--output", "run", "--resume")
    assert "begun with another recording" in said


def test_what_has_changed_there_is_noticed(address, tmp_path, capsys) -> None:
    train(address)
    push(write_recording(tmp_path / "new", n=30), address)
    fetched.cache_clear()
    assert "has been recorded again since" in refused(capsys, "evaluate", "run")


def test_a_search_and_a_study_take_it(address, capsys) -> None:
    words = f"tune EarlyExit --trace {address} --agent expected-return --trials 1"
    main([*words.split(), "--total-timesteps", "300", "--output", "tune"])
    assert f"--trace {address}" in capsys.readouterr().out
    task = f'[[tasks]]\nname = "far"\nrecording = "{address}"\n'
    Path("far.toml").write_text(f'seeds = [0]\n{task}[[agents]]\nname = "confidence"\n')
    main(["study", "far.toml", "--output", "study"])
    assert Path("study/table.parquet").exists()


@pytest.mark.parametrize("address", ["memory://nothing", "nowhere://a/b", "file:///nope"])
@pytest.mark.parametrize("command", ["train", "tune"])
def test_what_is_not_there_is_one_line(capsys, command, address) -> None:
    said = refused(capsys, command, "EarlyExit", "--trace", address)
    assert address in said
    assert not Path("runs").exists()
