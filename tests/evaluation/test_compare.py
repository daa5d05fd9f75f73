"""Runs side by side."""

from pathlib import Path

import numpy as np
import pytest

from cee_gym.agents import make_agent
from cee_gym.cli import main
from cee_gym.errors import CeeGymError
from cee_gym.evaluation.compare import FIXED, compare
from cee_gym.evaluation.learning_curves import RETURN, learning_curves
from cee_gym.training.trainer import ConsistentEETrainer
from tests.made_traces import write_recording


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Runs `confidence` and `learned` on one recording, `seeds` of two, `other` on other rows."""
    folder = tmp_path_factory.mktemp("runs")
    recording = write_recording(folder / "recording")
    other = write_recording(folder / "elsewhere", n=50)
    for name, agent, where in (
        ("confidence", make_agent("confidence"), recording),
        ("learned", make_agent("expected-return", learning_rate=1e-2), recording),
        ("seeds/seed-0", make_agent("expected-return", seed=0), recording),
        ("seeds/seed-1", make_agent("expected-return", seed=1), recording),
        ("other", make_agent("confidence"), other),
    ):
        trainer = ConsistentEETrainer(agent, folder / name, recording=where, total_timesteps=3000)
        trainer.train(progress_bar=False)
    return folder


def test_the_same_run_twice_does_not_differ(runs) -> None:
    found = compare([runs / "confidence", runs / "confidence"], names=["a", "b"])
    assert all(interval == (0, 0, 0) for interval in found.differences["b"].values())
    assert set(found.differences) == {"b", FIXED}


def test_differences_are_those_of_the_accuracies(runs) -> None:
    found = compare([runs / "confidence", runs / "learned"], saved_layers=[0.3, 0.5])
    first, second, fixed = found.runs
    assert [run.name for run in found.runs] == ["confidence", "learned", FIXED]
    for run in (second, fixed):
        by = found.differences[run.name]
        assert by["mean"].mean == pytest.approx(run.accuracy.mean() - first.accuracy.mean())
        assert by["0.5"].mean == pytest.approx(run.accuracy[0, 1] - first.accuracy[0, 1])
        assert by["mean"].low <= by["mean"].mean <= by["mean"].high
    assert found.to_json()["runs"]["learned"]["own"][0]["accuracy"] == second.own[0].accuracy


def test_a_folder_of_seeds_is_one_run_and_every_seed_is_kept(runs) -> None:
    found = compare([runs / "confidence", runs / "seeds"])
    seeds = found.runs[1]
    assert (seeds.seeds, seeds.accuracy.shape) == (2, (2, 7))
    alone = [compare([runs / "seeds" / f"seed-{seed}"]).runs[0] for seed in (0, 1)]
    assert seeds.accuracy == pytest.approx(np.concatenate([one.accuracy for one in alone]))


def test_what_cannot_be_compared_is_refused(runs) -> None:
    with pytest.raises(CeeGymError, match=r"other was recorded on other rows of dev than .*confid"):
        compare([runs / "confidence", runs / "other"])
    with pytest.raises(CeeGymError, match="there is no run at"):
        compare([runs])
    with pytest.raises(CeeGymError, match="nothing to compare"):
        compare([])
    with pytest.raises(CeeGymError, match="speeds are chosen on calibration"):
        compare([runs / "confidence"], split="calibration")
    with pytest.raises(CeeGymError, match="shares from 0 up to 1"):
        compare([runs / "confidence"], saved_layers=[1.5])


def test_the_command_prints_a_table_and_sentences_and_draws(runs, tmp_path, capsys) -> None:
    given = [str(runs / name) for name in ("confidence", "learned", "seeds")]
    main(["compare", *given, "--output", str(tmp_path / "out")])
    out = capsys.readouterr().out
    assert "over the first, points" in out
    assert "learned against confidence: " in out
    assert f"{FIXED} against confidence: " in out
    assert max(map(len, out.split("\n\n")[0].splitlines())) <= 80
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["comparison.json", "comparison.png", "comparison.svg"]
    with pytest.raises(SystemExit):
        main(["compare"])


def test_learning_curves_are_those_that_were_logged(runs) -> None:
    curves = learning_curves(runs / "learned")
    assert curves[RETURN].steps[-1] >= 3000
    assert np.isfinite(curves[RETURN].values).all()
    assert learning_curves(runs) == {}
