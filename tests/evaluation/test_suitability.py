"""What early exit would bring, against what the parts it is made of say."""

from dataclasses import replace

import numpy as np
import pytest

from cee_gym.agents import make_agent
from cee_gym.envs import EarlyExitEnv
from cee_gym.errors import CeeGymError
from cee_gym.evaluation.suitability import (
    BATCH_SIZES,
    POINTS_LOST,
    WAYS,
    Way,
    suitability,
    table,
    verdict,
)
from cee_gym.measuring import predict
from cee_gym.policies.speeds import Speed, measure_speeds
from cee_gym.problem import Problem
from cee_gym.traces.recordings import open_split
from tests.made_profile import made_profile
from tests.made_traces import write_recording

NO_PROFILE_BUT = made_profile(12)


def way(name: str, exits: list[int], speedup: float, lost: float = 0.5, error: float = 0.4) -> Way:
    layers = np.array(exits)
    saved = 1 - layers.mean() / 4
    return Way(name, 1.0, layers, lost, error, saved, dict.fromkeys(BATCH_SIZES, speedup))


CUT = way("cut", [3] * 40, 1.3)
SAME = way("threshold", [3] * 40, 1.3)
EARLIER = way("threshold", [1, 3] * 20, 1.8)
EARLIEST = way("learned", [1, 1, 1, 2] * 10, 2.5)


@pytest.mark.parametrize(
    ("cut", "threshold", "learned", "said"),
    [
        (replace(CUT, speedups={1: 1.05}), *[replace(SAME, speedups={1: 1.02})] * 2, "No: at 1"),
        (CUT, SAME, replace(SAME, name="learned"), "Cut the model at layer 3"),
        (CUT, EARLIER, replace(EARLIER, name="learned"), "A threshold on the confidence is as"),
        (CUT, EARLIER, EARLIEST, "A learned policy pays, a threshold saves 50%: 69% of the"),
        # Noise: one row that leaves a layer earlier.
        (CUT, replace(SAME, exits=np.array([2] + [3] * 39)), SAME, "Cut the model"),
        # It saves more, and loses much more than was allowed.
        (CUT, EARLIER, replace(EARLIEST, lost=4.0, lost_error=1.0), "A threshold"),
        (CUT, EARLIER, replace(EARLIEST, lost=2.0, lost_error=1.0), "A learned policy pays"),
    ],
)
def test_the_verdict_follows_its_rules(cut, threshold, learned, said) -> None:
    sentence = verdict(cut, threshold, learned)
    assert sentence.startswith(said)
    assert "\n" not in sentence


def test_the_ways_are_those_of_a_shipped_recording(monkeypatch) -> None:
    from cee_gym.traces.recordings import find_recording

    recording = find_recording("EarlyExit-BERT-RTE")
    dev = open_split(recording, "dev")
    lengths = np.random.default_rng(0).integers(8, 60, len(dev))
    found = suitability(recording, NO_PROFILE_BUT, lengths)
    assert [(one.name, one.points_lost) for one in found.ways] == [
        (name, points) for name in WAYS for points in POINTS_LOST
    ]
    by = {(one.name, one.points_lost): one for one in found.ways}
    # The cut is the first layer that is good enough on calibration.
    accuracy = open_split(recording, "calibration").correct.mean(axis=0)
    (layer,) = set(by["cut", 1.0].exits)
    assert accuracy[layer - 1] >= accuracy[-1] - 0.01
    assert (accuracy[: layer - 1] < accuracy[-1] - 0.01).all()
    # The threshold is that of the rule.
    env = EarlyExitEnv(trace=recording, split="train", observe=("confidence",))
    rule = make_agent("confidence").learn(env).policy
    calibration, reported = (
        Problem(open_split(recording, split), observe=("confidence",))
        for split in ("calibration", "dev")
    )
    held = Speed(points_lost=1.0).choose(rule, measure_speeds(rule, calibration))
    exits = held.exit_layers(held.scores_on(reported))
    threshold = by["threshold", 1.0]
    np.testing.assert_array_equal(threshold.exits, exits)
    lost = dev.correct[:, -1].astype(float) - dev.correct[np.arange(len(dev)), exits - 1]
    assert threshold.lost == pytest.approx(100 * lost.mean())
    assert threshold.lost_error == pytest.approx(100 * lost.std(ddof=1) / len(dev) ** 0.5)
    for size in BATCH_SIZES:
        expected = predict(NO_PROFILE_BUT, exits, lengths, size).wall_clock_speedup
        assert threshold.speedups[size] == pytest.approx(expected)
        assert by["cut", 1.0].speedups[size] > 0
    # More may be lost, so no less is saved.
    for name in WAYS:
        assert by[name, 1.0].saved_layers >= by[name, 0.5].saved_layers - 0.05
    text = table(found)
    assert text.endswith(found.verdict)
    assert f"cut at layer {layer}" in text


def test_a_model_that_is_cut_runs_one_exit() -> None:
    """Leaving all at the same layer costs less by a cut than by a rule that looks everywhere."""
    from cee_gym.evaluation.suitability import _speedup

    exits, lengths = np.full(20, 6), np.full(20, 16)
    cut, rule = (_speedup(name, NO_PROFILE_BUT, exits, lengths, 8) for name in ("cut", "threshold"))
    assert cut > rule


def test_what_cannot_be_compared_is_refused(tmp_path) -> None:
    recording = write_recording(tmp_path / "r")
    lengths = np.full(40, 16)
    with pytest.raises(CeeGymError, match="of 12 layers, and this one has 4: profile this one"):
        suitability(recording, NO_PROFILE_BUT, lengths)
    (recording / "calibration").rename(tmp_path / "calibration")
    with pytest.raises(CeeGymError, match="no split calibration, on which this is decided"):
        suitability(recording, made_profile(4), lengths)
