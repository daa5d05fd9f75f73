"""What is measured is that part's own, and the prediction is of what the runtime does."""

import json
import shutil
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from cee_gym.agents import Reinforce, make_agent
from cee_gym.backbones.encoding import EncodedText
from cee_gym.backbones.fingerprint import fingerprint
from cee_gym.cli import main
from cee_gym.cost import CostModel
from cee_gym.envs import EarlyExitEnv, LiveEarlyExitEnv
from cee_gym.errors import CeeGymError
from cee_gym.exits import MultiExitModel
from cee_gym.inference.runtime import EarlyExitRuntime
from cee_gym.measuring import MOST_REPEATS, predict, profile
from cee_gym.observation import Layout
from cee_gym.policies.base import ExitPolicy
from cee_gym.policies.rules import Confidence, FixedLayer, Patience, Rule
from cee_gym.problem import Problem
from cee_gym.returns import first_exit
from cee_gym.reward import Reward
from cee_gym.tasks import get_task, load_splits
from cee_gym.traces.recordings import open_split
from cee_gym.traces.texts import collect
from cee_gym.training.trainer import ConsistentEETrainer
from tests.conftest import WORDS

SIZES: dict[str, Any] = {"batch_sizes": (1, 4), "lengths": (4, 12), "seconds": 0.0}


def linear(num_layers: int, **parts: Callable[[Any, Any], Any]) -> CostModel:
    """A cost model of given functions of rows and tokens; other parts take no time."""
    rows, tokens = np.meshgrid((1, 2), (1, 2), indexing="ij")
    tables = {name: np.zeros((num_layers, 2, 2)) for name in ("layers", "heads", "policy")}
    tables["embedding"] = np.zeros((2, 2))
    for name, part in parts.items():
        tables[name] = np.broadcast_to(part(rows, tokens), tables[name].shape)
    if not tables["layers"].any():
        tables["layers"] = np.full((num_layers, 2, 2), 1e-12)
    return CostModel((1, 2), (1, 2), model="", machine={}, typical=(1, 1), **tables)


def test_prediction_by_hand() -> None:
    costs = linear(
        3,
        embedding=lambda rows, tokens: 100 + rows,
        layers=lambda rows, tokens: 10 * rows * tokens,
        heads=lambda rows, tokens: 0 * tokens + rows,
        policy=lambda rows, tokens: np.array([2.0, 2.0, 0.0])[:, None, None],
    )
    # Batches of 2, longest first: lengths (9, 7), (4, 2), (1,); exits (1, 3), (2, 1), (1,).
    predicted = predict(costs, np.array([1, 1, 3, 2, 1]), np.array([9, 2, 7, 4, 1]), 2)
    full = (102 + 3 * 10 * 2 * 9 + 2) + (102 + 3 * 10 * 2 * 4 + 2) + (101 + 3 * 10 * 1 + 1)
    first = 102 + (10 * 2 * 9 + 2 + 2) + (10 * 7 + 1 + 2) + (10 * 7 + 1)
    second = 102 + (10 * 2 * 4 + 2 + 2) + (10 * 4 + 1 + 2)
    third = 101 + (10 * 1 + 1 + 2)
    assert predicted.full_depth == pytest.approx(full)
    assert predicted.early_exit == pytest.approx(first + second + third)
    assert predicted.wall_clock_speedup == pytest.approx(full / (first + second + third))


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Dataset], str]:
    """SST-2 of made-up sentences, and the directory they are in."""
    rng = np.random.default_rng(0)
    directory = tmp_path_factory.mktemp("data")
    for split in ("train", "dev"):
        lines = ["sentence\tlabel"]
        for length in rng.integers(1, 30, 50):
            lines.append(f"{' '.join(rng.choice(WORDS, length))}\t{rng.integers(2)}")
        (directory / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return load_splits(get_task("sst2"), str(directory)), str(directory)


@pytest.fixture
def recording(
    tiny_model: MultiExitModel,
    tiny_tokenizer: Any,
    splits: tuple[dict[str, Dataset], str],
    tmp_path: Path,
) -> Path:
    for split in ("train", "calibration", "dev"):
        data = splits[0]["dev" if split == "dev" else "train"]
        text = EncodedText(data, tiny_tokenizer, 40)
        description = {"task": "sst2", "split": split, "backbone": "none", "seed": 0}
        collect(tiny_model, text, data, tmp_path / "recording" / split, description)
    return tmp_path / "recording"


def policy_of(rule: Rule, recording: Path) -> ExitPolicy:
    return rule.policy(Problem(open_split(recording, "train"), observe=rule.reads))


@pytest.mark.parametrize("batch_size", [1, 3, 8, 50])
def test_prediction_counts_what_the_runtime_runs(
    tiny_model: MultiExitModel,
    tiny_tokenizer: Any,
    splits: tuple[dict[str, Dataset], str],
    recording: Path,
    batch_size: int,
) -> None:
    text = EncodedText(splits[0]["dev"], tiny_tokenizer, 40)
    threshold = float(np.median(open_split(recording, "dev").confidence[:, 0]))
    policy = policy_of(Confidence(threshold=threshold), recording)
    ran: dict[str, list[tuple[int, int]]] = {"layers": [], "decisions": []}
    layers = tiny_model.backbone.encoder.layer
    for layer in layers:
        layer.register_forward_hook(lambda *args: ran["layers"].append(args[2].shape[:2]))
    runtime = EarlyExitRuntime(tiny_model, policy)
    ran["layers"].clear()
    exits = np.zeros(len(text), dtype=np.int64)
    whole = 0
    for rows in text.batches(np.arange(len(text)), batch_size):
        batch = text.batch(rows, torch.device("cpu"))
        exits[rows] = runtime(batch).exit_layer
        whole += len(layers) * batch["input_ids"].numel()
    assert len(set(exits.tolist())) == 3
    products = linear(3, layers=lambda rows, tokens: rows * tokens)
    calls = linear(3, layers=lambda rows, tokens: 1.0)
    predicted = predict(products, exits, text.lengths, batch_size)
    assert predicted.early_exit == pytest.approx(sum(r * t for r, t in ran["layers"]))
    assert predicted.full_depth == pytest.approx(whole)
    counted = predict(calls, exits, text.lengths, batch_size).early_exit
    assert counted == pytest.approx(len(ran["layers"]))


@pytest.mark.parametrize(
    ("exits", "lengths", "batch_size", "message"),
    [
        ([1, 2], [5, 5, 5], 2, "one number per text each"),
        ([], [], 2, "one number per text each"),
        ([0, 2], [5, 5], 2, "exit layers must be 1 to 3"),
        ([1, 4], [5, 5], 2, "exit layers must be 1 to 3"),
        ([1, 2], [5, 5], 0, "batch_size must be at least 1"),
    ],
)
def test_what_cannot_be_predicted(
    exits: list[int], lengths: list[int], batch_size: int, message: str
) -> None:
    costs = linear(3, layers=lambda rows, tokens: rows)
    with pytest.raises(CeeGymError, match=message):
        predict(costs, np.array(exits, dtype=int), np.array(lengths, dtype=int), batch_size)


# Measuring


def spin(milliseconds: float) -> None:
    """Works so long; sleeping would not count."""
    end = time.thread_time() + milliseconds / 1e3
    while time.thread_time() < end:
        pass


class Slow(Rule):
    """Takes 4 milliseconds at the first layer, and 8 at others."""

    name = "slow"
    least = 0.9
    reads = ("layer",)

    def scores(self, observations: np.ndarray, layout: Layout) -> np.ndarray:
        spin(4 if observations[0, -1, layout["layer"].start] else 8)
        return np.zeros(observations.shape[:2], dtype=np.float32)


def test_each_part_is_measured_at_its_place(tiny_model: MultiExitModel, recording: Path) -> None:
    tiny_model.backbone.encoder.layer[1].register_forward_hook(lambda *args: spin(3 * len(args[2])))
    tiny_model.backbone.embeddings.register_forward_hook(lambda *args: spin(5))
    # What the clock reads is beyond what spins by the rest of the tiny model and what else runs.
    costs = profile(tiny_model, policy_of(Slow(), recording), **SIZES)
    close = {"abs": 2e-3}
    assert costs.embedding.min() == pytest.approx(5e-3, **close)
    assert costs.layers[1, 0] == pytest.approx([3e-3, 3e-3], **close)
    assert costs.layers[1, 1] == pytest.approx([12e-3, 12e-3], **close)
    assert costs.layers[[0, 2]].max() < 2e-3
    assert costs.policy[0].min() == pytest.approx(4e-3, **close)
    assert costs.policy[1].min() == pytest.approx(8e-3, **close)
    assert not costs.policy[2].any()
    assert 0 < costs.heads.min() <= costs.heads.max() < 2e-3
    assert costs.model == fingerprint(tiny_model)
    assert costs.machine["device"] == "cpu"
    assert costs.machine["dtype"] == "float32"
    assert costs.machine["versions"]["torch"] == version("torch")
    assert (costs.batch_sizes, costs.lengths, costs.typical) == ((1, 4), (4, 12), (1, 12))


def test_heads_and_decisions_where_the_policy_looks(
    tiny_model: MultiExitModel, recording: Path
) -> None:
    fixed = profile(tiny_model, policy_of(FixedLayer(layer=2), recording), **SIZES)
    assert (fixed.policy > 0).all(axis=(1, 2)).tolist() == [False, True, False]
    assert fixed.heads[0].max() < fixed.heads[1].min()
    patience = policy_of(Patience(patience=2), recording)
    remembers = profile(tiny_model, patience, **SIZES)
    assert (remembers.policy > 0).all(axis=(1, 2)).tolist() == [False, True, False]
    assert remembers.heads[0].min() > fixed.heads[0].max()
    alone = profile(tiny_model, **SIZES)
    assert not alone.policy.any()
    assert alone.heads.min() > fixed.heads[0].max()


def test_the_model_is_left_as_it_was(tiny_model: MultiExitModel) -> None:
    profile(tiny_model, batch_sizes=(1, 2), lengths=(2, 3), seconds=0)
    layers = tiny_model.backbone.encoder.layer
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers)


def test_small_sizes_are_run_more_often_and_all_in_turns(
    tiny_model: MultiExitModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cee_gym.measuring import _Watch

    ran: list[int] = []

    def run(self: Any, inputs: dict[str, torch.Tensor]) -> np.ndarray:
        size = inputs["input_ids"].numel()
        ran.append(size)
        return np.full(10, size / 100)

    monkeypatch.setattr(_Watch, "run", run)
    profile(tiny_model, batch_sizes=(1, 2), lengths=(1, 40), seconds=160)
    warm_up, turns = ran[:4], np.array(ran[4:])
    assert warm_up == [1, 40, 2, 80]
    counts = {size: int((turns == size).sum()) for size in warm_up}
    # A quarter of the time for each: 40 s are 10 runs of 4 s, and 400 and 200 of the small ones.
    assert counts == {1: MOST_REPEATS, 2: MOST_REPEATS, 40: 10, 80: 5}
    for size, count in counts.items():
        places = np.flatnonzero(turns == size) / len(turns)
        assert np.abs(places - (np.arange(count) + 0.5) / count).max() < 0.05


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"batch_sizes": (4,)}, r"batch_sizes must be at least two numbers from 1 up, got \[4\]"),
        ({"batch_sizes": (0, 4)}, "batch_sizes must be"),
        ({"lengths": (4, 41)}, "lengths must be 1 to 40, got 41"),
        ({"seconds": -1}, "seconds must be at least 0"),
    ],
)
def test_sizes_out_of_range(tiny_model: MultiExitModel, sizes: Any, message: str) -> None:
    with pytest.raises(CeeGymError, match=message):
        profile(tiny_model, **{**SIZES, **sizes})


def test_default_lengths_end_where_the_model_does(tiny_model: MultiExitModel) -> None:
    assert profile(tiny_model, batch_sizes=(1, 2), seconds=0).lengths == (8, 16, 32, 40)


def test_live_environment_with_a_measured_cost(
    tiny_model: MultiExitModel, tiny_tokenizer: Any, tiny_data: Dataset
) -> None:
    costs = profile(tiny_model, **SIZES)
    reward = Reward(quality="correctness", hardness=None, cost=costs)
    env = LiveEarlyExitEnv(tiny_model, tiny_tokenizer, tiny_data, reward=reward, alpha=1.0)
    assert env.metadata["deterministic"] is False
    env.reset(seed=0)
    info = env.step(1)[4]
    assert info["reward_components"]["price"] == pytest.approx(costs.layer_costs()[0])
    with torch.no_grad():
        tiny_model.heads[0].bias.add_(1)
    with pytest.raises(CeeGymError, match="profile that one"):
        LiveEarlyExitEnv(tiny_model, tiny_tokenizer, tiny_data, reward=reward, alpha=1.0)


# The command


@pytest.fixture
def saved(
    tiny_model: MultiExitModel, tiny_tokenizer: Any, recording: Path, tmp_path: Path
) -> tuple[str, str]:
    """Directories of a model and of a run of the confidence rule at 0.7 on its recording."""
    deployed = recording / "models" / "deployed"
    tiny_model.save_pretrained(deployed)
    tiny_tokenizer.save_pretrained(deployed)
    trainer = ConsistentEETrainer(
        make_agent("confidence", threshold=0.7), tmp_path / "run", recording=recording
    )
    trainer.train(progress_bar=False)
    return str(deployed), str(tmp_path / "run")


def test_command(
    saved: tuple[str, str],
    recording: Path,
    splits: tuple[dict[str, Dataset], str],
    tiny_tokenizer: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, run = saved
    output = str(tmp_path / "costs.json")
    sizes = ["--batch-sizes", "1", "8", "--lengths", "8", "32", "--seconds", "0.1"]
    common = ["profile", model, *sizes, "--output", output]
    main(common)
    out = capsys.readouterr().out
    assert "3 layers, float32" in out
    assert "predicted" not in out
    costs = CostModel.load(output)
    assert costs.typical == (1, 32)
    assert f"{1e3 * costs.embedding[1, 1]:.3f}" in out

    main([*common, "--policy", run, "--trace", str(recording)])
    out = capsys.readouterr().out
    costs = CostModel.load(output)
    trace = open_split(recording, "dev")
    exits = first_exit(trace.confidence > 0.7)
    assert f"confidence on 50 texts of dev: layer speed-up {3 / exits.mean():.2f}x" in out
    for batch_size in (1, 8):
        for length in (8, 32):
            expected = predict(costs, exits, np.full(50, length), batch_size)
            assert f"{expected.wall_clock_speedup:.2f}x" in out

    main(
        [
            *(*common, "--policy", f"{run}/round-0/agent"),
            *("--trace", str(recording), "--data", splits[1]),
        ]
    )
    out = capsys.readouterr().out
    costs = CostModel.load(output)
    lengths = EncodedText(splits[0]["dev"], tiny_tokenizer, 40).lengths
    assert costs.typical == (1, int(np.median(lengths)))
    expected = predict(costs, exits, lengths, 8)
    assert f"{expected.wall_clock_speedup:.2f}x ({20 * expected.full_depth:.2f}" in out
    env = EarlyExitEnv(trace=recording, split="dev", reward=Reward(cost=output))
    assert env.metadata["deterministic"] is False


FAST = ["--batch-sizes", "2", "8", "--lengths", "8", "32", "--seconds", "0"]


def test_command_takes_what_predict_takes(
    saved: tuple[str, str], recording: Path, splits: tuple[dict[str, Dataset], str], tmp_path: Path
) -> None:
    _, run = saved
    output = tmp_path / "a" / "directory" / "costs.json"
    given = ["--policy", run, "--trace", str(recording), "--data", splits[1]]
    main(["profile", run, *FAST, *given, "--output", str(output)])
    costs = CostModel.load(output)
    assert costs.typical[0] == 2
    assert np.isfinite(costs.layer_costs()).all()


def test_command_measures_a_policy_at_a_price(
    saved: tuple[str, str],
    recording: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    env = EarlyExitEnv(trace=recording, observe=("layer", "confidence", "alpha"), alpha=(0.0, 1.0))
    policy = Reinforce().learn(env, 100).policy
    policy.save(tmp_path / "every-price")
    policy.at(alpha=0.25).save(tmp_path / "held")
    measured: list[float | None] = []

    def note(model: MultiExitModel, policy: ExitPolicy, **sizes: Any) -> CostModel:
        measured.append(policy.alpha)
        return profile(model, policy, **sizes)

    monkeypatch.setattr("cee_gym.measuring.profile", note)
    command = ["profile", saved[0], *FAST, "--output", str(tmp_path / "costs.json"), "--policy"]
    with pytest.raises(SystemExit):
        main([*command, str(tmp_path / "every-price")])
    assert "has a speed for every alpha from 0 to 1: choose one by" in capsys.readouterr().err
    main([*command, str(tmp_path / "every-price"), "--alpha", "0.5"])
    main([*command, str(tmp_path / "held")])
    main([*command, str(tmp_path / "held"), "--alpha", "0.75"])
    assert measured == [0.5, 0.25, 0.75]


def test_command_measures_nothing_that_it_cannot_write(
    saved: tuple[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cee_gym.measuring.profile", pytest.fail)
    (tmp_path / "file").touch()
    for output, message in ((tmp_path, "is a directory"), (tmp_path / "file" / "x", "exists")):
        with pytest.raises(SystemExit) as stop:
            main(["profile", saved[0], *FAST, "--output", str(output)])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--alpha", "7"], "--alpha is of a policy: give --policy too"),
        (["--points-lost", "1"], "--points-lost is of a policy: give --policy too"),
        (["--trace", "{recording}"], "give --policy too"),
        (["--data", "x"], "give --trace too"),
        (["--policy", "{model}"], "there is no exit policy at"),
        (["--batch-sizes", "4"], "batch_sizes must be at least two"),
        (["--lengths", "8", "41"], "lengths must be 1 to 40"),
        (["--device", "abacus"], "--device abacus: "),
        (["--policy", "{run}", "--trace", "{other}"], "is of model 0123, not "),
        (["--policy", "{run}", "--trace", "{recording}", "--data", "{less}"], "has no row dev/"),
    ],
)
def test_command_refuses(
    saved: tuple[str, str],
    recording: Path,
    splits: tuple[dict[str, Dataset], str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    other = tmp_path / "other"
    shutil.copytree(recording / "dev", other / "dev")
    header = json.loads((other / "dev" / "header.json").read_text())
    (other / "dev" / "header.json").write_text(json.dumps(header | {"model": "0123"}))
    less = tmp_path / "less"
    less.mkdir()
    for split in ("train", "dev"):
        lines = (Path(splits[1]) / f"{split}.tsv").read_text().splitlines()
        (less / f"{split}.tsv").write_text("\n".join(lines[:20]) + "\n")
    model, run = saved
    places = {"recording": recording, "model": model, "run": run, "other": other, "less": less}
    given = [argument.format(**places) for argument in arguments]
    output = tmp_path / "costs.json"
    with pytest.raises(SystemExit) as stop:
        main(["profile", model, *given, "--output", str(output)])
    assert stop.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("cee-gym: ")
    assert message in line
    assert not output.exists()
