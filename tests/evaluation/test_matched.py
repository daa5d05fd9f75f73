"""Policies at equal saved layers, against the definitions worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import auc

from cee_gym import Problem
from cee_gym.evaluation.matched import (
    MatchedCurve,
    fixed_layer_curve,
    matched_curve,
    policy_curve,
)
from cee_gym.policies.rules import Confidence
from cee_gym.policies.speeds import measure_speeds
from tests.made_traces import write_trace


def curve(saved: list[float], accuracy: list[float], rows: int = 100) -> MatchedCurve:
    right = [np.arange(rows) < round(rows * share) for share in accuracy]
    return MatchedCurve(np.array(saved), np.array(right, dtype=float))


def test_between_two_points_rows_take_either_by_a_coin() -> None:
    found = curve([0.0, 0.4, 0.8], [0.9, 0.8, 0.4])
    means = found.at([0.0, 0.2, 0.4, 0.6, 0.8]).mean(axis=1)
    assert means == pytest.approx([0.9, 0.85, 0.8, 0.6, 0.4])
    assert set(np.unique(found.at(0.2))) == {0.0, 0.5, 1.0}


def test_the_most_that_can_be_saved_at_an_accuracy() -> None:
    found = curve([0.0, 0.4, 0.8], [0.9, 0.8, 0.4])
    assert found.saved_at(0.9) == pytest.approx(0.0)
    assert found.saved_at(0.85) == pytest.approx(0.2)
    assert found.saved_at(0.6) == pytest.approx(0.6)
    assert found.saved_at(0.1) == pytest.approx(0.8)
    assert np.isnan(found.saved_at(0.95))
    for accuracy in (0.88, 0.7, 0.45):
        assert found.at(found.saved_at(accuracy)).mean() == pytest.approx(accuracy)


def test_the_area_is_that_of_the_trapezoids() -> None:
    saved, accuracy = [0.0, 0.3, 0.4, 0.8], [0.9, 0.7, 0.8, 0.4]
    found = curve(saved, accuracy)
    assert found.area == pytest.approx(auc(saved, accuracy) / 0.8)


def test_the_hypervolume_counts_each_point_no_other_beats() -> None:
    # Rectangles from 0 to each point: 0.8 x 0.4, then what rises above it, and so on.
    found = curve([0.0, 0.3, 0.4, 0.8], [0.9, 0.7, 0.8, 0.4])
    assert found.hypervolume() == pytest.approx(0.8 * 0.4 + 0.4 * 0.4)


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(bool, st.tuples(st.integers(2, 6), st.integers(1, 12))), st.data())
def test_a_curve_lies_between_its_ends_and_never_saves_more_than_is_asked(right, data) -> None:
    saved = np.linspace(0, 0.9, len(right))
    found = MatchedCurve(saved, right.astype(float))
    wanted = data.draw(st.floats(0, 0.9))
    mixed = found.at(wanted)[0]
    assert ((mixed >= 0) & (mixed <= 1)).all()
    assert found.accuracy.min() - 1e-9 <= mixed.mean() <= found.accuracy.max() + 1e-9
    assert found.hypervolume() <= 0.9 * found.accuracy.max() + 1e-9


def test_a_policy_at_the_points_of_calibration_is_what_it_does_there(tmp_path) -> None:
    problems = [
        Problem(write_trace(tmp_path / split, split=split, seed=seed), observe=("confidence",))
        for seed, split in enumerate(("calibration", "dev"))
    ]
    policy = Confidence(threshold=0.5).policy(problems[0])
    speeds = measure_speeds(policy, problems[0])
    found = policy_curve(policy, speeds, problems[1])
    trace = problems[1].trace
    rows = np.arange(len(trace))
    for point in speeds.points[1:-1:10]:
        exits = policy.at(threshold=point.threshold).exit_layers(policy.scores_on(problems[1]))
        place = np.flatnonzero(
            np.isclose(found.saved, 1 - trace.depths[exits - 1].mean() / trace.depths[-1])
        )
        assert any(np.array_equal(found.right[p], trace.correct[rows, exits - 1]) for p in place)


def test_fixed_layers_that_a_lower_one_beats_are_left_out(tmp_path) -> None:
    trace = write_trace(tmp_path / "dev", split="dev")
    found = fixed_layer_curve(trace, trace)
    accuracy = trace.correct.mean(axis=0)
    kept = [t for t in range(len(accuracy) - 1) if (accuracy[t] > accuracy[:t]).all()]
    # Both ends are always there, and the last and the first may be twice.
    assert set(found.accuracy) == {accuracy[-1], accuracy[0], *accuracy[kept]}
    layers = [np.full(len(trace), t + 1) for t in range(trace.num_layers)]
    every = matched_curve(layers, trace.correct)
    shares = 1 - trace.depths / trace.depths[-1]
    assert every.saved == pytest.approx(sorted([*shares, 0, shares.max()]))
