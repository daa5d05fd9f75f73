"""The report: speeds are chosen on calibration, shown on dev, and kept by name."""

import json
from pathlib import Path

import numpy as np
import pytest

from cee_gym import Problem
from cee_gym.agents import ExpectedReturn
from cee_gym.envs import EarlyExitEnv
from cee_gym.errors import CeeGymError
from cee_gym.evaluation import accuracy_speed_curve, evaluate_policy, guaranteed_threshold
from cee_gym.evaluation.report import Promise, class_tables, curve_figure, report, table
from cee_gym.policies.base import ExitPolicy
from cee_gym.policies.rules import Confidence, FixedLayer
from cee_gym.policies.speeds import Speed, measure_speeds
from cee_gym.problem import open_problem
from tests.made_traces import write_recording

EVERY_PRICE = {"alpha": (0.0, 0.5), "observe": ("hidden", "layer", "alpha")}


def splits(recording: Path, **settings) -> list[Problem]:
    """The problems of calibration and dev."""
    return [open_problem(trace=recording, split=s, **settings) for s in ("calibration", "dev")]


@pytest.fixture
def problems(tmp_path) -> list[Problem]:
    return splits(write_recording(tmp_path / "r", n=200, num_labels=2), observe=("confidence",))


@pytest.fixture
def policy(problems) -> ExitPolicy:
    return Confidence(threshold=0.7).policy(problems[0])


@pytest.fixture
def every_price(tmp_path) -> tuple[ExitPolicy, list[Problem]]:
    """A policy for every price from 0 to 1/2, and the problems of calibration and dev."""
    recording = write_recording(tmp_path / "r", n=60)
    env = EarlyExitEnv(trace=recording, **EVERY_PRICE)
    agent = ExpectedReturn(batch_size=16).learn(env, 500)
    return agent.policy, splits(recording, **EVERY_PRICE)


def test_a_report_chooses_on_calibration_and_shows_dev(tmp_path) -> None:
    recording = write_recording(tmp_path / "r", n=60)
    policy = ExpectedReturn(batch_size=16).learn(EarlyExitEnv(trace=recording), 2_000).policy
    calibration, dev = splits(recording)
    results = report(policy, calibration, dev, ("accuracy",))
    assert results["trace"] == dev.trace.fingerprint
    assert results["calibration_trace"] == calibration.trace.fingerprint
    chosen = policy.for_budget(points_lost=1.0, on=calibration)
    point = results["points"]["lost-1"]
    assert point["threshold"] == chosen.threshold
    assert point["chosen_on"] == {
        "split": "calibration",
        "trace": calibration.trace.fingerprint,
    }
    assert point["measured"]["dev"]["trace"] == dev.trace.fingerprint
    assert point["measured"]["dev"]["rows"] == 60
    assert point["measured"]["dev"]["exits"] == evaluate_policy(chosen, dev).exits
    own = results["points"]["own"]
    assert (own["threshold"], own["alpha"], own["chosen_on"]) == (0.5, None, None)
    assert own["measured"]["dev"]["exits"] == evaluate_policy(policy, dev).exits
    assert list(results["points"]) == ["own", "lost-0", "lost-0.5", "lost-1", "lost-2"]
    json.dumps(results, allow_nan=False)


def test_a_speed_is_not_reported_on_the_split_it_was_chosen_on(policy, problems) -> None:
    with pytest.raises(CeeGymError, match="chosen on this split"):
        report(policy, problems[1], problems[1], ("accuracy",))


def test_a_chosen_point_saves_most_within_what_may_be_lost(policy, problems) -> None:
    calibration, dev = problems
    full = calibration.correct[:, -1].mean()
    results = report(policy, calibration, dev, ("accuracy",))
    held = policy.at(threshold=results["points"]["lost-2"]["threshold"])
    chosen = evaluate_policy(held, calibration)
    assert chosen.accuracy >= full - 0.02
    for point in accuracy_speed_curve(calibration.trace, policy.scores_on(calibration)):
        assert point.accuracy < full - 0.02 or point.saved_layers <= chosen.saved_layers + 1e-12


@pytest.mark.parametrize(
    ("speed", "id"),
    [
        (Speed(threshold=0.62), "threshold-0.62"),
        (Speed(saved_layers=0.3), "saved-0.3"),
        (Speed(points_lost=1.5), "lost-1.5"),
        (Speed(points_lost=1.0), "lost-1"),
    ],
)
def test_a_speed_that_was_asked_for_is_one_more_point(policy, problems, speed, id) -> None:
    calibration, dev = problems
    results = report(policy, calibration, dev, ("accuracy",), asked=speed)
    held = speed.choose(policy, measure_speeds(policy, calibration))
    assert results["points"][id]["threshold"] == held.threshold
    assert results["points"][id]["measured"]["dev"]["exits"] == evaluate_policy(held, dev).exits
    assert (results["points"][id]["chosen_on"] is None) == (speed.threshold is not None)
    assert results["points"]["own"]["threshold"] == 0.7


def test_thresholds_that_hardly_differ_have_names_of_their_own(policy, problems) -> None:
    names = [
        list(report(policy, *problems, ("accuracy",), asked=Speed(threshold=t))["points"])[-1]
        for t in (0.12345678, 0.123456789)
    ]
    assert names == ["threshold-0.12345678", "threshold-0.123456789"]


def test_the_table_says_above_which_score_each_point_leaves(policy, problems) -> None:
    results = report(policy, *problems, ("accuracy",), name="confidence", asked=Speed(threshold=0))
    lines = table(results).splitlines()
    assert lines[0].startswith("confidence ")
    for row in ("full depth", "fixed layer 3", "hindsight"):
        assert any(line.startswith(row) for line in lines)
    threshold = results["points"]["lost-1"]["threshold"]
    for row, held in (
        ("own: its own speed", "0.7"),
        ("lost-1: at most 1 points lost on calibration", f"{threshold:.4g}"),
        ("threshold-0: threshold 0", "0"),
    ):
        (line,) = (line for line in lines if line.startswith(row))
        assert line.removeprefix(row).split()[0] == held


def test_by_class_it_reports_full_depth_and_the_policys_own_speed(policy, problems) -> None:
    results = report(policy, *problems, ("macro_f1",))
    for point, found in (
        (results["full_depth"], results["classes"]["full_depth"]),
        (results["points"]["own"]["measured"]["dev"], results["classes"]["own"]),
    ):
        confusion = np.array(found["confusion"])
        assert confusion.sum() == 200
        assert point["accuracy"] == pytest.approx(confusion.trace() / 200)
        assert point["metrics"]["macro_f1"] == pytest.approx(np.mean(found["f1"]))
    assert results["classes"]["own"] != results["classes"]["full_depth"]


def test_the_tables_by_class_name_every_class(policy, problems) -> None:
    results = report(policy, *problems, ("accuracy",))
    found, (figures, matrix) = results["classes"], class_tables(results).split("\n\n")
    line = next(line for line in figures.splitlines() if line.startswith("1 class 1 "))
    shown = [found[point][key][1] for point in ("full_depth", "own") for key in list(found["own"])]
    expected = [f"{v:.3f}" for v in shown if isinstance(v, float)]
    assert line.split()[3:] == [str(found["rows"][1]), *expected]
    counts = [f"{count or '.'}" for count in found["own"]["confusion"][1]]
    assert matrix.splitlines()[-1].split() == ["1", "class", "1", *counts]


def test_a_confusion_matrix_that_is_too_wide_is_in_the_file_only(policy, problems) -> None:
    results = report(policy, *problems, ("accuracy",))
    wide = {
        **{"names": [f"class {n}" for n in range(31)], "rows": [1] * 31},
        **dict.fromkeys(
            ("full_depth", "own"), dict.fromkeys(("precision", "recall", "f1"), [0.0] * 31)
        ),
    }
    shown = class_tables(results | {"classes": wide})
    assert len(shown.splitlines()) == 2 + 31
    with pytest.raises(CeeGymError, match="no classes to report one by one"):
        class_tables(results | {"classes": None})


def test_the_plot_is_a_picture(policy, problems, tmp_path) -> None:
    figure = curve_figure(report(policy, *problems, ("accuracy",)), "made up")
    figure.savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_a_report_refuses_a_policy_of_another_backbone(tmp_path) -> None:
    narrow = write_recording(tmp_path / "narrow", width=4)
    wide = write_recording(tmp_path / "wide", width=6)
    policy = ExpectedReturn().learn(EarlyExitEnv(trace=narrow), 500).policy
    with pytest.raises(CeeGymError, match=r"hidden \[4\].*hidden \[6\]"):
        report(policy, *splits(wide), ("accuracy",))


def test_a_policy_for_every_price_is_reported_at_the_middle_one(every_price) -> None:
    policy, (calibration, dev) = every_price
    results = report(policy, calibration, dev, ("accuracy",))
    assert results["alpha"] == 0.25
    own = results["points"]["own"]
    assert own["alpha"] == 0.25
    assert own["measured"]["dev"]["exits"] == evaluate_policy(policy.at(alpha=0.25), dev).exits
    deepest = dev.rewards(0.25)[:, -1].mean()
    assert results["full_depth"]["mean_return"] == pytest.approx(deepest)


def test_all_points_are_paid_at_the_same_price(every_price) -> None:
    policy, (calibration, dev) = every_price
    results = report(policy, calibration, dev, ("accuracy",), asked=Speed(alpha=0.4))
    held = policy.at(alpha=0.4)
    exits = held.exit_layers(held.scores_on(dev))
    point = results["points"]["alpha-0.4"]
    assert point["measured"]["dev"]["exits"] == np.bincount(exits - 1, minlength=4).tolist()
    expected = dev.rewards(0.25)[np.arange(60), exits - 1].mean()
    assert point["measured"]["dev"]["mean_return"] == pytest.approx(expected)


def test_a_promise_is_a_point_and_says_how_it_turns_out(policy, problems) -> None:
    calibration, dev = problems
    promise = Promise("harm", epsilon=0.1, delta=0.2)
    results = report(policy, calibration, dev, ("accuracy",), promise=promise)
    found = guaranteed_threshold(
        calibration.trace, policy.scores_on(calibration), risk="harm", epsilon=0.1, delta=0.2
    )
    point = results["points"]["harm-0.1-0.2"]
    assert point["threshold"] == found.threshold.value
    assert point["chosen_on"]["trace"] == calibration.trace.fingerprint
    assert point["label"] == "harm below 0.1 at 0.8 confidence"
    assert results["guarantee"] == found.check(dev.trace, policy.scores_on(dev))
    assert results["points"]["own"]["threshold"] == 0.7


def test_a_promise_is_for_the_price_that_was_asked_for(every_price) -> None:
    policy, (calibration, dev) = every_price
    promise = Promise("harm", epsilon=0.2, delta=0.2)
    points = report(
        policy, calibration, dev, ("accuracy",), asked=Speed(alpha=0.1), promise=promise
    )["points"]
    held = policy.at(alpha=0.1)
    found = guaranteed_threshold(
        calibration.trace, held.scores_on(calibration), risk="harm", epsilon=0.2, delta=0.2
    )
    assert points["harm-0.2-0.2-alpha-0.1"]["alpha"] == 0.1
    assert points["harm-0.2-0.2-alpha-0.1"]["threshold"] == found.threshold.value
    assert points["own"]["alpha"] == 0.25
    assert points["alpha-0.1"]["threshold"] == 0.5


def test_nothing_is_promised_for_a_price_that_the_same_rows_chose(every_price) -> None:
    policy, (calibration, dev) = every_price
    chosen = policy.for_budget(saved_layers=0.2, on=calibration)
    with pytest.raises(CeeGymError, match="give an alpha by hand"):
        report(chosen, calibration, dev, ("accuracy",), promise=Promise("harm", 0.2, 0.2))


def test_a_rule_that_knows_few_speeds_has_the_nearest(problems) -> None:
    calibration, dev = (Problem(p.trace, observe=("layer",)) for p in problems)
    policy = FixedLayer(layer=2).policy(calibration)
    points = report(policy, calibration, dev, ("accuracy",), asked=Speed(saved_layers=0.3))[
        "points"
    ]
    assert points["own"]["measured"]["dev"]["exits"] == [0, 200, 0, 0]
    assert points["saved-0.3"]["measured"]["dev"]["exits"] == [0, 200, 0, 0]
