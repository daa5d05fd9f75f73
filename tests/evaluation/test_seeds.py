"""Several runs as one table: the mean and the spread of each figure."""

import statistics

import pytest

from cee_gym import Problem
from cee_gym.evaluation.report import report
from cee_gym.evaluation.seeds import over_seeds, seeds_table
from cee_gym.policies.rules import Confidence
from cee_gym.traces.recordings import open_split
from tests.made_traces import write_recording


@pytest.fixture
def runs(tmp_path) -> dict[int, dict]:
    """Runs that differ in the threshold that was learned."""
    recording = write_recording(tmp_path / "r", n=60, num_labels=2)
    problems = [
        Problem(open_split(recording, split), observe=("confidence",))
        for split in ("calibration", "dev")
    ]
    thresholds = {3: 0.5, 1: 0.6, 2: 0.9}
    return {
        seed: report(Confidence(threshold=t).policy(problems[0]), *problems, ("f1", "accuracy"))
        for seed, t in thresholds.items()
    }


def test_each_figure_has_its_mean_and_the_sample_deviation(runs) -> None:
    results = over_seeds(runs)
    assert results["seeds"] == [3, 1, 2]
    points = [run["points"]["own"]["measured"]["dev"] for run in runs.values()]
    figures = results["rows"]["own: its own speed"]
    for figure in ("accuracy", "mean_exit_layer", "saved_layers", "mean_return"):
        values = [point[figure] for point in points]
        assert figures[figure]["mean"] == pytest.approx(statistics.mean(values))
        assert figures[figure]["spread"] == pytest.approx(statistics.stdev(values))
    assert figures["mean_exit_layer"]["spread"] > 0
    f1 = [point["metrics"]["f1"] for point in points]
    assert figures["f1"]["mean"] == pytest.approx(statistics.mean(f1))


def test_the_table_shows_both(runs) -> None:
    results = over_seeds(runs)
    lines = seeds_table(results).splitlines()
    assert lines[0].startswith("mean of 3 seeds")
    (row,) = (line for line in lines if line.startswith("own: its own speed"))
    figures = results["rows"]["own: its own speed"]["mean_return"]
    assert row.endswith(f"{figures['mean']:.4f} ± {figures['spread']:.4f}")
    assert len(lines) == 2 + len(results["rows"])


def test_one_run_has_no_spread(runs) -> None:
    figures = over_seeds({3: runs[3]})["rows"]["full depth"]
    assert {figure["spread"] for figure in figures.values()} == {0.0}
