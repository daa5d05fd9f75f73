"""The search never ends below the preset, goes on where it was stopped, and says what is wrong."""

import contextlib
import json
import shlex
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
from filelock import FileLock

from cee_gym.agents.base import load_agent
from cee_gym.cli import main
from cee_gym.errors import CeeGymError
from cee_gym.training import tune as tune_module
from cee_gym.training.config import PolicyConfig
from cee_gym.training.phases import policy_env
from cee_gym.training.tune import Search, tune
from tests.made_traces import write_recording

POLICY = PolicyConfig(total_timesteps=300)


@pytest.fixture(autouse=True)
def in_a_directory_of_its_own(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def search(tmp_path) -> Search:
    return Search("expected-return", write_recording(tmp_path / "recording"), POLICY)


def go(search: Search, trials: int, output: str | Path = "tune", **kwargs) -> dict:
    return tune(search, trials, Path(output), progress_bar=False, **kwargs)


def trials(output: str) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="cee-gym", storage=f"sqlite:///{output}/study.db").trials


def test_the_preset_is_first_and_the_best_is_never_below_it(search) -> None:
    best = go(search, 4)
    first, *others = trials("tune")
    assert first.params == {key: search.start[key] for key in search.ranges}
    assert best["preset_value"] == first.value == search.value(search.start)
    assert best["value"] == max(trial.value for trial in (first, *others)) >= first.value
    assert best["trials"] == 4
    assert len({str(trial.params) for trial in others}) == 3
    assert json.loads(Path("tune/best.json").read_text()) == best


def test_the_value_is_the_return_on_calibration_at_one_half(search, monkeypatch) -> None:
    opened = []

    def watched(recording, policy, split):
        opened.append(split)
        return policy_env(recording, policy, split)

    monkeypatch.setattr(tune_module, "policy_env", watched)
    value = search.value(search.start)
    assert sorted(opened) == ["calibration", "train"]
    main(
        f"train EarlyExit --trace {search.recording} --agent expected-return --output run "
        "--total-timesteps 300".split()
    )
    agent = load_agent("run/round-0/agent")
    env = search.environments["calibration"]
    leave = agent.exit_probabilities(env.observations) > 0.5
    leave[:, -1] = True
    returns = [env.table.rewards(0.035)[i, row.argmax()] for i, row in enumerate(leave)]
    assert value == pytest.approx(np.mean(returns))


def test_a_range_of_prices_is_searched_over_all_of_it(search) -> None:
    value = replace(search, policy=replace(POLICY, alpha=(0.0, 0.5))).value(search.start)
    low, high = (
        replace(search, policy=replace(POLICY, alpha=(a,))).value(search.start) for a in (0.0, 0.5)
    )
    assert high < value < low


@pytest.mark.parametrize("stopped_at", [0, 1, 2])
def test_a_search_that_was_stopped_goes_on_to_the_same_end(search, monkeypatch, stopped_at) -> None:
    whole = go(search, 4, "whole")
    value, calls = Search.value, []

    def stop(self, hyperparameters):
        calls.append(hyperparameters)
        if len(calls) == stopped_at + 1:
            raise KeyboardInterrupt
        return value(self, hyperparameters)

    with monkeypatch.context() as patch:
        patch.setattr(Search, "value", stop)
        with pytest.raises(KeyboardInterrupt):
            go(search, 3, "stopped")
    assert go(search, 4, "stopped") == whole
    done = [t for t in trials("stopped") if t.state.name == "COMPLETE"]
    cut_off = [t for t in trials("stopped") if t.state.name == "FAIL"]
    assert [t.params for t in done] == [t.params for t in trials("whole")]
    assert [t.params for t in cut_off] == [t.params for t in done[1:]][stopped_at - 1 : stopped_at]
    assert go(search, 2, "stopped")["trials"] == 4


def count(state: str) -> int:
    with contextlib.suppress(sqlite3.OperationalError):  # it is not made yet
        database = sqlite3.connect("file:tune/study.db?mode=ro", uri=True)
        with contextlib.closing(database):
            query = "SELECT COUNT(*) FROM trials WHERE state = ?"
            return database.execute(query, (state,)).fetchone()[0]
    return 0


@pytest.mark.slow
def test_a_killed_search_goes_on(search) -> None:
    words = f"tune EarlyExit --trace {search.recording} --agent expected-return --output tune"
    command = [sys.executable, "-m", "cee_gym", *words.split(), "--trials"]
    process = subprocess.Popen([*command, "1000"], stderr=subprocess.DEVNULL)
    while not (count("RUNNING") and count("COMPLETE") > 2):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    wanted = count("COMPLETE") + 2
    done = subprocess.run([*command, str(wanted)], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert count("COMPLETE") == wanted
    assert count("RUNNING") == 0
    assert len(trials("tune")) == wanted + count("FAIL")


def test_another_search_in_the_same_place_is_refused(search, tmp_path) -> None:
    go(search, 1)
    for other, what in (
        (replace(search, agent="confidence"), "agent"),
        (replace(search, policy=replace(POLICY, alpha=(0.1,))), "policy"),
        (replace(search, recording=write_recording(tmp_path / "other", n=30)), "traces"),
        (replace(search, fixed={"hidden_width": 0}), "start, ranges"),
        (replace(search, seed=1), "seed"),
    ):
        with pytest.raises(CeeGymError, match=f"begun with another [a-z, ]*{what}"):
            go(other, 2)
    assert go(search, 1)["trials"] == 1


def test_two_do_not_write_the_same_place(search) -> None:
    Path("tune").mkdir()
    with FileLock("tune/study.lock"), pytest.raises(CeeGymError, match="another search"):
        go(search, 1)
    assert go(search, 1)["trials"] == 1


def test_what_is_no_study_is_named(search) -> None:
    Path("tune").mkdir()
    Path("tune/study.db").write_text("this is no database" * 100)
    with pytest.raises(CeeGymError, match="no study"):
        go(search, 1)
    with sqlite3.connect("tune/other.db") as database:
        database.execute("CREATE TABLE studies (x int)")
    Path("tune/other.db").replace("tune/study.db")
    with pytest.raises(CeeGymError, match="no study"):
        go(search, 1)


def test_settings_that_diverge_are_the_worst_and_the_search_goes_on(search, monkeypatch) -> None:
    value, calls = Search.value, []

    def diverge(self, hyperparameters):
        calls.append(hyperparameters)
        if len(calls) == 2:
            raise CeeGymError("the loss is nan")
        return value(self, hyperparameters)

    monkeypatch.setattr(Search, "value", diverge)
    best = go(search, 3)
    assert best["trials"] == len(calls) == 3
    assert calls[1] not in (calls[0], calls[2])
    assert [t.state.name for t in trials("tune")] == ["COMPLETE", "PRUNED", "COMPLETE"]


def test_what_the_preset_cannot_do_is_an_error(search) -> None:
    with pytest.raises(CeeGymError, match="observe 'layer'"):
        go(replace(search, policy=replace(POLICY, observe=("hidden", "confidence"))), 1)
    with pytest.raises(CeeGymError, match="trials must be at least 1"):
        go(search, 0)


def test_no_trial_begins_after_the_time_is_up(search) -> None:
    assert go(search, 50, timeout_s=0.0)["trials"] == 1
    assert go(search, 50, timeout_s=0.0)["trials"] == 1


def test_without_optuna_it_says_what_to_install(search, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(CeeGymError, match=r'pip install "cee-gym\[tune\]"'):
        go(search, 1)


def refused(capsys, words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(words.split())
    assert stop.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_from_the_command_line(search, capsys) -> None:
    words = (
        f"tune EarlyExit --trace {search.recording} --agent expected-return --trials 3 "
        "--total-timesteps 300 --alpha 0.02 --set batch_size=16 --seed 2 --output tune"
    )
    main(words.split())
    out = capsys.readouterr().out
    best = json.loads(Path("tune/best.json").read_text())
    assert f"the preset  {best['preset_value']:.4f}" in out
    assert f"the best    {best['value']:.4f}" in out
    (line,) = (line for line in out.splitlines() if line.startswith("to use it: cee-gym train"))
    main([*shlex.split(line)[4:], "--output", "run"])
    config = json.loads(Path("run/config.json").read_text())
    assert config["hyperparameters"].items() >= best["hyperparameters"].items()
    assert config["hyperparameters"]["batch_size"] == 16
    assert config["hyperparameters"]["seed"] == 2
    assert config["policy"] == best["policy"]
    env = policy_env(search.recording, PolicyConfig(**best["policy"]), "calibration")
    leave = load_agent("run/round-0/agent").exit_probabilities(env.observations) > 0.5
    leave[:, -1] = True
    returns = env.table.rewards(0.02)[np.arange(len(leave)), leave.argmax(axis=1)]
    assert returns.mean() == pytest.approx(best["value"])
    main(words.split())
    assert f"the best    {best['value']:.4f}" in capsys.readouterr().out


def test_bad_input_is_one_line(search, capsys) -> None:
    rte = "tune EarlyExit-BERT-RTE"
    assert "did you mean expected-return" in refused(capsys, f"{rte} --agent expected-retrun")
    assert "nothing to search for random" in refused(capsys, f"{rte} --agent random")
    message = refused(capsys, f"{rte} --agent confidence --set threshold=0.5")
    assert "all of threshold are set" in message
    assert "did you mean EarlyExit-BERT-RTE" in refused(capsys, "tune EarlyExit-BERT-RTF")
    assert "give --trace" in refused(capsys, "tune EarlyExit")
    assert "give KEY=VALUE" in refused(capsys, f"{rte} --set learnin_rate=1")
    Path("file").write_text("")
    refused(capsys, f"{rte} --output file")
