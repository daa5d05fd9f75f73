"""The search never ends below the preset, goes on where it was stopped, and says what is wrong."""

import contextlib
import json
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest

from cee_gym import ExitPolicy
from cee_gym.cli import main
from cee_gym.cluster import Cluster
from cee_gym.errors import CeeGymError
from cee_gym.hold import hold
from cee_gym.problem_settings import ProblemSettings
from cee_gym.training import tune as tune_module
from cee_gym.training.phases import problem_env
from cee_gym.training.tune import Search, tune
from tests.made_traces import write_recording
from tests.ray_workers import one_dies


@pytest.fixture(autouse=True)
def in_a_directory_of_its_own(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def search(tmp_path) -> Search:
    return Search("expected-return", write_recording(tmp_path / "recording"), total_timesteps=300)


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

    def watched(recording, settings, split):
        opened.append(split)
        return problem_env(recording, settings, split)

    monkeypatch.setattr(tune_module, "problem_env", watched)
    value = search.value(search.start)
    assert sorted(opened) == ["calibration", "train"]
    main(
        f"train EarlyExit --trace {search.recording} --agent expected-return --output run "
        "--total-timesteps 300".split()
    )
    policy = ExitPolicy.load("run/round-0/agent")
    problem = search.environments["calibration"].problem
    leave = policy.exit_probabilities(problem.observe()) > 0.5
    leave[:, -1] = True
    returns = [problem.rewards(0.01)[i, row.argmax()] for i, row in enumerate(leave)]
    assert value == pytest.approx(np.mean(returns))


def test_the_value_of_a_rule_is_its_return_at_its_own_threshold(search) -> None:
    search = replace(search, agent="confidence")
    problem = search.environments["calibration"].problem
    for threshold in (0.4, 0.8):
        leave = problem.trace.confidence > np.float32(threshold)
        leave[:, -1] = True
        returns = [problem.rewards(0.01)[i, row.argmax()] for i, row in enumerate(leave)]
        assert search.value({"threshold": threshold}) == pytest.approx(np.mean(returns))


def test_a_range_of_prices_is_searched_over_all_of_it(search) -> None:
    value, low, high = (
        replace(search, problem=ProblemSettings(alpha=alpha)).value(search.start)
        for alpha in ((0.0, 0.5), (0.0,), (0.5,))
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


def test_two_workers_do_the_trials_of_one_process_though_one_dies(local_ray, search) -> None:
    search = replace(search, total_timesteps=2000)
    whole = go(search, 6, "whole")
    with one_dies("_outcome"):
        best = go(search, 4, "rays", cluster=Cluster())
    assert best["trials"] == 4
    assert go(search, 6, "rays", cluster=Cluster()) == whole
    # Until there are results to draw from, every trial is what it is without Ray.
    found, wanted = ({t.user_attrs["place"]: t for t in trials(at)} for at in ("rays", "whole"))
    assert sorted(found) == sorted(wanted) == list(range(6))
    for place, trial in wanted.items():
        assert (found[place].params, found[place].value) == (trial.params, trial.value)


def test_a_parallel_search_that_was_stopped_does_the_missing_trials(search) -> None:
    whole = go(search, 5, "whole")
    # Only places 2 and 3 came to an end, in this order; the others were cut off.
    by_place = {t.user_attrs["place"]: t for t in trials("whole")}
    Path("stopped").mkdir()
    copied = optuna.create_study(
        storage="sqlite:///stopped/study.db", study_name="cee-gym", direction="maximize"
    )
    copied.set_user_attr("description", search.description())
    for place in (3, 2):
        copied.add_trial(by_place[place])
    assert go(search, 5, "stopped") == whole
    found = [t.user_attrs["place"] for t in trials("stopped")]
    assert found == [3, 2, 0, 1, 4]


def test_of_equal_trials_the_first_in_the_search_is_best_whichever_ended_first(
    search,
) -> None:
    go(search, 3, "whole")
    by_place = {t.user_attrs["place"]: t for t in trials("whole")}
    Path("equal").mkdir()
    copied = optuna.create_study(
        storage="sqlite:///equal/study.db", study_name="cee-gym", direction="maximize"
    )
    copied.set_user_attr("description", search.description())
    for place in (2, 0, 1):
        by_place[place].value = 0.25
        copied.add_trial(by_place[place])
    best = go(search, 3, "equal")
    assert best["hyperparameters"] == by_place[0].params
    assert best["value"] == best["preset_value"] == 0.25


def test_another_search_in_the_same_place_is_refused(search, tmp_path) -> None:
    go(search, 1)
    for other, what in (
        (replace(search, agent="reinforce"), "agent"),
        (replace(search, problem=ProblemSettings(alpha=(0.1,))), "problem"),
        (replace(search, recording=write_recording(tmp_path / "other", n=30)), "traces"),
        (replace(search, fixed={"hidden_width": 0}), "start, ranges"),
        (replace(search, seed=1), "seed"),
    ):
        with pytest.raises(CeeGymError, match=f"begun with another [a-z, ]*{what}"):
            go(other, 2)
    assert go(search, 1)["trials"] == 1


def test_two_do_not_write_the_same_place(search) -> None:
    Path("tune").mkdir()
    with hold(Path("tune")), pytest.raises(CeeGymError, match="another process is writing"):
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
        go(replace(search, problem=ProblemSettings(observe=("hidden", "confidence"))), 1)
    with pytest.raises(CeeGymError, match="trials must be at least 1"):
        go(search, 0)
    for seed in (-1, 10**30):
        with pytest.raises(CeeGymError, match="seed must be 0 to"):
            replace(search, seed=seed)


def test_no_trial_begins_after_the_time_is_up(search) -> None:
    assert go(search, 50, timeout_s=0.0)["trials"] == 1
    assert go(search, 50, timeout_s=0.0)["trials"] == 1


def test_without_optuna_it_says_what_to_install(search, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(CeeGymError, match=r'pip install "cee-gym\[tune\]"'):
        go(search, 1)
