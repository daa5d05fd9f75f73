"""What is read from the directory of a run, and what is kept there."""

import json
import shutil
from pathlib import Path

import pytest

from cee_gym.agents import make_agent
from cee_gym.errors import CeeGymError
from cee_gym.evaluation.report import report
from cee_gym.inference.pretrained import load_policy
from cee_gym.policies.speeds import Speed
from cee_gym.problem_settings import ProblemSettings
from cee_gym.runs import Run, is_run
from cee_gym.training.trainer import ConsistentEETrainer
from tests.made_traces import write_recording


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The run of the confidence rule at 0.7 on a finished recording."""
    directory = tmp_path_factory.mktemp("trained")
    recording = write_recording(directory / "recording", n=60)
    ConsistentEETrainer(
        make_agent("confidence", threshold=0.7),
        directory / "run",
        recording=recording,
        problem=ProblemSettings(quality="correctness", hardness="none"),
    ).train(progress_bar=False)
    return directory / "run"


@pytest.fixture
def directory(trained, tmp_path) -> Path:
    """A copy of it, to damage."""
    return shutil.copytree(trained, tmp_path / "run")


def complete(run: Path, number: int) -> Path:
    """Makes a complete round, a copy of the first."""
    return shutil.copytree(run / "round-0", run / f"round-{number}")


def evaluate(run: Run, split: str = "dev", **speed: float) -> None:
    problems = run.problem("calibration"), run.problem(split)
    run.keep(report(run.policy, *problems, run.metrics, asked=Speed(**speed))["points"])


def test_the_newest_complete_round_is_that_of_the_highest_number(directory) -> None:
    for number in range(1, 12):
        complete(directory, number)
    (directory / "round-12").mkdir()
    assert Run.open(directory).newest_round == directory / "round-11"


def test_a_round_after_one_that_is_missing_does_not_count(directory) -> None:
    complete(directory, 2)
    assert Run.open(directory).newest_round == directory / "round-0"


def test_a_run_without_a_complete_round_is_refused(directory) -> None:
    (directory / "round-0" / "evaluation.json").unlink()
    with pytest.raises(CeeGymError, match="no complete round yet"):
        _ = Run.open(directory).newest_round


def test_a_run_says_what_it_was_trained_with(directory) -> None:
    run = Run.open(directory)
    assert is_run(directory)
    assert not is_run(directory / "round-0")
    assert (run.agent, run.metrics) == ("confidence", ("accuracy",))
    assert (run.policy.name, run.policy.threshold) == ("confidence", 0.7)
    problem = run.problem("dev")
    assert (problem.reward.quality, problem.reward.hardness) == ("correctness", None)
    assert problem.trace.header.split == "dev"
    assert run.speeds.chosen_on == run.problem("calibration").trace.fingerprint


def test_a_run_on_a_finished_recording_without_weights_has_none(directory) -> None:
    with pytest.raises(CeeGymError, match="has no weights: train with --backbone"):
        _ = Run.open(directory).weights


def test_the_points_of_the_evaluation_after_training_are_kept_already(directory) -> None:
    points = Run.open(directory).points
    assert list(points) == ["own", "lost-0", "lost-0.5", "lost-1", "lost-2"]
    assert points["own"].threshold == 0.7
    assert points["own"].chosen_on == ""
    expected = Speed(points_lost=1.0).choose(Run.open(directory).policy, Run.open(directory).speeds)
    assert points["lost-1"].threshold == expected.threshold
    assert points["lost-1"].chosen_on == expected.chosen_on


def test_a_point_is_kept_by_its_name_beside_the_others(directory) -> None:
    evaluate(Run.open(directory), threshold=0.55)
    evaluate(Run.open(directory), saved_layers=0.3)
    kept = json.loads((directory / "points.json").read_text())["points"]
    assert {"own", "lost-1", "threshold-0.55", "saved-0.3"} <= set(kept)
    assert kept["saved-0.3"]["label"] == "at least 30.0% saved on calibration"
    assert kept["saved-0.3"]["chosen_on"]["split"] == "calibration"
    assert kept["threshold-0.55"]["chosen_on"] is None
    assert kept["threshold-0.55"]["measured"]["dev"]["threshold"] == 0.55
    points = Run.open(directory).points
    assert points["threshold-0.55"].threshold == 0.55
    assert points["saved-0.3"].threshold == kept["saved-0.3"]["threshold"]


def test_a_point_keeps_what_it_comes_to_on_each_split(directory) -> None:
    evaluate(Run.open(directory))
    evaluate(Run.open(directory), "train")
    kept = json.loads((directory / "points.json").read_text())["points"]
    assert set(kept["lost-1"]["measured"]) == {"dev", "train"}


def test_a_point_that_is_another_now_forgets_what_it_came_to(directory) -> None:
    evaluate(Run.open(directory), "train")
    file = directory / "points.json"
    document = json.loads(file.read_text())
    document["points"]["lost-1"]["threshold"] = 0.123
    file.write_text(json.dumps(document))
    evaluate(Run.open(directory))
    kept = json.loads(file.read_text())["points"]
    assert set(kept["lost-1"]["measured"]) == {"dev"}
    assert set(kept["lost-2"]["measured"]) == {"dev", "train"}


def test_points_of_an_earlier_round_are_of_another_policy(directory) -> None:
    evaluate(Run.open(directory), threshold=0.55)
    complete(directory, 1)
    assert "threshold-0.55" not in Run.open(directory).points
    evaluate(Run.open(directory), threshold=0.6)
    document = json.loads((directory / "points.json").read_text())
    assert document["round"] == "round-1"
    assert "threshold-0.55" not in document["points"]


def test_a_policy_is_loaded_at_a_kept_point(directory) -> None:
    evaluate(Run.open(directory), threshold=0.55)
    assert load_policy(directory).threshold == 0.7
    assert load_policy(directory, Speed(at="threshold-0.55")).threshold == 0.55
    with pytest.raises(CeeGymError, match=r"no point 'lots-1': did you mean lost-1"):
        load_policy(directory, Speed(at="lots-1"))


CONFIG, POINTS = "config.json", "points.json"
EVALUATION = "round-0/evaluation.json"


@pytest.mark.parametrize("file", [CONFIG, POINTS, EVALUATION])
@pytest.mark.parametrize("content", ["", "{", "[]", "null", "{}", '{"version": 1}', "[" * 100_000])
def test_a_damaged_file_is_named_in_one_line(directory, file, content) -> None:
    evaluate(Run.open(directory))
    (directory / file).write_text(content)
    with pytest.raises(CeeGymError) as refused:
        load_policy(directory, Speed(at="lost-1"))
    assert str(directory / file) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("file", "path", "value"),
    [
        (CONFIG, ("problem",), 3),
        (CONFIG, ("problem", "colour"), "red"),
        (CONFIG, ("problem", "observe"), 3),
        (CONFIG, ("metrics",), 3),
        (CONFIG, ("recording",), 3),
        (POINTS, ("points",), 3),
        (POINTS, ("points", "lost-1"), 3),
        (POINTS, ("points", "lost-1", "threshold"), "high"),
        (POINTS, ("points", "lost-1", "threshold"), 7),
        (POINTS, ("points", "lost-1", "threshold"), float("nan")),
        (POINTS, ("points", "lost-1", "alpha"), 0.1),
        (POINTS, ("points", "lost-1", "chosen_on"), "calibration"),
        (EVALUATION, ("points", "lost-1"), 3),
    ],
)
def test_a_file_that_holds_something_else_is_named_too(directory, file, path, value) -> None:
    evaluate(Run.open(directory))
    document = json.loads((directory / file).read_text())
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (directory / file).write_text(json.dumps(document))
    with pytest.raises(CeeGymError, match="is damaged") as refused:
        load_policy(directory, Speed(at="lost-1"))
    assert str(directory / file) in str(refused.value)


@pytest.mark.parametrize("value", [3, [], {"split": "dev"}, {"points": [[1]]}, {"points": "x"}])
def test_damaged_speeds_are_one_line(directory, value) -> None:
    file = directory / EVALUATION
    file.write_text(json.dumps(json.loads(file.read_text()) | {"speeds": value}))
    with pytest.raises(CeeGymError, match="is damaged"):
        load_policy(directory, Speed(saved_layers=0.1))


def test_a_recording_that_was_made_again_is_refused(directory, trained, tmp_path) -> None:
    other = write_recording(tmp_path / "other", n=30)
    config = json.loads((directory / CONFIG).read_text()) | {"recording": str(other)}
    (directory / CONFIG).write_text(json.dumps(config))
    with pytest.raises(CeeGymError, match="recorded again"):
        Run.open(directory).problem("calibration")


def test_there_is_no_run_where_nothing_is(tmp_path) -> None:
    with pytest.raises(CeeGymError, match="there is no run at"):
        Run.open(tmp_path)
