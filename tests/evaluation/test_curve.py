"""Operating points against a plain count; speeds chosen on one split, reported on another."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import f1_score, matthews_corrcoef

from cee_gym import ExitPolicy, Problem, Reward
from cee_gym.errors import CeeGymError
from cee_gym.evaluation import accuracy_speed_curve, evaluate, evaluate_policy
from cee_gym.evaluation.curve import check_not_chosen_on, fixed_layers, hindsight
from cee_gym.policies.rules import Confidence
from tests.made_traces import write_trace


@pytest.fixture
def problem(tmp_path) -> Problem:
    return Problem(write_trace(tmp_path / "t"), observe=("confidence",), alpha=0.25)


@pytest.fixture
def policy(problem) -> ExitPolicy:
    return Confidence(threshold=0.6).policy(problem)


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


def test_a_policy_is_evaluated_where_its_scores_pass_its_threshold(problem, policy) -> None:
    point = evaluate_policy(policy, problem)
    trace = problem.trace
    exits, returns = [], []
    for i in range(len(trace)):
        layers = (t for t in range(4) if trace.confidence[i, t] > np.float32(0.6))
        exits.append(next(layers, 3))
        returns.append(problem.rewards(0.25)[i, exits[-1]])
    assert 0 < sum(t < 3 for t in exits) < 40
    assert point.exits == [exits.count(layer) for layer in range(4)]
    assert point.mean_return == pytest.approx(np.mean(returns))
    assert point.threshold == 0.6


def test_the_price_of_a_layer_changes_the_return_and_not_the_exits(problem, policy) -> None:
    cheap, dear = (evaluate_policy(policy, problem, alpha=alpha) for alpha in (0.0, 1.0))
    assert cheap.exits == dear.exits
    assert cheap.mean_return > dear.mean_return


def test_scores_that_are_known_already_are_not_computed_again(problem, policy, monkeypatch) -> None:
    point = evaluate_policy(policy, problem)
    scores = policy.scores_on(problem)
    monkeypatch.delattr(ExitPolicy, "scores_on")
    assert evaluate_policy(policy, problem, scores=scores) == point


def test_a_policy_of_other_observations_is_refused(problem, policy, tmp_path) -> None:
    other = Problem(problem.trace, observe=("entropy",))
    with pytest.raises(CeeGymError, match=r"reads confidence \[1\].*are entropy \[1\]"):
        evaluate_policy(policy, other)


def test_the_curve_runs_from_layer_1_to_full_depth(tmp_path) -> None:
    trace = write_trace(tmp_path / "t")
    points = accuracy_speed_curve(trace, trace.confidence)
    assert points[0].mean_exit_layer == 1.0
    assert points[-1].mean_exit_layer == trace.num_layers
    depths = [point.mean_exit_layer for point in points]
    assert depths == sorted(depths)


def test_every_point_of_the_curve_is_reproduced_by_its_threshold(problem, policy) -> None:
    for point in accuracy_speed_curve(problem.trace, policy.scores_on(problem)):
        assert point.threshold is not None
        again = evaluate_policy(replace(policy, threshold=point.threshold), problem)
        assert again.exits == point.exits


def test_a_speed_is_not_reported_where_it_was_chosen(problem, policy, tmp_path) -> None:
    chosen = policy.for_budget(points_lost=1.0, on=problem)
    with pytest.raises(CeeGymError, match=r"chosen on this split \(train\)"):
        evaluate_policy(chosen, problem)
    other = Problem(write_trace(tmp_path / "other", seed=1), observe=("confidence",))
    evaluate_policy(chosen, other)
    evaluate_policy(chosen.at(threshold=chosen.threshold), problem)  # given, and not chosen
    check_not_chosen_on("", problem.trace)


def test_hindsight_is_above_every_other_point(tmp_path) -> None:
    trace = write_trace(tmp_path / "t")
    rewards = np.random.default_rng(0).normal(size=(40, 4))
    best = hindsight(trace, rewards).mean_return
    for point in fixed_layers(trace, rewards=rewards):
        assert best >= point.mean_return
    assert best == pytest.approx(rewards.max(axis=1).mean())


def test_the_return_is_that_of_the_reward(problem, policy) -> None:
    right = Problem(problem.trace, Reward("correctness", hardness=None), ("confidence",), 0.0)
    point = evaluate_policy(policy, right)
    assert point.mean_return == pytest.approx(point.accuracy)
