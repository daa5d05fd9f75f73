"""The data in the package: whole, kept apart, and as good as is said."""

import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from scipy.stats import spearmanr

import cee_gym
from cee_gym.hardness import memorized_layer
from cee_gym.tasks import clauses, get_task, load_splits
from cee_gym.traces.recordings import (
    find_recording,
    open_split,
    recorded_splits,
    shipped_backbone,
)

RTE = "EarlyExit-BERT-RTE"
SST2 = "EarlyExit-BERT-SST-2"
CLAUSES = "EarlyExit-ToyBERT-Clauses"
SHIPPED = Path(cee_gym.__file__).parent / "shipped"


@pytest.mark.parametrize("id", [RTE, SST2, CLAUSES])
@pytest.mark.parametrize("split", ["train", "calibration", "dev"])
def test_the_recordings_are_whole(id, split) -> None:
    open_split(SHIPPED / id, split).verify()


@pytest.mark.parametrize(("id", "train", "dev"), [(RTE, 2490, 277), (SST2, 10_428, 872)])
def test_no_recorded_row_was_fitted_to_and_splits_are_disjoint(id, train, dev) -> None:
    fitted = set(json.loads((SHIPPED / id / "recording.json").read_text())["fitted_to"]["deployed"])
    ids = {s: set(open_split(SHIPPED / id, s).row_ids) for s in ("train", "calibration", "dev")}
    assert not ids["train"] & fitted
    assert not ids["calibration"] & fitted
    assert not ids["train"] & ids["calibration"]
    assert not ids["dev"] & (fitted | ids["train"] | ids["calibration"])
    assert len(fitted | ids["train"] | ids["calibration"]) == train
    assert len(ids["dev"]) == dev


def test_accuracy_is_what_the_results_file_says() -> None:
    dev = open_split(find_recording(RTE), "dev")
    results = json.loads((Path(__file__).parents[1] / "benchmarks/results/rte.json").read_text())
    row = results["seeds"][results["shipped_seed"]]
    assert row["fingerprint"]["dev"] == dev.fingerprint
    np.testing.assert_allclose(row["dev_accuracy_per_layer"], dev.correct.mean(axis=0), atol=1e-4)


def test_there_is_something_to_learn() -> None:
    """One recording at least has room above the best fixed layer and the best threshold."""
    found = [
        gym.make(path.name, split="dev", alpha=0.035).unwrapped.headroom()
        for path in SHIPPED.iterdir()
        if recorded_splits(path)
    ]
    assert any(
        all(gain.mean > 2 * gain.error for gain in (one.over_fixed_layer, one.over_threshold))
        for one in found
    )


@pytest.mark.real_data
def test_the_labels_are_those_of_the_rows_it_names(shared) -> None:
    splits = load_splits(get_task("rte"), str(shared / "data" / "rte"))
    for split in ("train", "calibration", "dev"):
        trace = open_split(SHIPPED / RTE, split)
        source = splits["dev" if split == "dev" else "train"]
        rows = [int(row_id.split("/")[1]) for row_id in trace.row_ids]
        np.testing.assert_array_equal(np.array(source["label"])[rows], trace.labels)


def test_the_toy_needs_its_depth(tmp_path) -> None:
    """Figures of `benchmarks/results/toybert.json`, checked anew on dev."""
    from cee_gym.training.config import RecordConfig
    from cee_gym.training.phases import record, warm_up
    from cee_gym.training.setup import Setup

    task = get_task("clauses")
    setup = Setup.load(task, str(shipped_backbone(CLAUSES)), None, RecordConfig(folds=2))
    setup.splits["train"] = setup.splits["train"].select(range(30))
    warm_up(setup, tmp_path / "models")
    record(setup, tmp_path / "models", tmp_path / "recording")
    dev = open_split(tmp_path / "recording", "dev")
    assert len(dev) >= 2000
    difficulty = np.array(clauses.sentences(*clauses.SPLITS["dev"])["difficulty"])
    unanswered = difficulty == clauses.NO_ANSWER
    accuracy = dev.correct[~unanswered].mean(axis=0)
    assert accuracy[-1] >= accuracy[1] + 0.10
    assert accuracy[-1] > 0.99
    memorized = memorized_layer(dev.correct)[~unanswered]
    assert spearmanr(memorized, difficulty[~unanswered]).statistic >= 0.3
    # What nobody can know is as good as a coin at every depth, and the model is as unsure.
    assert np.abs(dev.correct[unanswered].mean(axis=0) - 0.5).max() < 0.08
    assert dev.confidence[unanswered].mean() < 0.6
    # The shipped recording is of the first of these rows.
    shipped = open_split(SHIPPED / CLAUSES, "dev")
    np.testing.assert_array_equal(shipped.row_ids, dev.row_ids[: len(shipped)])
    np.testing.assert_allclose(shipped.confidence, dev.confidence[: len(shipped)], atol=1e-3)


def test_the_toy_is_small() -> None:
    files = [p for p in (SHIPPED / CLAUSES).rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 3.5e6


def test_on_clauses_what_is_learned_beats_every_threshold() -> None:
    """Under either reward: a threshold waits for what nobody can know."""
    for reward in ("paper", "correctness"):
        found = gym.make(CLAUSES, split="dev", reward=reward, alpha=0.035).unwrapped.headroom()
        for gain in (found.over_fixed_layer, found.over_threshold):
            assert gain.mean > 2 * gain.error
