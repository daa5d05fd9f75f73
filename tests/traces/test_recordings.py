import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from cee_gym.errors import CeeGymError, TraceError
from cee_gym.tasks import Task
from cee_gym.tasks.base import OWN
from cee_gym.traces.recordings import (
    MissingRecordingError,
    find_recording,
    home,
    open_split,
    recorded_splits,
    recorded_task,
)
from tests.made_traces import write_recording, write_trace


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CEE_GYM_HOME", str(tmp_path))
    return tmp_path


def test_home_is_the_environment_variable_or_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CEE_GYM_HOME", "~/elsewhere")
    assert home() == Path.home() / "elsewhere"
    monkeypatch.delenv("CEE_GYM_HOME")
    assert home() == Path.home() / ".cache" / "cee_gym"


def test_own_recording_is_found(own_home: Path) -> None:
    path = write_recording(own_home / "EarlyExit-BERT-MRPC")
    assert find_recording("EarlyExit-BERT-MRPC") == path
    assert recorded_splits(path) == ["train", "calibration", "dev"]


def test_shipped_recording_comes_first(
    own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = tmp_path / "shipped"
    monkeypatch.setattr("cee_gym.traces.recordings._SHIPPED", shipped)
    write_recording(own_home / "EarlyExit-BERT-RTE")
    write_recording(shipped / "EarlyExit-BERT-RTE")
    assert find_recording("EarlyExit-BERT-RTE") == shipped / "EarlyExit-BERT-RTE"


@pytest.mark.parametrize(
    ("weights_are_shipped", "options"),
    [
        (True, ""),
        (False, " --backbone google-bert/bert-base-uncased --data DIR_OR_HUB_NAME"),
    ],
)
def test_missing_recording_names_the_command(
    own_home: Path, monkeypatch: pytest.MonkeyPatch, weights_are_shipped: bool, options: str
) -> None:
    id, shipped = "EarlyExit-BERT-QQP", own_home / "shipped"
    monkeypatch.setattr("cee_gym.traces.recordings._SHIPPED", shipped)
    (own_home / id / "train.partial").mkdir(parents=True)  # a build that was killed early
    if weights_are_shipped:
        (shipped / id / "backbone").mkdir(parents=True)
    with pytest.raises(MissingRecordingError) as caught:
        find_recording(id)
    message = str(caught.value)
    assert f"`cee-gym build {id}{options}`" in message
    assert str(own_home / id) in message
    assert "\n" not in message


def test_missing_recording_of_a_users_own_names_the_module_too(own_home: Path) -> None:
    with pytest.raises(MissingRecordingError, match="`cee-gym build my_module:My-Own "):
        find_recording("my_module:My-Own")


def test_split_is_opened_once(tmp_path: Path) -> None:
    path = write_recording(tmp_path / "recording")
    train = open_split(path, "train")
    assert open_split(str(path), "train") is train
    assert open_split(path / "train", "train") is train
    assert open_split(path, "dev") is not train


def test_split_recorded_anew_within_one_tick_of_the_clock_is_opened_anew(tmp_path: Path) -> None:
    path = write_recording(tmp_path / "recording")
    before = open_split(path, "train")
    written = (path / "train" / "header.json").stat()
    shutil.rmtree(path / "train")
    write_trace(path / "train", seed=9)
    header = path / "train" / "header.json"
    os.utime(header, ns=(written.st_atime_ns, written.st_mtime_ns))
    after = open_split(path, "train")
    assert after.fingerprint != before.fingerprint
    assert open_split(path, "train") is after


def test_missing_split_names_those_there_are(tmp_path: Path) -> None:
    path = write_recording(tmp_path / "recording")
    with pytest.raises(TraceError, match=r"no split 'test'; it has train, calibration, dev"):
        open_split(path, "test")


def test_single_trace_of_another_split(tmp_path: Path) -> None:
    write_trace(tmp_path / "trace", split="dev")
    assert open_split(tmp_path / "trace", "dev").header.split == "dev"
    with pytest.raises(TraceError, match="is of split 'dev', not 'train'"):
        open_split(tmp_path / "trace", "train")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="neither a recording nor a trace"):
        open_split(tmp_path, "train")


def test_a_recording_of_text_of_ones_own_says_its_task(tmp_path) -> None:
    write_recording(tmp_path / "r")
    trace = open_split(tmp_path / "r", "dev")
    own = replace(trace, header=replace(trace.header, task=OWN))
    task = Task.from_json({"labels": ["3", "4"], "text": "said", "label": "mood"})
    file = tmp_path / "r" / "recording.json"
    file.write_text(json.dumps({"task": task.to_json()}))
    assert recorded_task(own) == task
    assert recorded_task(replace(trace, header=replace(trace.header, task="rte"))).name == "rte"
    for damaged in ({}, {"task": {"text": "said"}}, {"task": {"labels": ["3"], "of": "x"}}):
        file.write_text(json.dumps(damaged))
        with pytest.raises(CeeGymError, match=r"recording\.json is damaged"):
            recorded_task(own)
    file.unlink()
    with pytest.raises(CeeGymError, match="there is no description of a recording at"):
        recorded_task(own)
