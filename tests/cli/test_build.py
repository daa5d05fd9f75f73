"""`cee-gym build`: it ends, or goes on where it was stopped, or does not begin."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import cee_gym
from cee_gym.cli import main
from tests.cli.commands import CLAUSES, interrupt, refused


def test_a_build_beside_a_shipped_recording_says_how_to_open_it(data, capsys) -> None:
    main(["build", CLAUSES, "--data", str(data), "--output", "mine"])
    assert f"gym.make('{CLAUSES}', trace='mine')" in capsys.readouterr().out
    assert gym.make(CLAUSES, trace="mine", split="dev").unwrapped.num_instances == 60


def test_ctrl_c_leaves_a_build_that_goes_on(data, own_home, monkeypatch, capsys) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("cee_gym.training.phases.write_rows", interrupt)
        with pytest.raises(SystemExit) as stop:
            main(["build", CLAUSES, "--data", str(data)])
    assert stop.value.code == 130
    assert "To go on" in capsys.readouterr().err
    main(["build", CLAUSES, "--data", str(data)])
    main(["build", CLAUSES, "--data", str(data), "--output", "whole"])
    here, whole = (
        cee_gym.Trace.open(Path(path) / "train") for path in (own_home / CLAUSES, "whole")
    )
    assert here.fingerprint == whole.fingerprint


def test_a_build_stopped_at_its_very_end_only_takes_its_place(data, own_home, monkeypatch) -> None:
    rename = Path.rename

    def stop_at_the_last(self, target):
        if Path(target).name == CLAUSES:
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", stop_at_the_last)
        with pytest.raises(SystemExit):
            main(["build", CLAUSES, "--data", str(data)])
    main(["build", CLAUSES, "--data", str(data)])
    assert (own_home / CLAUSES / "models" / "deployed").is_dir()
    assert not list(own_home.glob("*.build"))


def test_a_stopped_build_does_not_go_on_with_other_text(data, monkeypatch, capsys) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("cee_gym.training.phases.write_rows", interrupt)
        with pytest.raises(SystemExit):
            main(["build", CLAUSES, "--data", str(data)])
    lines = (data / "train.jsonl").read_text().splitlines()
    (data / "train.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    assert "another text" in refused(capsys, "build", CLAUSES, "--data", str(data))


@pytest.mark.parametrize("place", [".", "file", "file/inside", "full"])
def test_a_build_does_not_begin_where_it_could_not_end(tmp_path, data, capsys, place) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    refused(capsys, "build", CLAUSES, "--data", str(data), "--output", place)
    assert not list(tmp_path.glob("*.build"))
    assert (tmp_path / "full" / "mine").exists()


@pytest.mark.slow
def test_a_killed_build_goes_on_and_leaves_no_half_trace(data, own_home) -> None:
    command = [sys.executable, "-m", "cee_gym", "build", CLAUSES]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    partial = own_home / f"{CLAUSES}.build" / "recording.partial"
    for _ in range(600):
        if list(partial.glob("*.partial")):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (own_home / CLAUSES).exists()
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
    trace = cee_gym.Trace.open(own_home / CLAUSES / "train")
    trace.verify()
    assert np.isfinite(trace.loss).all()


def test_what_cannot_be_reached_says_the_ways_out(data, capsys) -> None:
    message = refused(
        capsys, "build", "EarlyExit-BERT-MRPC", "--backbone", "no-such/model", "--data", str(data)
    )
    assert "no column" in message
    message = refused(capsys, "build", "EarlyExit-BERT-MRPC", "--backbone", "no-such/model")
    for way in ("--data DIR", "hub can be reached", "cee-gym envs"):
        assert way in message
    message = refused(capsys, "build", CLAUSES, "--backbone", "no-such/model", "--data", str(data))
    for way in ("local directory", "hub can be reached", "cee-gym envs"):
        assert way in message


def test_a_backbone_for_other_labels_is_refused(tmp_path, data, capsys) -> None:
    backbone = Path(cee_gym.__file__).parent / "shipped" / CLAUSES / "backbone"
    three = tmp_path / "three"
    three.mkdir()
    for split in ("train", "dev"):
        rows = [f"{i}\tpremise\thypothesis\tneutral" for i in range(30)]
        text = "index\tpremise\thypothesis\tlabel\n" + "\n".join(rows) + "\n"
        (three / f"{split}.tsv").write_text(text)
    message = refused(
        capsys, "build", "EarlyExit-BERT-MNLI", "--backbone", str(backbone), "--data", str(three)
    )
    assert "has exits for the classes negative, positive, in this order, and task mnli" in message
