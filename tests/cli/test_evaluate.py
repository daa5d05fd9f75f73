"""`cee-gym evaluate`: the table, the operating points that are kept, and what is missing."""

import json
import shutil
from pathlib import Path

import gymnasium as gym
import pytest

from cee_gym import Problem, Reward
from cee_gym.agents.presets import OBSERVE
from cee_gym.cli import main
from cee_gym.traces.recordings import open_split
from tests.cli.commands import CLAUSES, refused
from tests.made_profile import made_profile
from tests.made_traces import write_recording


def test_envs_lists_what_is_recorded_and_what_there_is_to_gain(own_home, capsys) -> None:
    write_recording(own_home / "EarlyExit-BERT-MRPC")
    main(["envs"])
    listed = capsys.readouterr().out
    assert "train 40, calibration 40, dev 40" in listed
    headroom = listed[listed.index("mean return on dev") :].splitlines()
    assert headroom[0].split()[-4:] == ["threshold", "learned", "bound", "hindsight"]
    rows = {line.split()[0]: line.split()[1:] for line in headroom[2:7]}
    assert list(rows) == [
        *("BERT-RTE", "BERT-MRPC", "BERT-SST-2", "ToyBERT-Clauses", "TinyLLaMA-Stories")
    ]
    env = gym.make("EarlyExit-BERT-MRPC", split="dev", observe=OBSERVE)
    found = env.unwrapped.headroom()
    assert rows["BERT-MRPC"] == [
        *(f"{found.full_depth.mean_return:.3f}", f"{found.fixed_layer.mean_return:.3f}"),
        *(f"{found.threshold.mean_return:.3f}", f"{found.learned.mean_return:.3f}", "±"),
        *(f"{found.learned.error:.3f}", f"{found.bound.mean_return:.3f}"),
        f"{found.hindsight.mean_return:.3f}",
    ]
    main(["envs", "--no-headroom"])
    assert capsys.readouterr().out == listed[: listed.index("\nmean return on dev")]


def test_build_train_evaluate(data, own_home, capsys) -> None:
    main(["build", CLAUSES, "--data", str(data)])
    recording = own_home / CLAUSES
    assert f"gym.make('{CLAUSES}', trace='{recording}')" in capsys.readouterr().out
    assert gym.make(CLAUSES, trace=recording).reset(seed=0)[0].shape == (64 + 12,)
    assert not list(own_home.glob("*.build"))

    settings = ("--total-timesteps", "3000", "--alpha", "0.05", "--trace", str(recording))
    run = ["train", CLAUSES, "--output", "runs/one", *settings]
    main(run)
    out = capsys.readouterr().out
    for row in ("full depth", "fixed layer 11", "own: its own speed", "hindsight"):
        assert row in out
    main(["evaluate", "runs/one"])
    again = capsys.readouterr().out
    assert out.splitlines()[:10] == again.splitlines()[:10]
    results = json.loads(Path("runs/one/evaluation.json").read_text())
    assert results["split"] == "dev"
    assert results["rows"] == 60
    assert Path("runs/one/evaluation.png").stat().st_size > 10_000
    assert "holds a run already" in refused(capsys, *run)
    assert "holds a recording already" in refused(capsys, "build", CLAUSES, "--data", str(data))


def test_evaluate_names_what_is_missing(tmp_path, capsys) -> None:
    assert "no run at" in refused(capsys, "evaluate", "nothing")
    recording = write_recording(tmp_path / "r")
    main(f"train EarlyExit --trace {recording} --output run --total-timesteps 500".split())
    capsys.readouterr()
    assert "no split 'test'" in refused(capsys, "evaluate", "run", "--split", "test")
    file = recording / "dev" / "states.npy"
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    file.write_bytes(damaged)
    assert "checksum" in refused(capsys, "evaluate", "run")
    shutil.rmtree(recording)
    assert "neither a recording nor a trace" in refused(capsys, "evaluate", "run")
    write_recording(recording, n=30)
    assert "recorded again" in refused(capsys, "evaluate", "run")
    Path("run/config.json").write_text("{}")
    assert "run/config.json is damaged" in refused(capsys, "evaluate", "run")


def test_a_run_is_evaluated_from_any_directory(tmp_path, monkeypatch, capsys) -> None:
    write_recording(tmp_path / "r")
    train = "train EarlyExit --trace r --output run --total-timesteps 500"
    main(train.split())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    main(["evaluate", "../run"])
    assert "hindsight" in capsys.readouterr().out


def test_a_profile_is_the_price_of_training_and_evaluation(tmp_path, monkeypatch, capsys) -> None:
    write_recording(tmp_path / "r")
    made_profile().save(tmp_path / "profile.json")
    command = "train EarlyExit --trace r --output run --hardness none --total-timesteps 500"
    train = [*command.split(), "--cost", "profile.json"]
    main(train)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    main(["evaluate", "../run"])
    monkeypatch.chdir(tmp_path)
    dev = open_split("r", "dev")
    reward = Reward(hardness=None, cost="profile.json")
    expected = Problem(dev, reward).rewards(0.01)[:, 0].mean()
    for file in ("run/round-0/evaluation.json", "run/evaluation.json"):
        results = json.loads(Path(file).read_text())
        assert results["fixed_layers"][0]["mean_return"] == pytest.approx(expected)
        assert not results["deterministic"]
    layers = Problem(dev, Reward(hardness=None))
    assert expected != pytest.approx(layers.rewards(0.01)[:, 0].mean())

    assert "another problem, cost" in refused(capsys, *command.split(), "--resume")
    made_profile(typical=(32, 100)).save(tmp_path / "profile.json")
    assert "another cost" in refused(capsys, *train, "--resume")
    assert "measured again" in refused(capsys, "evaluate", "run")
    other = ("train", "EarlyExit-BERT-RTE", "--output", "other", "--cost", "profile.json")
    assert "cost must be 12 finite numbers, one per layer" in refused(capsys, *other)
    (tmp_path / "profile.json").unlink()
    assert "profile.json' is unknown" in refused(capsys, *train, "--resume")
    assert "profile.json' is unknown" in refused(capsys, "evaluate", "run")
