"""Operating points: `evaluate` keeps them with a run by name, and every command takes them."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from cee_gym.cli import main
from cee_gym.inference import EarlyExitPipeline
from cee_gym.policies.speeds import Speed
from cee_gym.runs import Run
from cee_gym.serving.server import make_app
from tests.cli.commands import refused
from tests.made_traces import write_recording


@pytest.fixture
def own(run: Path, tmp_path: Path) -> Path:
    """A copy of the run, whose recording lies within it."""
    return shutil.copytree(run, tmp_path / "own")


def kept(run: Path) -> dict:
    return json.loads((run / "points.json").read_text())["points"]


def predicted(run: Path, data: Path, *speed: str) -> list[int]:
    """Where the dev texts leave, by `cee-gym predict`."""
    out = Path("predicted.jsonl")
    out.unlink(missing_ok=True)
    dev = data / "dev.jsonl"
    main(["predict", str(run), "--input", str(dev), "--output", str(out), *speed])
    return [json.loads(line)["exit_layer"] for line in out.read_text().splitlines()]


def test_evaluate_prints_and_keeps_its_points(own, capsys) -> None:
    main(["evaluate", str(own)])
    out = capsys.readouterr().out
    points = kept(own)
    assert list(points) == ["own", "lost-0", "lost-0.5", "lost-1", "lost-2"]
    for id, point in points.items():
        assert re.search(
            rf"^{id}: {re.escape(point['label'])} +{point['threshold']:.4g} ", out, re.M
        )
        assert set(point) == {"label", "threshold", "alpha", "chosen_on", "measured"}
        assert point["measured"]["dev"]["rows"] == 60
    calibration = Run.open(own).problem("calibration").trace
    assert points["own"]["chosen_on"] is None
    assert points["lost-1"]["chosen_on"] == {
        "split": "calibration",
        "trace": calibration.fingerprint,
    }


@pytest.mark.parametrize(
    ("option", "id"),
    [
        (("--threshold", "0.8"), "threshold-0.8"),
        (("--saved-layers", "0.2"), "saved-0.2"),
        (("--points-lost", "3"), "lost-3"),
        (("--guarantee", "harm", "--epsilon", "0.4", "--delta", "0.4"), "harm-0.4-0.4"),
    ],
)
def test_each_way_to_choose_a_speed_adds_a_point(own, run, capsys, option, id) -> None:
    main(["evaluate", str(own), *option])
    assert f"\n{id}: " in capsys.readouterr().out
    assert list(kept(own))[-1] == id
    assert "own" in kept(own)
    data = run.with_name("data")
    exits = predicted(own, data, "--at", id)
    counts = np.bincount(np.array(exits) - 1, minlength=12).tolist()
    assert counts == kept(own)[id]["measured"]["dev"]["exits"]


@pytest.mark.parametrize("agent", ["entropy", "patience", "random", "reinforce", "sb3:dqn"])
def test_every_agent_has_more_than_one_speed(tmp_path, agent) -> None:
    recording = write_recording(tmp_path / "r")
    train = f"train EarlyExit --trace {recording} --agent {agent} --total-timesteps 200"
    main([*train.split(), "--output", "run"])
    for option in (("--threshold", "0.4"), ("--saved-layers", "0.1"), ("--points-lost", "5")):
        main(["evaluate", "run", *option])
    assert {"threshold-0.4", "saved-0.1", "lost-5"} <= set(kept(Path("run")))


def test_a_price_is_a_speed_of_an_agent_that_learned_for_a_range(tmp_path, capsys) -> None:
    recording = write_recording(tmp_path / "r", n=100)
    train = f"train EarlyExit --trace {recording} --agent expected-return --total-timesteps 200"
    main([*train.split(), "--alpha", "0", "0.1", "--output", "run"])
    main(["evaluate", "run", "--alpha", "0.02"])
    out = capsys.readouterr().out
    assert re.search(r"^alpha-0.02: alpha 0.02 +0.5 at alpha 0.02 ", out, re.MULTILINE)
    assert kept(Path("run"))["alpha-0.02"]["alpha"] == 0.02
    promise = ("--guarantee", "harm", "--epsilon", "0.2", "--alpha", "0.02")
    main(["evaluate", "run", *promise])
    assert kept(Path("run"))["harm-0.2-0.05-alpha-0.02"]["alpha"] == 0.02
    assert kept(Path("run"))["own"]["alpha"] == 0.05
    main([*train.split(), "--output", "one-price"])
    assert "learned for one price" in refused(capsys, "evaluate", "one-price", "--alpha", "0.02")


def test_two_speeds_are_refused(run, capsys) -> None:
    two = ("--threshold", "0.5", "--saved-layers", "0.5")
    for command in ("evaluate", "predict", "serve"):
        message = refused(capsys, command, str(run), *two)
        assert message == (
            "cee-gym: threshold and saved_layers each choose a speed: give only one of them"
        )
    message = refused(capsys, "profile", str(run), "--policy", str(run), *two)
    assert "each choose a speed" in message
    message = refused(capsys, "evaluate", str(run), "--guarantee", "harm", "--points-lost", "1")
    assert "leave --points-lost out" in message
    assert "kept already" in refused(capsys, "evaluate", str(run), "--at", "lost-1")


def test_an_unknown_point_names_the_nearest(run, capsys) -> None:
    for command in (("predict",), ("serve",), ("profile", "--policy", str(run))):
        message = refused(capsys, command[0], str(run), *command[1:], "--at", "lots-1")
        assert message.startswith("cee-gym: no point 'lots-1': did you mean lost-1")


def test_predict_leaves_where_the_evaluation_of_the_point_says(own, run) -> None:
    main(["evaluate", str(own)])
    opened = Run.open(own)
    dev = opened.problem("dev")
    for id in ("own", "lost-1", "lost-2"):
        policy = opened.points[id]
        expected = policy.exit_layers(policy.scores_on(dev)).tolist()
        assert predicted(own, run.with_name("data"), "--at", id) == expected
        counts = np.bincount(np.array(expected) - 1, minlength=12).tolist()
        assert counts == kept(own)[id]["measured"]["dev"]["exits"]
    assert predicted(own, run.with_name("data")) == predicted(
        own, run.with_name("data"), "--at", "own"
    )


def test_a_budget_is_the_same_policy_in_predict_in_python_and_in_a_request(run) -> None:
    data = run.with_name("data")
    texts = [json.loads(line)["text"] for line in (data / "dev.jsonl").read_text().splitlines()]
    expected = predicted(run, data, "--saved-layers", "0.3")
    assert 1 - np.mean(predicted(run, data, "--saved-layers", "0.5")) / 12 >= 0.3
    pipeline = EarlyExitPipeline.from_pretrained(run, saved_layers=0.3)
    assert [result["exit_layer"] for result in pipeline(texts)] == expected
    served = EarlyExitPipeline.from_pretrained(run)
    assert served.at(Speed(saved_layers=0.3)).policy.threshold == pipeline.policy.threshold
    with TestClient(make_app(served)) as client:
        answer = client.post("/predict", json={"texts": texts, "saved_layers": 0.3})
        at = client.post("/predict", json={"texts": texts, "at": "lost-1"})
    assert [one["exit_layer"] for one in answer.json()["predictions"]] == expected
    assert [one["exit_layer"] for one in at.json()["predictions"]] == predicted(
        run, data, "--at", "lost-1"
    )


def test_a_saved_pipeline_has_the_points_of_its_run(own, run) -> None:
    main(["evaluate", str(own), "--threshold", "0.8"])
    EarlyExitPipeline.from_pretrained(own).save_pretrained("saved")
    for speed in (("--at", "threshold-0.8"), ("--at", "lost-1"), ("--saved-layers", "0.3")):
        data = run.with_name("data")
        assert predicted(Path("saved"), data, *speed) == predicted(own, data, *speed)


def test_profile_measures_the_policy_at_the_point(own, run, capsys) -> None:
    main(["evaluate", str(own), "--threshold", "0.99"])
    capsys.readouterr()
    recording = own / "round-0" / "recording"
    sizes = ("--batch-sizes", "1", "2", "--lengths", "8", "16", "--seconds", "0.1")
    profile = ("profile", str(own), "--policy", str(own), "--trace", str(recording), *sizes)
    speedups = []
    for id in ("threshold-0.99", "own"):
        main([*profile, "--at", id])
        (found,) = re.findall(r"layer speed-up ([0-9.]+)x", capsys.readouterr().out)
        assert float(found) == pytest.approx(
            kept(own)[id]["measured"]["dev"]["layer_speedup"], abs=0.006
        )
        speedups.append(float(found))
    assert speedups[1] > speedups[0]


@pytest.mark.parametrize("file", ["config.json", "points.json", "round-0/agent/policy.json"])
def test_a_damaged_file_is_one_line(own, capsys, file) -> None:
    (own / file).write_text("{")
    for command in ("evaluate", "predict", "serve"):
        if command == "evaluate" and file == "points.json":
            continue
        assert str(own / file) in refused(capsys, command, str(own))


def test_damaged_points_are_not_written_over(own, capsys) -> None:
    (own / "points.json").write_text("{")
    assert str(own / "points.json") in refused(capsys, "evaluate", str(own))
    assert (own / "points.json").read_text() == "{"


def test_a_damaged_saved_pipeline_is_one_line(run, capsys) -> None:
    EarlyExitPipeline.from_pretrained(run).save_pretrained("saved")
    for file in ("pipeline.json", "policy/policy.json"):
        whole = Path("saved", file).read_text()
        for content in ("{", "[]", "{}", '{"version": 2}'):
            Path("saved", file).write_text(content)
            assert str(Path("saved", file).parent) in refused(capsys, "predict", "saved")
        Path("saved", file).write_text(whole)
