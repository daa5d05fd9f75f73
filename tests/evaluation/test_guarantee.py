"""Guarantees against scipy's tests, plain loops, and populations whose risk is known."""

import json
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import expit, logit
from scipy.stats import beta, binom, binomtest

from cee_gym.errors import CeeGymError
from cee_gym.evaluation.guarantee import (
    GRID,
    conformal_threshold,
    count_losses,
    fixed_sequence,
    guaranteed_threshold,
    loss_table,
    losses_at,
    rows_needed,
    sentence,
)
from cee_gym.policies.rules import Confidence
from cee_gym.problem import open_problem
from cee_gym.traces.trace import Trace
from tests.made_traces import made_header, write_trace

# Few values, so that scores tie with each other and with thresholds.
SCORES = st.sampled_from([0.0, 1e-6, GRID[5000], 0.3, 0.5, GRID[1500], GRID[3], 1.0])


def trace_of(prediction: np.ndarray, labels: np.ndarray | None = None, **header: str) -> Trace:
    """A trace in memory of predictions `[N, L]`; the labels are the last layer's by default."""
    nothing: Any = np.zeros(prediction.shape, dtype=np.float32)
    return Trace(
        states=nothing[:, :, None],
        loss=nothing,
        prediction=prediction.astype(np.int32),
        confidence=nothing,
        entropy=nothing,
        labels=(prediction[:, -1] if labels is None else labels).astype(np.int32),
        row_ids=np.arange(len(prediction)).astype(str),
        logits=None,
        header=made_header(
            prediction.shape[1],
            2,
            **{"split": "calibration", "fingerprint": "calibration"} | header,
        ),
        path=None,  # type: ignore[arg-type]
    )


def losing(losses: np.ndarray, **header: str) -> Trace:
    """A trace that disagrees with its last layer, and harms, where losses `[N, L]` say."""
    assert not losses[:, -1].any()
    return trace_of(losses.astype(np.int32), np.zeros(len(losses)), **header)


@st.composite
def calibrations(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Losses and scores `[N, L]` of up to 25 rows and 4 layers."""
    shape = draw(st.tuples(st.integers(1, 25), st.integers(1, 4)))
    losses = draw(arrays(np.bool_, shape))
    losses[:, -1] = False
    return losses, draw(arrays(np.float32, shape, elements=SCORES))


def test_losses_are_what_a_plain_count_gives(tmp_path) -> None:
    trace = write_trace(tmp_path / "t", n=60, num_labels=3)
    for i in range(60):
        label, last = trace.labels[i], trace.prediction[i, -1]
        for t in range(4):
            given = trace.prediction[i, t]
            assert loss_table(trace, "disagreement")[i, t] == (given != last)
            assert loss_table(trace, "harm")[i, t] == (last == label and given != label)


@pytest.mark.parametrize(("rows", "epsilon", "delta"), [(40, 0.1, 0.1), (200, 0.05, 0.05)])
def test_a_setting_passes_where_scipy_rejects_that_its_risk_is_epsilon(rows, epsilon, delta):
    losses = np.arange(rows + 1)
    expected = [
        binomtest(k, rows, epsilon, alternative="less").pvalue <= delta for k in losses.tolist()
    ]
    assert fixed_sequence(losses[:, None], rows, epsilon=epsilon, delta=delta).tolist() == expected
    assert 0 < sum(expected) < rows


def plainly(losses: np.ndarray, scores: np.ndarray, epsilon: float, delta: float) -> float:
    """The guaranteed threshold, row by row, layer by layer and test by test."""
    rows, num_layers = losses.shape
    values = sorted(set(scores.ravel().tolist()))
    p_values: dict[int, float] = {}  # by the number of scores at or below the threshold
    chosen = 1.0
    for threshold in GRID[1:].tolist():
        below = bisect_right(values, threshold)
        if below not in p_values:
            lost = 0
            for i in range(rows):
                layers = (t for t in range(num_layers) if scores[i, t] > threshold)
                lost += int(losses[i, next(layers, num_layers - 1)])
            p_values[below] = binomtest(lost, rows, epsilon, alternative="less").pvalue
        if p_values[below] > delta:
            break
        chosen = threshold
    return chosen


@settings(max_examples=50)
@given(calibrations(), st.sampled_from([0.2, 0.4, 0.6]), st.sampled_from([0.1, 0.3]))
def test_the_threshold_is_the_last_one_that_passes(case, epsilon, delta) -> None:
    losses, scores = case
    trace = losing(losses)
    if len(trace) < rows_needed(epsilon, delta):
        with pytest.raises(CeeGymError, match="too few"):
            guaranteed_threshold(trace, scores, risk="harm", epsilon=epsilon, delta=delta)
        return
    for risk in ("harm", "disagreement"):
        found = guaranteed_threshold(trace, scores, risk=risk, epsilon=epsilon, delta=delta)
        assert found.threshold.value == plainly(losses, scores, epsilon, delta)
        assert found.losses == losses_at(losses, scores, found.threshold.value).sum()


@given(calibrations())
def test_losses_are_counted_at_every_threshold(case) -> None:
    losses, scores = case
    counts = count_losses(losses, scores)
    assert counts.shape == GRID.shape
    assert counts[0] == 0
    near = np.searchsorted(-GRID, -np.unique(scores))
    for place in {0, len(GRID) - 1, *near, *(near + 1), *(near - 1)} & set(range(len(GRID))):
        assert counts[place] == losses_at(losses, scores, GRID[place]).sum()


def test_losses_of_scores_of_all_sizes_are_counted() -> None:
    rng = np.random.default_rng(0)
    scores = expit(rng.normal(scale=5, size=(300, 6))).astype(np.float32)
    losses = rng.uniform(size=(300, 6)) < 0.5
    losses[:, -1] = False
    counts = count_losses(losses, scores)
    for place in range(0, len(GRID), 50):
        assert counts[place] == losses_at(losses, scores, GRID[place]).sum()


def test_a_score_equal_to_a_threshold_stays() -> None:
    # All rows would lose by leaving, at a score that is itself a threshold: it is the last safe
    # one.
    losses = np.tile([True, False], (100, 1))
    scores = np.full((100, 2), GRID[3000], dtype=np.float32)
    found = guaranteed_threshold(
        losing(losses), scores, risk="disagreement", epsilon=0.05, delta=0.05
    )
    assert found.threshold.value == GRID[3000]
    assert found.losses == 0


def test_the_grid_falls_evenly_in_logits_from_never_leaving() -> None:
    assert GRID[0] == 1.0
    assert (np.diff(GRID) < 0).all()
    np.testing.assert_array_equal(GRID, GRID.astype(np.float32))
    middle = logit(GRID[(GRID > 1e-4) & (GRID < 1 - 1e-4)])
    np.testing.assert_allclose(np.diff(middle), -1 / 256, rtol=0.2)


DRAWS = 2000


def draw_thresholds(
    losses: np.ndarray, scores: np.ndarray, rows: int, epsilon: float, delta: float
) -> tuple[np.ndarray, np.ndarray]:
    """The thresholds that many draws of calibration rows lead to, and their true risks."""
    trace = losing(losses)
    rng = np.random.default_rng(0)
    thresholds = np.empty(DRAWS)
    for draw in range(DRAWS):
        taken = rng.integers(len(losses), size=rows)
        part = replace(trace, states=trace.states[taken], prediction=trace.prediction[taken])
        found = guaranteed_threshold(
            part, scores[taken], risk="disagreement", epsilon=epsilon, delta=delta
        )
        thresholds[draw] = found.threshold.value
    distinct, which = np.unique(thresholds, return_inverse=True)
    risks = np.array([losses_at(losses, scores, threshold).mean() for threshold in distinct])
    return thresholds, risks[which]


def error(probability: float) -> float:
    """Three binomial standard errors of a share of the draws."""
    return 3 * float(np.sqrt(probability * (1 - probability) / DRAWS))


@pytest.mark.parametrize("delta", [0.05, 0.2])
def test_violations_are_as_frequent_as_the_closed_form_says(delta) -> None:
    # All leave at layer 1 or none does, and leaving loses on 5.1% where 5% are allowed.
    losses = np.zeros((1000, 2), dtype=bool)
    losses[:51, 0] = True
    scores = np.full((1000, 2), 0.5, dtype=np.float32)
    rows, epsilon = 400, 0.05
    _, risks = draw_thresholds(losses, scores, rows, epsilon, delta)
    most = max(k for k in range(rows) if binom.cdf(k, rows, epsilon) <= delta)
    exact = float(binom.cdf(most, rows, 0.051))
    assert exact <= delta
    assert np.mean(risks > epsilon) == pytest.approx(exact, abs=error(exact))


@pytest.mark.parametrize("delta", [0.05, 0.1])
def test_a_risk_that_grows_as_the_threshold_falls_is_kept_below_epsilon(delta) -> None:
    rng = np.random.default_rng(1)
    scores = rng.uniform(size=(2000, 4)).astype(np.float32)
    losses = rng.uniform(size=(2000, 4)) > scores**0.1
    losses[:, -1] = False
    thresholds, risks = draw_thresholds(losses, scores, 500, 0.05, delta)
    assert losses_at(losses, scores, 0.0).mean() > 0.05  # so that there is something to violate
    assert np.mean(risks > 0.05) <= delta + error(delta)
    # Most of what is allowed is used.
    assert np.median(risks) > 0.025
    assert np.median(thresholds) < 0.9


def test_no_search_for_the_best_threshold() -> None:
    # 25 ranges of thresholds, in each of which another 4% of the rows lose, where 3.5% are allowed:
    # the first is passed by luck seldom, but some is passed by luck nearly always. Below them all,
    # every row loses.
    edges = GRID[np.linspace(500, 6500, 26).astype(int)]
    piece = np.arange(1000) % 25
    lowest, last = np.full(1000, edges[-1]), np.zeros(1000)
    scores = np.stack([lowest, edges[piece + 1], edges[piece], last], axis=1).astype(np.float32)
    losses = np.tile([True, False, True, False], (1000, 1))
    for threshold in np.sqrt(edges[1:] * edges[:-1]):
        assert losses_at(losses, scores, threshold).mean() == pytest.approx(0.04)
    _, risks = draw_thresholds(losses, scores, 300, 0.035, 0.1)
    assert np.mean(risks > 0.035) <= 0.1 + error(0.1)
    most = max(k for k in range(300) if binom.cdf(k, 300, 0.035) <= 0.1)
    assert 1 - (1 - binom.cdf(most, 300, 0.04)) ** 25 > 0.5


@given(st.floats(0.001, 0.9), st.floats(0.001, 0.9))
def test_the_rows_needed_are_the_fewest(epsilon, delta) -> None:
    rows = rows_needed(epsilon, delta)
    assert (1 - epsilon) ** rows <= delta * (1 + 1e-6)
    assert (1 - epsilon) ** (rows - 1) > delta * (1 - 1e-6)


def test_too_few_rows_are_refused_with_how_many_it_takes() -> None:
    scores = np.full((59, 2), 0.9, dtype=np.float32)
    ask: dict[str, Any] = {"risk": "harm", "epsilon": 0.05, "delta": 0.05}
    found = guaranteed_threshold(losing(np.zeros((59, 2), dtype=bool)), scores, **ask)
    assert found.threshold.value == GRID[-1]
    with pytest.raises(CeeGymError, match=r"58 calibration rows are too few.* it takes 59"):
        guaranteed_threshold(losing(np.zeros((58, 2), dtype=bool)), scores[:58], **ask)


@settings(max_examples=200)
@given(calibrations(), st.sampled_from([0.1, 0.25, 1 / 3, 0.5, 0.8]))
def test_a_conformal_threshold_fails_on_at_most_a_share_epsilon_of_left_out_rows(case, epsilon):
    losses, scores = case
    rows = len(losses)
    allowed = int(rows * epsilon + 1e-9)
    failures = 0
    for left_out in range(rows):
        others = np.arange(rows) != left_out
        if allowed == 0:
            with pytest.raises(CeeGymError, match="too few"):
                conformal_threshold(losing(losses[others]), scores[others], epsilon=epsilon)
            continue
        found = conformal_threshold(losing(losses[others]), scores[others], epsilon=epsilon)
        alone = slice(left_out, left_out + 1)
        failures += int(losses_at(losses[alone], scores[alone], found.value)[0])
    assert failures <= allowed


@pytest.mark.parametrize(("rows", "epsilon"), [(20, 0.05), (20, 0.1), (49, 1 / 49), (30, 0.35)])
def test_a_conformal_threshold_is_exact_without_ties(rows, epsilon) -> None:
    losses = np.tile([True, False], (rows, 1))
    scores = np.random.default_rng(0).uniform(size=(rows, 2)).astype(np.float32)
    failures = 0
    for left_out in range(rows):
        others = np.arange(rows) != left_out
        found = conformal_threshold(losing(losses[others]), scores[others], epsilon=epsilon)
        failures += int(scores[left_out, 0] > found.value)
    assert failures == int(rows * epsilon + 1e-9)


def test_a_conformal_threshold_looks_only_where_leaving_disagrees() -> None:
    losses = np.tile([False, True, True, False], (9, 1))
    scores = np.tile(np.float32([0.9, 0.2, 0.4, 1.0]), (9, 1)) + np.arange(9)[:, None] / 1000
    scores[:, -1] = 1.0
    found = conformal_threshold(losing(losses), scores.astype(np.float32), epsilon=0.1)
    assert found.value == pytest.approx(0.408)
    assert found.chosen_on == "calibration"


@pytest.mark.parametrize(("epsilon", "needed"), [(0.1, 9), (0.05, 19), (1 / 49, 48)])
def test_too_few_rows_for_a_conformal_threshold(epsilon, needed) -> None:
    losses = np.tile([True, False], (needed, 1))
    scores = np.linspace(0.1, 0.9, 2 * needed, dtype=np.float32).reshape(needed, 2)
    assert conformal_threshold(losing(losses), scores, epsilon=epsilon).value == scores[-1, 0]
    with pytest.raises(CeeGymError, match=f"it takes {needed}"):
        conformal_threshold(losing(losses[1:]), scores[1:], epsilon=epsilon)


def test_a_guarantee_is_checked_on_another_split_only() -> None:
    losses = np.tile([True, False], (200, 1))
    scores = np.repeat(np.linspace(0, 1, 200, dtype=np.float32)[:, None], 2, axis=1)
    trace = losing(losses)
    found = guaranteed_threshold(trace, scores, risk="disagreement", epsilon=0.1, delta=0.1)
    assert found.name == "disagreement below 0.1 at 0.9 confidence"
    with pytest.raises(CeeGymError, match="chosen on this split"):
        found.check(trace, scores)
    dev = losing(losses[:150], split="dev", fingerprint="dev")
    there = found.check(dev, scores[50:])["there"]
    lost = int((scores[50:, 0] > found.threshold.value).sum())
    assert 0 < lost < 20
    assert there["rate"] == lost / 150
    low, high = there["rate_interval"]
    assert low == pytest.approx(beta.ppf(0.025, lost, 150 - lost + 1))
    assert high == pytest.approx(beta.ppf(0.975, lost + 1, 150 - lost))
    assert there["saved_layers"] == pytest.approx(lost / 150 / 2)
    assert (there["split"], there["trace"], there["rows"]) == ("dev", "dev", 150)


def test_a_promise_that_is_not_kept_is_named() -> None:
    losses = np.zeros((200, 2), dtype=bool)
    scores = np.full((200, 2), 0.5, dtype=np.float32)
    found = guaranteed_threshold(losing(losses), scores, risk="harm", epsilon=0.05, delta=0.05)
    for lost, kept in ((0, True), (15, True), (40, False)):
        losses[:lost, 0] = True
        dev = losing(losses, split="dev", fingerprint="dev")
        text = sentence(found.check(dev, scores))
        assert (
            f"harm below 0.05 at 0.95 confidence: 0.0000 of 200 calibration rows, {lost / 200:.4f}"
            in text
        )
        assert ("not kept" in text) != kept


def call(**changes: Any) -> None:
    given = {"trace": losing(np.zeros((100, 2), dtype=bool)), "scores": np.full((100, 2), 0.5)}
    asked = {"risk": "harm", "epsilon": 0.1, "delta": 0.1}
    guaranteed_threshold(**{**given, **asked, **changes})


def conform(**changes: Any) -> None:
    given = {"trace": losing(np.zeros((100, 2), dtype=bool)), "scores": np.full((100, 2), 0.5)}
    conformal_threshold(**{**given, "epsilon": 0.1, **changes})


@pytest.mark.parametrize("function", [call, conform])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epsilon": 0}, "epsilon must be above 0 and below 1, got 0"),
        ({"epsilon": 1.0}, "epsilon must be"),
        ({"epsilon": np.nan}, "epsilon must be"),
        ({"scores": np.full((100, 3), 0.5)}, r"\[100, 2\], got \[100, 3\]"),
        ({"scores": np.full((100, 2), 1.5)}, "from 0 to 1"),
        ({"scores": np.full((100, 2), np.nan)}, "from 0 to 1"),
        ({"trace": losing(np.zeros((100, 2), dtype=bool), split="train")}, "split train"),
    ],
)
def test_what_makes_no_sense_is_refused(function: Callable[..., None], changes, message) -> None:
    function()
    with pytest.raises(CeeGymError, match=message):
        function(**changes)


@pytest.mark.parametrize(
    ("changes", "message"), [({"delta": 1}, "delta must be"), ({"risk": "loss"}, "unknown")]
)
def test_an_unknown_risk_and_an_impossible_delta_are_refused(changes, message) -> None:
    with pytest.raises(CeeGymError, match=message):
        call(**changes)


def test_the_recording_in_the_package_leaves_early_under_a_guarantee() -> None:
    traces, scores = {}, {}
    for split in ("calibration", "dev"):
        problem = open_problem("EarlyExit-BERT-RTE", split=split, observe=("confidence",))
        traces[split] = problem.trace
        scores[split] = Confidence().policy(problem).scores_on(problem)
    found = guaranteed_threshold(
        traces["calibration"], scores["calibration"], risk="harm", epsilon=0.1, delta=0.1
    )
    there = found.check(traces["dev"], scores["dev"])["there"]
    assert there["saved_layers"] > 0.1
    # Of dev there are 277 rows: the rate is known to within two standard errors.
    assert there["rate"] < 0.1 + 2 * (0.1 * 0.9 / len(traces["dev"])) ** 0.5
    json.dumps(there, allow_nan=False)
