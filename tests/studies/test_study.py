"""A study is done once, whatever stops it and however many work on it."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cee_gym.cli import main
from cee_gym.errors import CeeGymError
from cee_gym.evaluation.compare import compare
from cee_gym.headroom import headroom
from cee_gym.problem_settings import ProblemSettings
from cee_gym.studies import study as module
from cee_gym.studies.cells import cells_of
from cee_gym.studies.config import StudyConfig
from cee_gym.studies.estimate import estimate
from cee_gym.studies.study import TABLE, claimed, result_file, run_study, summary
from cee_gym.traces.recordings import open_split


@pytest.fixture
def whole(config_file, tmp_path) -> pd.DataFrame:
    """The table of a study that nothing stopped."""
    return run_study(StudyConfig.read(config_file), tmp_path / "whole")


def test_the_table_has_every_cell_and_what_they_are_compared_with(whole, config_file) -> None:
    own = whole[whole["point"] == "own"]
    runs = own.groupby(["task", "agent", "reward"]).size()
    for agent in ("confidence", "policy-improvement", "learned"):
        assert (runs.xs(agent, level="agent") == 2).all()  # one for each seed
    for agent in ("full depth", "fixed exit 1", "fixed exit 3", "attainable bound", "hindsight"):
        assert (runs.xs(agent, level="agent") == 1).all()
    assert set(whole["chosen_on"]) == {"calibration"}
    assert not whole["optimistic"].any()
    assert len(cells_of(StudyConfig.read(config_file))) == 2 * 2 * (1 + 3 * 2)


def test_its_figures_are_those_of_the_runs_and_of_headroom(whole, config_file, tmp_path) -> None:
    run = tmp_path / "whole" / "run" / "first" / "as_recorded" / "learned" / "correctness" / "1"
    rows = whole[
        (whole["task"] == "first") & (whole["agent"] == "learned") & (whole["seed"] == 1)
    ].set_index(["reward", "point"])
    found = compare([run], saved_layers=[0.3, 0.5]).runs[0]
    assert rows.loc["correctness", "own"]["accuracy"] == found.own[0].accuracy
    assert rows.loc["correctness", "saved-0.5"]["accuracy"] == pytest.approx(found.accuracy[0, 1])
    assert rows.loc["correctness", "own"]["area"] == pytest.approx(found.curves[0].area)
    recording = tmp_path / "first"
    from cee_gym.agents.presets import OBSERVE

    problem = ProblemSettings(observe=OBSERVE)
    bound = headroom(problem.problem(recording, "dev"), problem.problem(recording, "train")).bound
    row = whole[(whole["task"] == "first") & (whole["agent"] == "attainable bound")].iloc[0]
    assert row["mean_return"] == pytest.approx(bound.mean_return)
    trace = open_split(recording, "dev")
    full = whole[(whole["task"] == "first") & (whole["agent"] == "full depth")].iloc[0]
    assert full["accuracy"] == trace.correct[:, -1].mean()
    assert full["overthinking"] == np.mean(
        [any(row[:-1]) and not row[-1] for row in trace.correct.tolist()]
    )
    own = rows.loc["correctness", "own"]
    assert own["helped"] - own["harmed"] == pytest.approx(own["accuracy"] - full["accuracy"])


def test_a_finished_cell_is_not_done_again(whole, config_file, tmp_path, monkeypatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("done twice")

    monkeypatch.setattr(module, "do", never)
    again = run_study(StudyConfig.read(config_file), tmp_path / "whole")
    pd.testing.assert_frame_equal(again, whole)


def test_a_cell_that_another_process_holds_is_left_alone(config_file, tmp_path) -> None:
    cell = cells_of(StudyConfig.read(config_file))[0]
    with claimed(tmp_path, cell) as mine:
        assert mine
        code = (
            "import sys; from pathlib import Path; from cee_gym.studies.study import claimed;"
            "from cee_gym.studies.config import StudyConfig;"
            "from cee_gym.studies.cells import cells_of;"
            "cell = cells_of(StudyConfig.read(Path(sys.argv[1])))[0];"
            "print(claimed(Path(sys.argv[2]), cell).__enter__())"
        )
        words = [sys.executable, "-c", code, str(config_file), str(tmp_path)]
        said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        assert said.strip() == "False"
    assert subprocess.run(words, capture_output=True, text=True).stdout.strip() == "True"


def test_another_study_is_not_mixed_in(whole, config_file, tmp_path) -> None:
    config_file.write_text(config_file.read_text().replace("seeds = [0, 1]", "seeds = [0]"))
    with pytest.raises(CeeGymError, match="holds a study with other seeds"):
        run_study(StudyConfig.read(config_file), tmp_path / "whole")


def study(config_file: Path, output: Path) -> "subprocess.Popen[bytes]":
    words = [sys.executable, "-m", "cee_gym", "study", str(config_file), "--output", str(output)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("times", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments_it_ends_in_the_same_table(
    times, whole, config_file, tmp_path
) -> None:
    output, rng = tmp_path / "killed", np.random.default_rng(times)
    config = StudyConfig.read(config_file)
    cells = cells_of(config)
    for kill in range(times):
        process = study(config_file, output)
        # Past the imports, at some moment of the cells that are left.
        done = sum(result_file(output, cell).exists() for cell in cells)
        deadline = time.monotonic() + 60
        more = done + (kill % 2)
        while process.poll() is None and time.monotonic() < deadline:
            if sum(result_file(output, cell).exists() for cell in cells) >= min(more, len(cells)):
                break
            time.sleep(0.01)
        time.sleep(float(rng.uniform(0, 0.6)))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert study(config_file, output).wait() == 0
    pd.testing.assert_frame_equal(
        pd.read_parquet(output / TABLE), pd.read_parquet(tmp_path / "whole" / TABLE)
    )


def test_two_processes_do_every_cell_once(whole, config_file, tmp_path) -> None:
    output = tmp_path / "shared"
    both = [study(config_file, output) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    pd.testing.assert_frame_equal(
        pd.read_parquet(output / TABLE), pd.read_parquet(tmp_path / "whole" / TABLE)
    )
    # A run that was trained twice would have two event files.
    events = Counter(file.parent for file in output.rglob("events.out.tfevents.*"))
    assert list(events.values()) == [1] * 24


def test_the_summary_is_that_of_the_table(whole) -> None:
    found = summary(whole)
    groups = {(one["agent"], one["reward"]): one for one in found["groups"]}
    assert len(groups) == 6
    compared = whole[whole["point"].str.startswith("saved-")]
    of = compared[(compared["agent"] == "learned") & (compared["reward"] == "paper")]
    values = of.groupby(["task", "seed"])["accuracy"].mean()
    group = groups["learned", "paper"]
    every = [value for of_task in group["seeds"].values() for value in of_task]
    assert sorted(every) == pytest.approx(sorted(values))
    middle = np.sort(values)[1:3].mean()
    assert group["interquartile_mean"]["mean"] == pytest.approx(middle)
    assert 0 <= group["better_than_confidence"]["mean"] <= 1
    assert "better_than_confidence" not in groups["confidence", "paper"]


def test_an_optimistic_study_says_so(config_file, tmp_path, capsys) -> None:
    text = config_file.read_text()
    config_file.write_text('choose_on = "dev"\noptimistic = true\n' + text)
    main(["study", str(config_file), "--output", str(tmp_path / "out")])
    out = " ".join(capsys.readouterr().out.split())
    assert "chosen on the rows that are reported, which flatters" in out
    assert pd.read_parquet(tmp_path / "out" / TABLE)["optimistic"].all()


def test_the_command_says_how_long_it_takes_and_prints_a_table(
    config_file, tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    main(["study", str(config_file), "--output", str(tmp_path / "out"), "--estimate"])
    assert "28 cells, 0 done; about" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    main(["study", str(config_file), "--output", str(tmp_path / "out")])
    captured = capsys.readouterr()
    assert "28/28 cells" in captured.err
    assert max(map(len, captured.out.split("\n\n")[0].splitlines())) <= 80
    assert "28 cells, 28 done; about 0 s" in estimate(
        StudyConfig.read(config_file), tmp_path / "out"
    )


def test_the_confidence_rule_is_always_in_it(config_file) -> None:
    text = config_file.read_text()
    whole = {cell.key for cell in cells_of(StudyConfig.read(config_file))}
    assert '[[agents]]\nname = "confidence"\n' in text
    config_file.write_text(text.replace('[[agents]]\nname = "confidence"\n', ""))
    assert {cell.key for cell in cells_of(StudyConfig.read(config_file))} == whole
