"""`cee-gym tune`: what it found trains, and what is wrong is one line."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest

from cee_gym import ExitPolicy
from cee_gym.cli import main
from cee_gym.problem_settings import ProblemSettings
from tests.cli.commands import refused
from tests.made_traces import write_recording


def test_what_was_found_trains_to_what_was_promised(tmp_path, capsys) -> None:
    recording = write_recording(tmp_path / "recording")
    words = (
        f"tune EarlyExit --trace {recording} --agent expected-return --trials 3 "
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
    assert config["problem"] == best["problem"]
    problem = ProblemSettings.from_json(best["problem"]).problem(recording, "calibration")
    leave = ExitPolicy.load("run/round-0/agent").exit_probabilities(problem.observe()) > 0.5
    leave[:, -1] = True
    returns = problem.rewards(0.02)[np.arange(len(leave)), leave.argmax(axis=1)]
    assert returns.mean() == pytest.approx(best["value"])
    main(words.split())
    assert f"the best    {best['value']:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("EarlyExit-BERT-RTE --agent expected-retrun", "did you mean expected-return"),
        ("EarlyExit-BERT-RTE --agent random", "nothing to search for random"),
        ("EarlyExit-BERT-RTE --agent confidence", "confidence: learning chooses all it has"),
        (
            "EarlyExit-BERT-RTE --agent learning-to-exit --set weight_decay=0.1",
            "all of weight_decay are set",
        ),
        ("EarlyExit-BERT-RTF", "did you mean EarlyExit-BERT-RTE"),
        ("EarlyExit", "give --trace"),
        ("EarlyExit-BERT-RTE --set learnin_rate=1", "give KEY=VALUE"),
        ("EarlyExit-BERT-RTE --gpus 1", "--gpus is of --engine ray"),
        ("EarlyExit-BERT-RTE --engine ray --cpus 0", "cpus and gpus are both 0"),
        ("EarlyExit-BERT-RTE --seed -1", "seed must be 0 to 4294967295, got -1"),
        ("EarlyExit-BERT-RTE --alpha 1e308", "alpha must be from 0 to 1e+06"),
        ("EarlyExit-BERT-RTE --quality correctnes", "did you mean correctness"),
    ],
)
def test_bad_input_is_one_line(capsys, words, said) -> None:
    assert said in refused(capsys, "tune", *words.split())
    assert not Path("runs").exists()


def test_a_place_that_cannot_be_written_is_one_line(capsys) -> None:
    Path("file").write_text("")
    refused(capsys, "tune", "EarlyExit-BERT-RTE", "--output", "file")
