"""Operating points against a plain count; thresholds chosen on one split, reported on another."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, matthews_corrcoef

from cee_gym.agents import ExpectedReturn
from cee_gym.envs import EarlyExitEnv
from cee_gym.errors import CeeGymError
from cee_gym.evaluation import accuracy_speed_curve, choose_threshold, evaluate
from cee_gym.evaluation.curve import Threshold, evaluate_at, fixed_layers, hindsight
from cee_gym.evaluation.report import plot, report, table
from tests.made_traces import write_recording, write_trace


def test_an_operating_point_is_what_a_plain_count_gives(tmp_path) -> None:
    trace = write_trace(tmp_path / "t", n=30, num_layers=4, num_labels=2)
    exits = np.random.default_rng(0).integers(1, 5, size=30)
    rewards = np.random.default_rng(1).normal(size=(30, 4))
    point = evaluate(trace, exits, metrics=("f1", "accuracy", "matthews"), rewards=rewards)
    predictions = np.array([trace.prediction[i, e - 1] for i, e in enumerate(exits)])
    assert point.accuracy == pytest.approx(np.mean(predictions == trace.labels))
    assert point.metrics["f1"] == pytest.approx(f1_score(trace.labels, predictions))
    assert point.metrics["matthews"] == pytest.approx(matthews_corrcoef(trace.labels, predictions))
    assert list(point.metrics) == ["f1", "accuracy", "matthews"]
    assert point.mean_exit_layer == pytest.approx(exits.mean())
    assert point.saved_layers == pytest.approx(1 - exits.mean() / 4)
    assert point.layer_speedup == pytest.approx(4 / exits.mean())
    assert point.exits == [int((exits == layer).sum()) for layer in (1, 2, 3, 4)]
    assert point.mean_return == pytest.approx(
        np.mean([rewards[i, e - 1] for i, e in enumerate(exits)])
    )


def test_the_curve_runs_from_layer_1_to_full_depth(tmp_path) -> None:
    trace = write_trace(tmp_path / "t")
    points = accuracy_speed_curve(trace, trace.confidence)
    assert points[0].mean_exit_layer == 1.0
    assert points[-1].mean_exit_layer == trace.num_layers
    depths = [point.mean_exit_layer for point in points]
    assert depths == sorted(depths)


def test_every_point_of_the_curve_is_reproduced_by_its_threshold(tmp_path) -> None:
    trace = write_trace(tmp_path / "t")
    for point in accuracy_speed_curve(trace, trace.confidence):
        assert point.threshold is not None
        again = evaluate_at(trace, trace.confidence, Threshold(point.threshold, "elsewhere"))
        assert again.exits == point.exits


def test_a_chosen_threshold_saves_most_within_the_bound(tmp_path) -> None:
    trace = write_trace(tmp_path / "t", n=200, num_labels=2)
    full = trace.correct[:, -1].mean()
    threshold = choose_threshold(trace, trace.confidence, most_points_lost=2.0)
    elsewhere = Threshold(threshold.value, "elsewhere")
    chosen = evaluate_at(trace, trace.confidence, elsewhere)
    assert chosen.accuracy >= full - 0.02
    for point in accuracy_speed_curve(trace, trace.confidence):
        assert point.accuracy < full - 0.02 or point.saved_layers <= chosen.saved_layers + 1e-12


def test_a_threshold_is_not_reported_where_it_was_chosen(tmp_path) -> None:
    trace = write_trace(tmp_path / "t")
    threshold = choose_threshold(trace, trace.confidence, most_points_lost=1.0)
    with pytest.raises(CeeGymError, match="chosen on this split"):
        evaluate_at(trace, trace.confidence, threshold)


def test_hindsight_is_above_every_other_point(tmp_path) -> None:
    trace = write_trace(tmp_path / "t")
    rewards = np.random.default_rng(0).normal(size=(40, 4))
    best = hindsight(trace, rewards).mean_return
    for point in fixed_layers(trace, rewards=rewards):
        assert best >= point.mean_return
    assert best == pytest.approx(rewards.max(axis=1).mean())


def test_a_report_chooses_on_calibration_and_shows_dev(tmp_path) -> None:
    recording = write_recording(tmp_path / "r", n=60)
    env = EarlyExitEnv(trace=str(recording))
    agent = ExpectedReturn(batch_size=16).learn(env, 2_000)
    calibration, dev = (
        EarlyExitEnv(trace=str(recording), split=split).table for split in ("calibration", "dev")
    )
    results = report(agent, calibration, dev, ("accuracy",))
    assert results["trace"] == dev.trace.fingerprint
    assert results["calibration_trace"] == calibration.trace.fingerprint
    scores = agent.exit_probabilities(calibration.observations)
    name = "at most 1 points lost on calibration"
    threshold = choose_threshold(calibration.trace, scores, most_points_lost=1.0).value
    assert results["policy"][name]["threshold"] == pytest.approx(min(max(threshold, -1), 2))
    with pytest.raises(CeeGymError, match="chosen on this split"):
        report(agent, dev, dev, ("accuracy",))
    text = table(results)
    assert "full depth" in text
    assert "fixed layer 3" in text
    assert "hindsight" in text
    plot(results, tmp_path / "plot.png", "made up")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_a_report_refuses_an_agent_of_another_backbone(tmp_path) -> None:
    narrow = write_recording(tmp_path / "narrow", width=4)
    wide = write_recording(tmp_path / "wide", width=6)
    agent = ExpectedReturn().learn(EarlyExitEnv(trace=str(narrow)), 500)
    tables = [EarlyExitEnv(trace=str(wide), split=s).table for s in ("calibration", "dev")]
    with pytest.raises(CeeGymError, match=r"hidden \[4\].*hidden \[6\]"):
        report(agent, *tables, ("accuracy",))


class _Watched(ExpectedReturn):
    """Remembers the prices it was shown."""

    seen: set[float]

    def exit_probabilities(self, observations):
        self.seen |= set(np.unique(observations[:, :, self.layout["alpha"]]).tolist())
        return super().exit_probabilities(observations)


def test_a_range_of_alpha_is_observed_and_paid_at_its_middle(tmp_path) -> None:
    recording = write_recording(tmp_path / "r", n=60)
    settings = {"alpha": (0.0, 0.5), "observe": ("hidden", "layer", "alpha")}
    agent = _Watched(batch_size=16).learn(EarlyExitEnv(trace=str(recording), **settings), 500)
    agent.seen = set()
    calibration, dev = (
        EarlyExitEnv(trace=str(recording), split=split, **settings).table
        for split in ("calibration", "dev")
    )
    results = report(agent, calibration, dev, ("accuracy",))
    assert agent.seen == {0.25}
    assert results["alpha"] == 0.25
    deepest = dev.rewards(0.25)[:, -1].mean()
    assert results["full_depth"]["mean_return"] == pytest.approx(deepest)
