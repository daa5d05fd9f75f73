"""The command line end to end, and one clear line with exit code 2 for what is wrong."""

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import cee_gym
from cee_gym.agents import Reinforce
from cee_gym.agents.presets import preset_for
from cee_gym.cli import main
from cee_gym.cli.arguments import parse_settings
from cee_gym.errors import CeeGymError
from tests.made_traces import write_recording
from tests.test_cost import made_up

CLAUSES = "EarlyExit-ToyBERT-Clauses"


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("CEE_GYM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def data(tmp_path) -> Path:
    """A few sentences of Clauses as files, so that runs take seconds."""
    from cee_gym.tasks.clauses import sentences

    directory = tmp_path / "data"
    directory.mkdir()
    for split, n, seed in (("train", 120, 5), ("dev", 60, 6)):
        rows = sentences(n, seed)
        lines = [
            json.dumps({"text": text, "label": label})
            for text, label in zip(rows["text"], rows["label"], strict=True)
        ]
        (directory / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return directory


def refused(capsys, *args: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(list(args))
    assert stop.value.code == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("cee-gym: ")
    return message


def test_build_train_evaluate(data, own_home, capsys) -> None:
    main(["build", CLAUSES, "--data", str(data)])
    assert f"gym.make('{CLAUSES}')" in capsys.readouterr().out
    assert gym.make(CLAUSES).reset(seed=0)[0].shape == (64 + 12,)
    assert not list(own_home.glob("*.build"))
    main(["envs"])
    listed = capsys.readouterr().out
    assert "train 120" not in listed
    assert "calibration 18, dev 60" in listed

    run = ["train", CLAUSES, "--output", "runs/one", "--total-timesteps", "3000", "--alpha", "0.05"]
    main(run)
    out = capsys.readouterr().out
    for row in ("full depth", "fixed layer 11", "reinforce, p > 1/2", "hindsight"):
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


def test_policy_and_backbone_in_turn(data, capsys) -> None:
    run = [
        *("train", CLAUSES, "--data", str(data), "--rounds", "1", "--output", "runs/turn"),
        *("--agent", "expected-return", "--total-timesteps", "3000", "--folds", "2"),
        *("--set", "learning_rate=0.001"),
    ]
    main(run)
    assert "expected-return, p > 1/2" in capsys.readouterr().out
    assert Path("runs/turn/round-1/models/deployed/model.safetensors").exists()
    main(["evaluate", "runs/turn"])
    config = json.loads(Path("runs/turn/config.json").read_text())
    assert config["hyperparameters"]["learning_rate"] == 0.001
    assert config["alternation"]["rounds"] == 1


def test_the_shipped_benchmark_trains_without_any_weights(capsys) -> None:
    main(["train", "EarlyExit-BERT-RTE", "--rounds", "0", "--total-timesteps", "2000"])
    assert "full depth" in capsys.readouterr().out
    assert Path("runs/EarlyExit-BERT-RTE-reinforce-seed0/round-0/agent/agent.json").exists()


def test_a_build_beside_a_shipped_recording_says_how_to_open_it(data, capsys) -> None:
    main(["build", CLAUSES, "--data", str(data), "--output", "mine"])
    assert f"gym.make('{CLAUSES}', trace='mine')" in capsys.readouterr().out
    assert gym.make(CLAUSES, trace="mine", split="dev").unwrapped.num_instances == 60


def test_a_benchmark_of_ones_own_is_found_by_its_module_in_other_processes(data, own_home) -> None:
    Path("mine.py").write_text(
        "from cee_gym.envs import register_benchmark\n"
        "from cee_gym.tasks import Task, register_task\n"
        "task = Task('polite', ('rude', 'polite'), 'text', metrics=('macro_f1',))\n"
        "register_task(task)\n"
        "register_benchmark('EarlyExit-Polite', 'polite')\n"
    )
    backbone = Path(cee_gym.__file__).parent / "shipped" / CLAUSES / "backbone"
    text = ("--backbone", str(backbone), "--data", str(data))
    out = installed("build", "mine:EarlyExit-Polite", *text)
    assert "gym.make('mine:EarlyExit-Polite')" in out
    recorded = own_home / "EarlyExit-Polite"
    for file in ("recording.json", "train/header.json"):
        assert json.loads((recorded / file).read_text())["task"] == "mine:polite"
    few = ("--total-timesteps", "500", "--output")
    out = installed("train", "EarlyExit", "--trace", str(recorded), *few, "runs/by-trace")
    assert "macro_f1" in out
    assert "macro_f1" in installed("train", "mine:EarlyExit-Polite", *few, "runs/by-id")


def installed(*args: str) -> str:
    """What the installed program, which does not look for modules here by itself, prints."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "cee_gym", *args],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_ctrl_c_leaves_a_build_that_goes_on(data, own_home, monkeypatch, capsys) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("cee_gym.training.phases.write_rows", _interrupt)
        with pytest.raises(SystemExit) as stop:
            main(["build", CLAUSES, "--data", str(data)])
    assert stop.value.code == 130
    assert "To go on" in capsys.readouterr().err
    main(["build", CLAUSES, "--data", str(data)])
    assert gym.make(CLAUSES).unwrapped.num_instances > 0
    main(["build", CLAUSES, "--data", str(data), "--output", "whole"])
    here, whole = (
        cee_gym.Trace.open(Path(path) / "train") for path in (own_home / CLAUSES, "whole")
    )
    assert here.fingerprint == whole.fingerprint


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("build ID", "what is done is kept. To go on: cee-gym build ID"),
        (
            "predict m --output out",
            "what is done is kept. To go on: cee-gym predict m --output out --resume",
        ),
        ("profile m", "nothing is kept"),
        ("evaluate run", "nothing is kept"),
        ("export m --output out", "what there is in out is not complete: export to another"),
    ],
)
def test_ctrl_c_says_what_is_kept(command, message, monkeypatch, capsys) -> None:
    name = command.split()[0]
    monkeypatch.setattr(f"cee_gym.cli.{name.title()}.run", _interrupt)
    with pytest.raises(SystemExit) as stop:
        main(command.split())
    assert stop.value.code == 130
    assert f"\nstopped; {message}" in capsys.readouterr().err


def test_a_file_that_cannot_be_made_is_one_line(monkeypatch, capsys) -> None:
    monkeypatch.setattr("cee_gym.cli.Profile.run", lambda self: Path("no/where").write_text(""))
    assert "No such file or directory: 'no/where'" in refused(capsys, "profile", "m")


def test_a_build_stopped_at_its_very_end_only_takes_its_place(data, own_home, monkeypatch) -> None:
    rename = Path.rename

    def stop_at_the_last(self, target):
        if Path(target).name == CLAUSES:
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", stop_at_the_last)
        with pytest.raises(SystemExit):
            main(["build", CLAUSES, "--data", str(data)])
    main(["build", CLAUSES, "--data", str(data)])
    assert (own_home / CLAUSES / "models" / "deployed").is_dir()
    assert not list(own_home.glob("*.build"))


def test_a_stopped_build_does_not_go_on_with_other_text(data, monkeypatch, capsys) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("cee_gym.training.phases.write_rows", _interrupt)
        with pytest.raises(SystemExit):
            main(["build", CLAUSES, "--data", str(data)])
    lines = (data / "train.jsonl").read_text().splitlines()
    (data / "train.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    assert "another text" in refused(capsys, "build", CLAUSES, "--data", str(data))


@pytest.mark.parametrize("place", [".", "file", "file/inside", "full"])
def test_a_build_does_not_begin_where_it_could_not_end(tmp_path, data, capsys, place) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    refused(capsys, "build", CLAUSES, "--data", str(data), "--output", place)
    assert not list(tmp_path.glob("*.build"))
    assert (tmp_path / "full" / "mine").exists()


def test_what_would_be_left_unused_is_refused(data, capsys) -> None:
    message = refused(capsys, "train", "EarlyExit-BERT-RTE", "--data", str(data))
    assert "give --backbone too" in message
    message = refused(capsys, "train", "EarlyExit-BERT-RTE", "--backbone", "x", "--trace", "y")
    assert "only one" in message
    for option, value in (("pooler", "per_layer"), ("max-tokens", "64"), ("folds", "5")):
        message = refused(capsys, "train", "EarlyExit-BERT-RTE", f"--{option}", value)
        assert f"{option.replace('-', '_')} {value} is for a backbone" in message


def test_a_run_that_cannot_be_written_is_refused(tmp_path, capsys) -> None:
    (tmp_path / "file").write_text("")
    refused(capsys, "train", "EarlyExit-BERT-RTE", "--output", "file")


def _interrupt(*args: object, **kwargs: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_a_killed_build_goes_on_and_leaves_no_half_trace(data, own_home) -> None:
    command = [sys.executable, "-m", "cee_gym", "build", CLAUSES]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    partial = own_home / f"{CLAUSES}.build" / "recording.partial"
    for _ in range(600):
        if list(partial.glob("*.partial")):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (own_home / CLAUSES).exists()
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
    trace = cee_gym.Trace.open(own_home / CLAUSES / "train")
    trace.verify()
    assert np.isfinite(trace.loss).all()


def test_unknown_ids_agents_and_hyper_parameters_name_the_nearest(capsys) -> None:
    assert "did you mean EarlyExit-BERT-MRPC" in refused(
        capsys, "build", "EarlyExit-BERT-MRCP", "--backbone", "x"
    )
    assert "did you mean reinforce" in refused(
        capsys, "train", "EarlyExit-BERT-RTE", "--agent", "reinforc"
    )
    assert "learning_rate" in refused(
        capsys, "train", "EarlyExit-BERT-RTE", "--set", "learnin_rate=1"
    )
    assert "not of type float" in refused(
        capsys, "train", "EarlyExit-BERT-RTE", "--set", "learning_rate=fast"
    )
    assert "cannot be imported" in refused(capsys, "train", "no_such_module:EarlyExit-BERT-RTE")


def test_what_cannot_be_reached_says_the_ways_out(data, capsys) -> None:
    message = refused(
        capsys, "build", "EarlyExit-BERT-MRPC", "--backbone", "no-such/model", "--data", str(data)
    )
    assert "no column" in message
    message = refused(capsys, "build", "EarlyExit-BERT-MRPC", "--backbone", "no-such/model")
    for way in ("--data DIR", "hub can be reached", "cee-gym envs"):
        assert way in message
    message = refused(capsys, "build", CLAUSES, "--backbone", "no-such/model", "--data", str(data))
    for way in ("local directory", "hub can be reached", "cee-gym envs"):
        assert way in message


def test_rounds_without_backbone_are_refused_with_the_command(capsys) -> None:
    message = refused(capsys, "train", "EarlyExit-BERT-RTE", "--rounds", "2")
    assert "--backbone NAME_OR_PATH --data" in message


def test_an_unrecorded_benchmark_names_the_command_that_records_it(capsys) -> None:
    assert "cee-gym build EarlyExit-BERT-QNLI --backbone" in refused(
        capsys, "train", "EarlyExit-BERT-QNLI"
    )
    with pytest.raises(cee_gym.errors.CeeGymError, match="cee-gym build EarlyExit-ToyBERT-Clauses"):
        gym.make(CLAUSES)


def test_numbers_out_of_range_are_refused(capsys) -> None:
    assert "alpha must be at least 0" in refused(
        capsys, "train", "EarlyExit-BERT-RTE", "--alpha", "-1"
    )
    assert "at least 2" in refused(capsys, "train", "EarlyExit-BERT-RTE", "--set", "rollouts=1")
    assert "backbone.batch_size must be at least 1" in refused(
        capsys, "train", CLAUSES, "--rounds", "1", "--backbone.batch-size", "0"
    )
    assert "did you mean hidden" in refused(
        capsys, "train", "EarlyExit-BERT-RTE", "--observe", "hiden"
    )


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
    assert "no run at" in refused(capsys, "evaluate", "run")


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
    made_up().save(tmp_path / "profile.json")
    command = "train EarlyExit --trace r --output run --hardness none --total-timesteps 500"
    train = [*command.split(), "--cost", "profile.json"]
    main(train)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    main(["evaluate", "../run"])
    monkeypatch.chdir(tmp_path)
    settings = {"hardness": None, "split": "dev", "trace": "r"}
    table = gym.make("EarlyExit", cost="profile.json", **settings).unwrapped.table
    expected = table.rewards(0.035)[:, 0].mean()
    for file in ("run/round-0/evaluation.json", "run/evaluation.json"):
        results = json.loads(Path(file).read_text())
        assert results["fixed_layers"][0]["mean_return"] == pytest.approx(expected)
        assert not results["deterministic"]
    layers = gym.make("EarlyExit", **settings).unwrapped.table
    assert expected != pytest.approx(layers.rewards(0.035)[:, 0].mean())

    assert "another policy" in refused(capsys, *command.split(), "--resume")
    made_up(typical=(32, 100)).save(tmp_path / "profile.json")
    assert "another cost" in refused(capsys, *train, "--resume")
    assert "measured again" in refused(capsys, "evaluate", "run")
    other = ("train", "EarlyExit-BERT-RTE", "--output", "other", "--cost", "profile.json")
    assert "cost must be 6 finite numbers, one per layer" in refused(capsys, *other)
    (tmp_path / "profile.json").unlink()
    assert "profile.json' is unknown" in refused(capsys, *train, "--resume")
    assert "profile.json' is unknown" in refused(capsys, "evaluate", "run")


def test_a_backbone_for_other_labels_is_refused(tmp_path, data, capsys) -> None:
    backbone = Path(cee_gym.__file__).parent / "shipped" / CLAUSES / "backbone"
    three = tmp_path / "three"
    three.mkdir()
    for split in ("train", "dev"):
        rows = [f"{i}\tpremise\thypothesis\tneutral" for i in range(30)]
        text = "index\tpremise\thypothesis\tlabel\n" + "\n".join(rows) + "\n"
        (three / f"{split}.tsv").write_text(text)
    message = refused(
        capsys, "build", "EarlyExit-BERT-MNLI", "--backbone", str(backbone), "--data", str(three)
    )
    assert "has exits for the classes negative, positive, in this order, and task mnli" in message


def test_a_recording_of_ones_own_trains_by_the_plain_id(tmp_path, capsys) -> None:
    recording = write_recording(tmp_path / "r")
    main(["train", "EarlyExit", "--trace", str(recording), "--output", "own"])
    assert "hindsight" in capsys.readouterr().out
    assert "give --trace" in refused(capsys, "train", "EarlyExit")
    message = refused(capsys, "train", "EarlyExit-BERT-RTE", "--trace", str(recording))
    assert "is of task made-up, not rte: cee-gym train EarlyExit --trace" in message


def test_every_agent_trains_with_its_preset_alone(tmp_path, capsys) -> None:
    from cee_gym.agents import AGENTS

    train = f"train EarlyExit --trace {write_recording(tmp_path / 'r')} --total-timesteps 500"
    for agent in AGENTS:
        main([*train.split(), "--agent", agent])
        assert f"{agent}, p > 1/2" in capsys.readouterr().out
    main(["agents"])
    listed = capsys.readouterr().out
    assert all(f"\n{agent} " in f"\n{listed}" for agent in AGENTS)


def test_what_is_given_wins_over_the_preset(tmp_path, capsys) -> None:
    train = f"train EarlyExit --trace {write_recording(tmp_path / 'r')} --output".split()
    main([*train, "preset"])
    own = ["--observe", "hidden", "layer", "--total-timesteps", "500"]
    main([*train, "own", *own, "--set", "weight_decay=0", "--set", "hidden_width=4"])
    preset, own = (json.loads(Path(run, "config.json").read_text()) for run in ("preset", "own"))
    known = preset_for("reinforce", "made-up")
    assert preset["policy"]["observe"] == list(known.observe)
    assert preset["policy"]["total_timesteps"] == known.total_timesteps
    assert preset["hyperparameters"].items() >= known.hyperparameters.items()
    assert own["policy"]["observe"] == ["hidden", "layer"]
    assert own["policy"]["total_timesteps"] == 500
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
    assert json.loads(Path("run/config.json").read_text())["policy"]["observe"][-1] == "alpha"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("rate=1", 1.0),
        ("rate=1e-3", 1e-3),
        ("count=1e5", 100_000),
        ("flag=false", False),
        ("name=true", "true"),
        ("name=with=equals", "with=equals"),
        ("nothing=null", None),
        ("nothing=[1, 2]", [1, 2]),
        ("nothing=word", "word"),
        ("some=[64, 64]", [64, 64]),
        ('more={"net_arch": [8]}', {"net_arch": [8]}),
    ],
)
def test_a_setting_is_read_as_what_its_default_is(setting, value) -> None:
    (given,) = parse_settings("some-agent", (setting,), DEFAULTS).values()
    assert given == value
    assert type(given) is type(value)


@pytest.mark.parametrize(
    ("setting", "kind"),
    [
        ("rate=true", "float"),
        ("count=1.5", "int"),
        ("count=false", "int"),
        ("flag=False", "bool"),
        ("flag=1", "bool"),
        ("some=1", "list"),
        ("more=[]", "dict"),
    ],
)
def test_a_setting_of_another_type_is_refused(setting, kind) -> None:
    with pytest.raises(CeeGymError, match=f"not of type {kind}"):
        parse_settings("some-agent", (setting,), DEFAULTS)


DEFAULTS = {
    **{"rate": 0.1, "count": 1, "flag": True, "name": "", "nothing": None},
    **{"some": [1], "more": {"a": 1}},
}


def test_several_seeds_are_one_run_each_and_a_table(tmp_path, monkeypatch, capsys) -> None:
    train = (
        f"train EarlyExit --trace {write_recording(tmp_path / 'r')} --total-timesteps 2000 "
        "--set start=equally_likely --set learning_rate=0.01"
    )
    several = [*train.split(), "--output", "all", "--seeds", "3", "1"]
    learn, learned = Reinforce.learn, []

    def stop_at_the_second(self, *args, **kwargs):
        learned.append(self.seed)
        return _interrupt() if self.seed == 1 else learn(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Reinforce, "learn", stop_at_the_second)
        with pytest.raises(SystemExit):
            main(several)
        assert "holds a run already" in refused(capsys, *several)
    main([*several, "--resume"])
    with monkeypatch.context() as patch:
        patch.setattr(Reinforce, "learn", _interrupt)
        main([*several, "--resume"])  # nothing is left to learn
    assert learned == [3, 1]
    table = capsys.readouterr().out.splitlines()
    runs = []
    for seed in (3, 1):
        main([*train.split(), "--output", f"one-{seed}", "--seed", str(seed)])
        run = json.loads(Path(f"all/seed-{seed}/round-0/evaluation.json").read_text())
        assert run == json.loads(Path(f"one-{seed}/round-0/evaluation.json").read_text())
        runs.append(run["policy"]["p > 1/2"])
    returns = [run["mean_return"] for run in runs]
    mean, spread = statistics.mean(returns), statistics.stdev(returns)
    assert spread > 0
    (row,) = {line for line in table if line.startswith("reinforce, p > 1/2")}
    assert row.endswith(f"{mean:.4f} ± {spread:.4f}")
    written = json.loads(Path("all/seeds.json").read_text())
    assert written["seeds"] == [3, 1]
    figures = written["rows"]["reinforce, p > 1/2"]
    assert figures["mean_return"] == pytest.approx({"mean": mean, "spread": spread})
    assert "twice" in refused(capsys, *train.split(), "--seeds", "1", "1")
    assert "leave --set seed out" in refused(
        capsys, *train.split(), "--seeds", "1", "2", "--set", "seed=0"
    )
