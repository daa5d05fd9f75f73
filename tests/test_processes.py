"""Two processes of one run, as torchrun starts them, give what one process gives."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import write_sentences
from tests.cli.test_generate import SMALL

CLAUSES = "EarlyExit-ToyBERT-Clauses"
STORIES = "EarlyExit-TinyLLaMA-Stories"
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def run(place: Path, processes: int, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs cee-gym in a folder."""
    command = [*LAUNCH, str(processes), "-m", "cee_gym", *words]
    if processes == 1:
        command = [sys.executable, "-m", "cee_gym", *words]
    return subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=500)


def arrays(trace: Path) -> dict[str, np.ndarray]:
    """The arrays of a trace by name."""
    return {file.stem: np.load(file) for file in sorted(trace.glob("*.npy"))}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_sentences(tmp_path / "data")


def test_two_processes_record_what_one_records_bit_for_bit(tmp_path: Path, data: Path) -> None:
    for processes, output in ((1, "one"), (2, "two")):
        words = ["build", CLAUSES, "--data", str(data), "--output", output]
        done = run(tmp_path, processes, *words)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("recorded. To open it") == 1
    for split in ("train", "calibration", "dev"):
        one, two = (arrays(tmp_path / output / split) for output in ("one", "two"))
        assert one.keys() == two.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])
    assert not [*tmp_path.glob("*.build"), *tmp_path.glob(".*.lock")]


@pytest.mark.slow
def test_two_processes_train_a_backbone_as_one_does(tmp_path: Path, data: Path) -> None:
    """Without dropout, which each process draws for itself, up to the last digits."""
    from cee_gym.traces.recordings import shipped_backbone

    plain = tmp_path / "plain"
    shutil.copytree(str(shipped_backbone(CLAUSES)), plain)
    config = json.loads((plain / "config.json").read_text())
    assert config["backbone_config"]["hidden_dropout_prob"] == 0
    (plain / "config.json").write_text(json.dumps(config | {"exit_dropout": 0.0}))
    words = ["train", CLAUSES, "--backbone", str(plain), "--data", str(data), "--rounds", "1"]
    words += ["--total-timesteps", "2000", "--backbone-phase.epochs", "2", "--states", "float32"]
    words += ["--backbone-phase.batch-size", "7", "--backbone-loss", "expected"]
    for processes, output in ((1, "one"), (2, "two")):
        done = run(tmp_path, processes, *words, "--output", output)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("curves: tensorboard") == 1
    for number in (0, 1):
        place = Path(f"round-{number}") / "recording" / "dev"
        one, two = (arrays(tmp_path / output / place) for output in ("one", "two"))
        np.testing.assert_allclose(one["states"], two["states"], atol=1e-4)
        np.testing.assert_allclose(one["logits"], two["logits"], atol=1e-4)
    before = arrays(tmp_path / "two" / "round-0" / "recording" / "dev")
    assert np.abs(before["states"] - two["states"]).max() > 1e-3  # it has learned something


@pytest.mark.slow
def test_two_processes_warm_an_encoder_up(tmp_path: Path, data: Path) -> None:
    from transformers import AutoTokenizer

    from cee_gym.exits import load_model
    from cee_gym.traces.recordings import shipped_backbone

    shipped = str(shipped_backbone(CLAUSES))
    load_model(shipped).backbone.save_pretrained(tmp_path / "encoder")
    AutoTokenizer.from_pretrained(shipped).save_pretrained(tmp_path / "encoder")
    words = ["build", CLAUSES, "--backbone", "encoder", "--data", str(data), "--output", "two"]
    done = run(tmp_path, 2, *words, "--warm-up.epochs", "2")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("; mean cross-entropy on unseen text: probe") == 1
    assert (tmp_path / "two" / "recording.json").exists()


@pytest.mark.slow
def test_a_decoder_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    from cee_gym.traces.recordings import shipped_backbone

    backbone = str(shipped_backbone(STORIES))
    words = [
        "train",
        STORIES,
        "--backbone",
        backbone,
        *SMALL,
        "--agent",
        "longstaff-schwartz",
        "--alpha",
        "0.1",
    ]
    for processes, output in ((1, "one"), (2, "two")):
        done = run(tmp_path, processes, *words, "--output", output)
        assert done.returncode == 0, done.stderr
    one, two = (arrays(tmp_path / o / "round-0" / "recording" / "dev") for o in ("one", "two"))
    np.testing.assert_array_equal(one["labels"], two["labels"])
    np.testing.assert_allclose(one["confidence"], two["confidence"], atol=1e-3)
    done = run(tmp_path, 2, *words, "--output", "one", "--rounds", "1", "--resume")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "one" / "round-1" / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evaluate", "nothing"], "evaluate runs as one process"),
        (["train", CLAUSES, "--total-timesteps", "1000"], "learns from a recording in one process"),
        (["build", CLAUSES, "--data", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_run_so_is_refused_once(tmp_path: Path, words: list[str], said: str) -> None:
    done = run(tmp_path, 2, *words)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("cee-gym: ")]
    assert len(lines) == 1, done.stderr
    assert said in lines[0]
