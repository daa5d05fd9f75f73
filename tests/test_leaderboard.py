"""The leaderboard: exact returns, and files of other agents that are checked by playing them."""

import json

import numpy as np
import pytest

from cee_gym import leaderboard
from cee_gym.agents.presets import OBSERVE
from cee_gym.cli import main
from cee_gym.errors import CeeGymError
from cee_gym.evaluation.curve import evaluate_policy
from cee_gym.leaderboard import (
    ENTRIES,
    known_about,
    leaderboard_table,
    read_submission,
    run_agent,
    run_submission,
    validate,
    write_submission,
)
from cee_gym.problem_settings import ProblemSettings
from cee_gym.traces.recordings import find_recording

ID = "EarlyExit-BERT-SST-2"


@pytest.fixture(scope="module")
def known():
    return known_about(ID)


def problem():
    settings = ProblemSettings(alpha=(ENTRIES[ID],), observe=OBSERVE)
    return settings.problem(find_recording(ID), "dev")


def test_known_agents_stand_where_they_have_to(known) -> None:
    fixed = run_agent(ID, "fixed-layer", [0], known)
    assert fixed.returns[0] == pytest.approx(known.fixed_layer.mean_return)
    assert fixed.normalised == pytest.approx([0.0])
    assert fixed.accuracy == pytest.approx(known.fixed_layer.accuracy)
    learned = run_agent(ID, "longstaff-schwartz", [0, 1], known)
    assert learned.normalised == pytest.approx([1.0, 1.0], abs=0.15)
    assert learned.regret == pytest.approx(known.hindsight.mean_return - np.mean(learned.returns))
    assert len(learned.returns) == 2


def test_the_return_is_that_of_evaluation(known) -> None:
    from cee_gym.agents import make_agent
    from cee_gym.envs import EarlyExitEnv

    policy = make_agent("confidence").learn(EarlyExitEnv(ID, observe=("confidence",)), 0).policy
    point = evaluate_policy(
        policy, ProblemSettings(observe=("confidence",)).problem(find_recording(ID), "dev")
    )
    line = run_agent(ID, "confidence", [0], known)
    assert line.returns[0] == pytest.approx(point.mean_return)
    assert line.saved_layers == pytest.approx(point.saved_layers)


def test_where_there_is_nothing_to_gain_there_is_no_score() -> None:
    known = known_about("EarlyExit-BERT-RTE")
    assert run_agent("EarlyExit-BERT-RTE", "confidence", [0], known).normalised is None


def test_a_submission_is_read_played_and_ranked(tmp_path, known) -> None:
    table = np.random.default_rng(0).random((len(problem()), problem().num_layers))
    file = tmp_path / "theirs.npz"
    write_submission(file, {ID: table})
    assert np.array_equal(read_submission(file)[ID], table)
    exact, played = validate(file)[ID]
    assert played.low <= exact <= played.high
    assert played.high - played.low < 0.03
    (line,) = run_submission(file, {ID: known})
    assert line.agent == "theirs"
    assert line.returns[0] == pytest.approx(exact)
    shown = leaderboard_table([line], {ID: known})
    assert "theirs" in shown
    assert "(hindsight)" in shown


def test_what_is_no_submission_is_refused(tmp_path) -> None:
    good = np.zeros((len(problem()), problem().num_layers))
    file = tmp_path / "a.npz"
    for table, message in (
        (good[1:], "must be of shape"),
        (good + 2, "numbers from 0 to 1"),
        (good * np.nan, "numbers from 0 to 1"),
        (good.astype(str), "numbers from 0 to 1"),
    ):
        with pytest.raises(CeeGymError, match=message):
            write_submission(file, {ID: table})
    with pytest.raises(CeeGymError, match="not on the leaderboard: did you mean"):
        write_submission(file, {"EarlyExit-BERT-SST": good})
    np.savez(file, **{ID: good, f"{ID}/fingerprint": np.array("0123")})
    with pytest.raises(CeeGymError, match="was made on the rows 0123"):
        read_submission(file)
    np.savez(file, **{ID: np.array([{}], dtype=object)})
    with pytest.raises(CeeGymError, match="cannot be read"):
        read_submission(file)
    np.savez(file)
    with pytest.raises(CeeGymError, match="holds no table"):
        read_submission(file)


def test_the_command(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(leaderboard, "ENTRIES", {ID: ENTRIES[ID]})
    file = tmp_path / "theirs.npz"
    write_submission(file, {ID: np.full((len(problem()), problem().num_layers), 0.5)})
    main(["leaderboard", "--submissions", str(file), "--validate"])
    assert "in closed form; episodes give" in capsys.readouterr().out
    words = ["--agents", "confidence", "--seeds", "0", "--output", str(tmp_path / "all.json")]
    main(["leaderboard", "--submissions", str(file), *words])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    found = json.loads((tmp_path / "all.json").read_text())
    assert [line["agent"] for line in found["lines"]] == ["confidence", "theirs"]
    assert found["known"][ID]["hindsight"]["mean_return"] > 0.9
    for wrong in (["--validate"], ["--agents", "nope"], ["--submissions", "nowhere.npz"]):
        with pytest.raises(SystemExit):
            main(["leaderboard", *wrong])
