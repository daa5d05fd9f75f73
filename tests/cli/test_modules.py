"""What is in a module of the user's own is found by its name, and again in other processes."""

import json
from pathlib import Path

import pytest

from cee_gym.traces.recordings import shipped_backbone
from tests.cli.commands import CLAUSES, installed, refused
from tests.made_traces import write_recording

MINE = """
from dataclasses import dataclass

import numpy as np

from cee_gym import register_observation, register_policy, register_quality
from cee_gym.policies.rules import Rule
from cee_gym.settings import number


@register_policy("ratio")
@dataclass(kw_only=True)
class Ratio(Rule):
    threshold: float = number(0.5, 0, 1)
    reads = ("probs",)

    def scores(self, observations, layout):
        best = np.sort(observations[..., layout["probs"]], axis=-1)
        return 1 - best[..., -2] / best[..., -1]


@register_observation("runner_up", width=1, low=0.0, high=0.5)
def runner_up(seen):
    return seen.xp.sort(seen.probs, axis=-1)[..., -2:-1]


@register_quality("probability", low=0.0, high=1.0)
def probability(exits):
    return np.exp(-exits.loss)
"""

TASK = """
from cee_gym.envs import register_benchmark
from cee_gym.tasks import Task, register_task

register_task(Task("polite", ("negative", "positive"), "text", metrics=("macro_f1",)))
register_benchmark("EarlyExit-BERT-Polite", "polite")
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def test_a_rule_of_ones_own_is_trained_evaluated_and_deployed(mine, data) -> None:
    text = ("--backbone", str(shipped_backbone(CLAUSES)), "--data", str(data))
    train = ("train", CLAUSES, *text, "--policy-data", "fitted", "--agent", "mine:ratio")
    out = installed(*train, "--set", "threshold=0.7", "--output", "run")
    assert out.startswith("ratio ")
    assert json.loads(Path("run/config.json").read_text())["agent"] == "mine:ratio"
    for file, key in (("agent.json", "agent"), ("policy.json", "score")):
        assert json.loads(Path("run/round-0/agent", file).read_text())[key] == "mine:ratio"
    assert "\nlost-1: " in installed("evaluate", "run")
    points = json.loads(Path("run/points.json").read_text())["points"]
    assert points["own"]["threshold"] == 0.7
    lines = installed("predict", "run", "--input", str(data / "dev.jsonl")).splitlines()
    exits = [json.loads(line)["exit_layer"] for line in lines]
    counts = [exits.count(layer) for layer in range(1, 13)]
    assert counts == points["own"]["measured"]["dev"]["exits"]
    mine.unlink()
    message = installed("evaluate", "run", code=2)
    assert message.startswith("cee-gym: ")
    assert "module mine cannot be imported" in message


def test_a_quality_and_a_part_of_ones_own_are_found_again(mine, data, tmp_path) -> None:
    text = ("--backbone", str(shipped_backbone(CLAUSES)), "--data", str(data))
    settings = ("--quality", "mine:probability", "--observe", "hidden", "layer", "mine:runner_up")
    few = ("--total-timesteps", "500", "--policy-data", "fitted", "--output", "run")
    installed("train", CLAUSES, *text, *settings, *few)
    problem = json.loads(Path("run/config.json").read_text())["problem"]
    assert problem["quality"] == "mine:probability"
    assert problem["observe"] == ["hidden", "layer", "mine:runner_up"]
    assert list(json.loads(Path("run/round-0/agent/policy.json").read_text())["layout"]) == [
        *("hidden", "layer", "mine:runner_up")
    ]
    assert "hindsight" in installed("evaluate", "run")
    points = json.loads(Path("run/points.json").read_text())["points"]
    lines = installed("predict", "run", "--at", "lost-1", "--input", str(data / "dev.jsonl"))
    exits = [json.loads(line)["exit_layer"] for line in lines.splitlines()]
    counts = [exits.count(layer) for layer in range(1, 13)]
    assert counts == points["lost-1"]["measured"]["dev"]["exits"]


def test_a_run_with_a_quality_of_ones_own_is_resumed(mine, tmp_path) -> None:
    recording = write_recording(tmp_path / "r")
    train = ("train", "EarlyExit", "--trace", str(recording), "--agent", "mine:ratio")
    quality = ("--quality", "mine:probability", "--output", "run")
    first = installed(*train, *quality)
    assert installed(*train, *quality, "--resume") == first


def test_what_a_module_does_not_hold_is_one_line(mine, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    recording = write_recording(tmp_path / "r")
    train = ("train", "EarlyExit", "--trace", str(recording), "--output", "run")
    assert "unknown agent 'margn' in mine" in refused(capsys, *train, "--agent", "mine:margn")
    assert "unknown quality 'x' in mine" in refused(capsys, *train, "--quality", "mine:x")
    assert "nowhere cannot be imported" in refused(capsys, *train, "--observe", "nowhere:x")
    assert not Path("run").exists()


def test_a_task_of_ones_own_is_built_trained_evaluated_and_deployed(data, own_home) -> None:
    Path("mine.py").write_text(TASK)
    text = ("--backbone", str(shipped_backbone(CLAUSES)), "--data", str(data))
    out = installed("build", "mine:EarlyExit-BERT-Polite", *text, "--policy-data", "fitted")
    assert "gym.make('mine:EarlyExit-BERT-Polite')" in out
    recorded = own_home / "EarlyExit-BERT-Polite"
    for file in ("recording.json", "train/header.json"):
        assert json.loads((recorded / file).read_text())["task"] == "mine:polite"
    few = ("--total-timesteps", "500", "--output")
    out = installed("train", "EarlyExit", "--trace", str(recorded), *few, "runs/by-trace")
    assert "macro_f1" in out
    assert "macro_f1" in installed("train", "mine:EarlyExit-BERT-Polite", *few, "runs/by-id")
    assert "macro_f1" in installed("evaluate", "runs/by-id")
    lines = installed("predict", "runs/by-id", "--input", str(data / "dev.jsonl")).splitlines()
    assert {json.loads(line)["given_label"] for line in lines} == {"negative", "positive"}
