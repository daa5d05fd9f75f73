"""`cee-gym train`: what is given wins over the preset, and what is wrong is refused before work."""

import json
import statistics
from pathlib import Path

import pytest

from cee_gym.agents import Reinforce
from cee_gym.agents.registry import agent_names, preset_for
from cee_gym.cli import main
from tests.cli.commands import CLAUSES, interrupt, refused
from tests.made_traces import write_recording


def test_policy_and_backbone_in_turn(data, capsys) -> None:
    run = [
        *("train", CLAUSES, "--data", str(data), "--rounds", "1", "--output", "runs/turn"),
        *("--agent", "expected-return", "--total-timesteps", "3000", "--folds", "2"),
        *("--set", "learning_rate=0.001"),
    ]
    main(run)
    assert "own: its own speed" in capsys.readouterr().out
    assert Path("runs/turn/round-1/models/deployed/model.safetensors").exists()
    main(["evaluate", "runs/turn"])
    config = json.loads(Path("runs/turn/config.json").read_text())
    assert config["hyperparameters"]["learning_rate"] == 0.001
    assert config["alternation"]["rounds"] == 1


def test_the_shipped_benchmark_trains_without_any_weights(capsys) -> None:
    main(["train", "EarlyExit-BERT-RTE", "--rounds", "0", "--total-timesteps", "2000"])
    assert "full depth" in capsys.readouterr().out
    assert Path("runs/EarlyExit-BERT-RTE-reinforce-seed0/round-0/agent/agent.json").exists()


def test_what_would_be_left_unused_is_refused(data, capsys) -> None:
    message = refused(capsys, "train", "EarlyExit-BERT-RTE", "--data", str(data))
    assert "give --backbone too" in message
    message = refused(capsys, "train", "EarlyExit-BERT-RTE", "--backbone", "x", "--trace", "y")
    assert "only one" in message
    for option, value in (("pooling", "mean"), ("max-tokens", "64"), ("folds", "5")):
        message = refused(capsys, "train", "EarlyExit-BERT-RTE", f"--{option}", value)
        assert f"{option.replace('-', '_')} {value} is for a backbone" in message
    message = refused(capsys, "train", "EarlyExit-BERT-RTE", "--pooler", "per_layer")
    assert "pooler per_layer is for recipe paper" in message


def test_a_run_that_cannot_be_written_is_refused(tmp_path, capsys) -> None:
    (tmp_path / "file").write_text("")
    refused(capsys, "train", "EarlyExit-BERT-RTE", "--output", "file")


def test_rounds_without_backbone_are_refused_with_the_command(capsys) -> None:
    message = refused(capsys, "train", "EarlyExit-BERT-RTE", "--rounds", "2")
    assert "--backbone NAME_OR_PATH --data" in message


def test_rounds_over_a_trace_are_refused_with_a_command_that_runs(capsys, tmp_path) -> None:
    write_recording(tmp_path / "mine")
    message = refused(
        capsys, "train", "EarlyExit", "--trace", str(tmp_path / "mine"), "--rounds", "1"
    )
    assert "cee-gym train ID --rounds 1 --backbone" in message


def test_an_unrecorded_benchmark_names_the_command_that_records_it(capsys) -> None:
    assert "cee-gym build EarlyExit-BERT-QNLI --backbone" in refused(
        capsys, "train", "EarlyExit-BERT-QNLI"
    )


def test_numbers_out_of_range_are_refused(capsys) -> None:
    rte = ("train", "EarlyExit-BERT-RTE", "--output", "run")
    for option, value, said in (
        ("alpha", "-1", "alpha must be from 0 to 1e+06"),
        ("alpha", "1e308", "alpha must be from 0 to 1e+06"),
        ("alpha", "nan", "alpha must be from 0 to 1e+06"),
        ("seed", f"{10**30}", "seed must be 0 to 4294967295"),
        ("seeds", f"{10**30}", "seed must be 0 to 4294967295"),
        ("set", "seed=1e30", "seed must be 0 to 4294967295"),
        ("folds", "10000000000000", "folds must be 2 to 1000"),
        ("quality", "correctnes", "did you mean correctness"),
        ("hardness", "nobody", "unknown hardness"),
        ("cost", "layer", "cost 'layer' is unknown"),
        ("total-timesteps", "0", "total_timesteps must be at least 1"),
        ("total-timesteps", f"{10**30}", "total_timesteps must be 1 to 1000000000000"),
        ("rounds", f"{10**30}", "rounds must be 0 to 1000000000000"),
        ("warm-up.epochs", f"{10**30}", "warm_up.epochs must be 0 to 1000000000000"),
        ("warm-up.learning-rate", "1e308", "warm_up.learning_rate must be 0 to 1000000000000"),
        ("adapter-rank", f"{10**30}", "adapter_rank must be 0 to 65536"),
        ("set", "learning_rate=1e308", "learning_rate must be 0 to 1000000000000"),
        ("set", "batch_size=1e30", "batch_size must be 1 to 1000000000000"),
    ):
        assert said in refused(capsys, *rte, f"--{option}", value), option
    assert "seed must be 0 to" in refused(capsys, *rte, "--seeds", "0", f"{10**30}")
    assert not Path("run").exists()
    assert "rollouts must be 2 to" in refused(
        capsys, "train", "EarlyExit-BERT-RTE", "--set", "rollouts=1"
    )
    assert "backbone_phase.batch_size must be at least 1" in refused(
        capsys, "train", CLAUSES, "--rounds", "1", "--backbone-phase.batch-size", "0"
    )
    assert "did you mean hidden" in refused(
        capsys, "train", "EarlyExit-BERT-RTE", "--observe", "hiden"
    )


def test_a_recording_of_ones_own_trains_by_the_plain_id(tmp_path, capsys) -> None:
    recording = write_recording(tmp_path / "r")
    main(["train", "EarlyExit", "--trace", str(recording), "--output", "own"])
    assert "hindsight" in capsys.readouterr().out
    assert "give --trace" in refused(capsys, "train", "EarlyExit")
    message = refused(capsys, "train", "EarlyExit-BERT-RTE", "--trace", str(recording))
    assert "is of task made-up, not rte: cee-gym train EarlyExit --trace" in message


def test_every_agent_trains_with_its_preset_alone(tmp_path, capsys) -> None:
    train = f"train EarlyExit --trace {write_recording(tmp_path / 'r')} --total-timesteps 500"
    for agent in agent_names():
        main([*train.split(), "--agent", agent])
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith(f"{agent} ")
        assert any(line.startswith("own: its own speed") for line in lines)
    main(["agents"])
    listed = capsys.readouterr().out
    assert all(f"\n{agent}\n" in f"\n{listed}" for agent in agent_names())


def test_what_is_given_wins_over_the_preset(tmp_path, capsys) -> None:
    train = f"train EarlyExit --trace {write_recording(tmp_path / 'r')} --output".split()
    main([*train, "preset"])
    own = ["--observe", "hidden", "layer", "--total-timesteps", "500"]
    main([*train, "own", *own, "--set", "weight_decay=0", "--set", "hidden_width=4"])
    preset, own = (json.loads(Path(run, "config.json").read_text()) for run in ("preset", "own"))
    known = preset_for("reinforce")
    assert preset["problem"]["observe"] == list(known.observe)
    assert preset["total_timesteps"] == known.total_timesteps
    assert preset["hyperparameters"].items() >= known.hyperparameters.items()
    assert own["problem"]["observe"] == ["hidden", "layer"]
    assert own["total_timesteps"] == 500
    assert own["hyperparameters"]["weight_decay"] == 0.0
    assert own["hyperparameters"]["hidden_width"] == 4
    # What it cannot observe it does not start from, unless that is asked for.
    assert own["hyperparameters"]["start"] == "equally_likely"
    message = refused(
        capsys, *train, "x", "--observe", "hidden", "layer", "--set", "start=confidence"
    )
    assert "observe 'confidence'" in message
    assert "reads probs" in refused(
        capsys, *train, "x", "--agent", "patience", "--observe", "layer"
    )


def test_a_range_of_prices_is_observed(tmp_path) -> None:
    recording = write_recording(tmp_path / "r")
    train = f"train EarlyExit --trace {recording} --total-timesteps 500 --alpha 0 0.1"
    main([*train.split(), "--output", "run"])
    assert json.loads(Path("run/config.json").read_text())["problem"]["observe"][-1] == "alpha"


def test_several_seeds_are_one_run_each_and_a_table(tmp_path, monkeypatch, capsys) -> None:
    train = (
        f"train EarlyExit --trace {write_recording(tmp_path / 'r')} --total-timesteps 2000 "
        "--set start=equally_likely --set learning_rate=0.01 --set batch_size=8"
    )
    several = [*train.split(), "--output", "all", "--seeds", "3", "1"]
    learn, learned = Reinforce.learn, []

    def stop_at_the_second(self, *args, **kwargs):
        learned.append(self.seed)
        return interrupt() if self.seed == 1 else learn(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Reinforce, "learn", stop_at_the_second)
        with pytest.raises(SystemExit):
            main(several)
        assert "holds a run already" in refused(capsys, *several)
    main([*several, "--resume"])
    with monkeypatch.context() as patch:
        patch.setattr(Reinforce, "learn", interrupt)
        main([*several, "--resume"])  # nothing is left to learn
    assert learned == [3, 1]
    table = capsys.readouterr().out.splitlines()
    runs = []
    for seed in (3, 1):
        main([*train.split(), "--output", f"one-{seed}", "--seed", str(seed)])
        run = json.loads(Path(f"all/seed-{seed}/round-0/evaluation.json").read_text())
        assert run == json.loads(Path(f"one-{seed}/round-0/evaluation.json").read_text())
        runs.append(run["points"]["own"]["measured"]["dev"])
    returns = [run["mean_return"] for run in runs]
    mean, spread = statistics.mean(returns), statistics.stdev(returns)
    assert spread > 0
    (row,) = {line for line in table if line.startswith("own: its own speed")}
    assert row.endswith(f"{mean:.4f} ± {spread:.4f}")
    written = json.loads(Path("all/seeds.json").read_text())
    assert written["seeds"] == [3, 1]
    figures = written["rows"]["own: its own speed"]
    assert figures["mean_return"] == pytest.approx({"mean": mean, "spread": spread})
    assert "twice" in refused(capsys, *train.split(), "--seeds", "1", "1")
    assert "leave --set seed out" in refused(
        capsys, *train.split(), "--seeds", "1", "2", "--set", "seed=0"
    )
