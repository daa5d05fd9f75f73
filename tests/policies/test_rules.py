"""The rules against their definitions, layer by layer in plain Python."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cee_gym.errors import CeeGymError
from cee_gym.observation import Sizes
from cee_gym.policies.base import ExitPolicy
from cee_gym.policies.rules import (
    PCEE,
    Confidence,
    Entropy,
    FixedLayer,
    Margin,
    Patience,
    RandomExit,
    Rule,
    Saturation,
    full_depth,
)
from cee_gym.policies.score import SCORES
from cee_gym.problem import Problem
from tests.made_traces import write_arrays, write_trace

PARTS = ("layer", "probs", "entropy", "confidence", "margin", "hidden")
# Values from 0 to 1, some of them equal to each other and to thresholds.
SHARES = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.floats(0, 1, width=32))
# A score of one minus the entropy tells apart what differs by this, as float32 near 1 does.
RESOLUTION = 1.2e-7
PATIENCE = st.integers(1, 7)


def instances(*width: int, elements: st.SearchStrategy = SHARES) -> st.SearchStrategy:
    """One part of the observations of 3 instances at 6 layers, float32 `[3, 6, width]`."""
    return arrays(np.float32, (3, 6, *width), elements=elements)


@pytest.fixture
def problem(tmp_path) -> Problem:
    return Problem(write_trace(tmp_path / "t", n=60, num_layers=6), observe=PARTS)


def leaving(rule: Rule, part: str, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rule's scores, and where they are above its threshold, where it observes one part."""
    policy = ExitPolicy(rule, {part: slice(0, values.shape[2])}, rule.least)
    scores = policy.scores(values)
    assert scores.dtype == np.float32
    assert ((scores >= 0) & (scores <= 1)).all()
    return scores, policy.exit_probabilities(values) == 1


def exits(rule: Rule, problem: Problem) -> list[int]:
    policy = rule.policy(problem)
    return policy.exit_layers(policy.scores_on(problem)).tolist()


def check_order(scores: np.ndarray, strength: list[list[float]]) -> None:
    """Scores never fall as the strength of what the rule looks for grows."""
    order = np.argsort(np.ravel(strength), kind="stable")
    ordered, strengths = scores.ravel()[order], np.ravel(strength)[order]
    assert (np.diff(ordered) >= 0)[np.diff(strengths) > 0].all()
    assert (np.diff(ordered) == 0)[np.diff(strengths) == 0].all()


@given(confidence=instances(1), threshold=SHARES)
def test_confidence_leaves_where_it_passes_the_threshold(confidence, threshold) -> None:
    scores, leaves = leaving(Confidence(threshold=threshold), "confidence", confidence)
    np.testing.assert_array_equal(scores, confidence[..., 0])
    assert leaves.tolist() == [[float(c) > threshold for c in row] for row in confidence[..., 0]]


@given(margin=instances(1), threshold=SHARES)
def test_margin_leaves_where_it_passes_the_threshold(margin, threshold) -> None:
    scores, leaves = leaving(Margin(threshold=threshold), "margin", margin)
    np.testing.assert_array_equal(scores, margin[..., 0])
    assert leaves.tolist() == [[float(m) > threshold for m in row] for row in margin[..., 0]]


@given(confidence=instances(1), threshold=st.floats(0, 1))
def test_a_threshold_is_compared_as_float32_as_scores_are(confidence, threshold) -> None:
    _, leaves = leaving(Confidence(threshold=threshold), "confidence", confidence)
    np.testing.assert_array_equal(leaves, confidence[..., 0] > np.float32(threshold))


@given(entropy=instances(1), threshold=SHARES)
def test_entropy_leaves_where_it_falls_below_the_threshold(entropy, threshold) -> None:
    scores, leaves = leaving(Entropy(threshold=threshold), "entropy", entropy)
    np.testing.assert_array_equal(scores, 1 - entropy[..., 0])
    below = np.array([[float(e) < threshold for e in row] for row in entropy[..., 0]])
    clear = np.abs(entropy[..., 0] - np.float64(threshold)) > RESOLUTION
    assert (leaves == below)[clear].all()
    check_order(scores, [[-float(e) for e in row] for row in entropy[..., 0]])


@given(entropy=instances(1, elements=st.integers(0, 16)), threshold=st.integers(0, 16))
def test_an_entropy_that_is_the_threshold_stays(entropy, threshold) -> None:
    _, leaves = leaving(Entropy(threshold=threshold / 16), "entropy", entropy / np.float32(16))
    np.testing.assert_array_equal(leaves, entropy[..., 0] < threshold)


@pytest.mark.parametrize(("classes", "likely"), [(2, 1), (2, 2), (150, 1), (150, 12), (150, 150)])
def test_entropy_means_the_same_for_any_number_of_classes(tmp_path, classes, likely) -> None:
    """All likely classes are equally likely: the entropy is log(likely) of log(classes)."""
    logits = np.full((5, 2, classes), -40.0)
    logits[..., :likely] = 0
    trace = write_arrays(tmp_path / "t", np.zeros((5, 2, 3)), logits, np.zeros(5, dtype=int))
    problem = Problem(trace, observe=("entropy",))
    expected = math.log(likely) / math.log(classes)
    for threshold in (0.01, 0.4, 0.6, 0.99):
        policy = Entropy(threshold=threshold).policy(problem)
        leaves = policy.exit_probabilities(problem.observe())
        assert set(leaves.ravel().tolist()) == {expected < threshold}


@given(labels=instances(elements=st.integers(0, 2)), patience=PATIENCE)
def test_patience_counts_classifiers_in_a_row_that_agree(labels, patience) -> None:
    probs = np.eye(3, dtype=np.float32)[labels.astype(int)]
    leaves, runs = [], []
    for row in labels.tolist():
        agreements, leaves_row, runs_row = 0, [], []
        for t, label in enumerate(row):
            agreements = agreements + 1 if t > 0 and label == row[t - 1] else 0
            leaves_row.append(agreements >= patience - 1)  # the patience as PABEE counts it
            runs_row.append(agreements)
        leaves.append(leaves_row)
        runs.append(runs_row)
    scores, found = leaving(Patience(patience=patience), "probs", probs)
    assert found.tolist() == leaves
    check_order(scores, runs)
    assert len(np.unique(scores)) == len(np.unique(runs))


@given(entropy=instances(1), threshold=SHARES, patience=PATIENCE)
def test_pcee_counts_classifiers_in_a_row_that_are_confident(entropy, threshold, patience) -> None:
    leaves, strength, clear = [], [], []
    for row in entropy[..., 0].tolist():
        confident, leaves_row, strength_row, clear_row = 0, [], [], []
        for t, value in enumerate(row):
            confident = confident + 1 if value < threshold else 0
            leaves_row.append(confident >= patience)
            seen = t + 1 >= patience
            highest = max(row[t - patience + 1 : t + 1]) if seen else 1.0
            strength_row.append(-highest)
            clear_row.append(not seen or abs(highest - threshold) > RESOLUTION)
        leaves.append(leaves_row)
        strength.append(strength_row)
        clear.append(clear_row)
    scores, found = leaving(PCEE(threshold=threshold, patience=patience), "entropy", entropy)
    assert (found == np.array(leaves))[np.array(clear)].all()
    check_order(scores, strength)


@given(
    sixteenths=instances(1, elements=st.integers(0, 16)),
    thresholds=st.tuples(*[st.integers(0, 16)] * 2),
    patience=PATIENCE,
)
def test_another_threshold_of_pcee_keeps_its_patience(sixteenths, thresholds, patience) -> None:
    entropy = sixteenths / np.float32(16)
    one, other = (PCEE(threshold=t / 16, patience=patience) for t in thresholds)
    policy = ExitPolicy(one, {"entropy": slice(0, 1)}, one.least).at(threshold=other.least)
    _, leaves = leaving(other, "entropy", entropy)
    np.testing.assert_array_equal(policy.exit_probabilities(entropy), leaves)


@given(
    hidden=instances(4, elements=st.floats(-8, 8, width=16)),
    threshold=st.floats(-1, 1, width=32),
)
def test_saturation_compares_the_states_of_successive_layers(hidden, threshold) -> None:
    leaves, clear = [], []
    for row in hidden.tolist():
        leaves_row, clear_row = [False], [True]
        for before, now in itertools.pairwise(row):
            norm = math.hypot(*before) * math.hypot(*now)
            similarity = (
                sum(a * b for a, b in zip(before, now, strict=True)) / norm if norm else 0.0
            )
            leaves_row.append(similarity > threshold)
            clear_row.append(abs(similarity - threshold) > 1e-5)
        leaves.append(leaves_row)
        clear.append(clear_row)
    scores, found = leaving(Saturation(threshold=threshold), "hidden", hidden)
    assert (scores[:, 0] == 0).all()
    assert (found == np.array(leaves))[np.array(clear)].all()


def test_saturation_grows_with_the_similarity() -> None:
    angles = np.linspace(math.pi, 0, 50)
    hidden = np.zeros((50, 2, 2), dtype=np.float32)
    hidden[:, 0] = 3, 0
    hidden[:, 1] = np.stack([np.cos(angles), np.sin(angles)], axis=1) * 0.1
    scores, leaves = leaving(Saturation(threshold=0.5), "hidden", hidden)
    np.testing.assert_allclose(scores[:, 1], (1 + np.cos(angles)) / 2, atol=1e-6)
    assert (np.diff(scores[:, 1]) > 0).all()
    assert (leaves[:, 1] == (angles < math.pi / 3)).all()


@given(layer=st.integers(1, 8))
def test_a_fixed_layer_is_fixed(layer) -> None:
    one_hot = np.eye(6, dtype=np.float32)[None]
    leaves = [[t >= layer for t in range(1, 7)]]
    scores, found = leaving(FixedLayer(layer=layer), "layer", one_hot)
    assert found.tolist() == leaves
    check_order(scores, [[1, 2, 3, 4, 5, 6]])
    # Every layer is somewhere on its curve.
    assert len(np.unique(scores)) == 6


@pytest.fixture
def many(tmp_path) -> Problem:
    return Problem(write_trace(tmp_path / "r", n=4000, num_layers=4))


def test_random_exits_are_geometric(many) -> None:
    counts = np.bincount(exits(RandomExit(probability=0.3, seed=1), many), minlength=5)[1:] / 4000
    np.testing.assert_allclose(counts, [0.3, 0.21, 0.147, 0.343], atol=0.03)


def test_chance_can_be_none_and_certainty(many) -> None:
    assert set(exits(RandomExit(probability=0.0), many)) == {4}
    assert set(exits(RandomExit(probability=1.0), many)) == {1}


def test_the_same_seed_draws_the_same_and_each_call_anew(many) -> None:
    one, same, other = (RandomExit(seed=seed) for seed in (0, 0, 1))
    first = exits(one, many)
    assert exits(same, many) == first
    assert exits(other, many) != first
    assert exits(one, many) != first


def test_rules_read_their_parts_where_they_stand(problem) -> None:
    trace = problem.trace

    def plainly(leaves) -> list[int]:
        return [next((t + 1 for t in range(6) if leaves(i, t)), 6) for i in range(len(trace))]

    entropy = trace.entropy / np.log(3)
    assert exits(Confidence(threshold=0.7), problem) == plainly(
        lambda i, t: trace.confidence[i, t] > 0.7
    )
    best = np.sort(trace.probabilities, axis=-1)
    assert exits(Margin(threshold=0.5), problem) == plainly(
        lambda i, t: best[i, t, -1] - best[i, t, -2] > 0.5
    )
    assert exits(Entropy(threshold=0.6), problem) == plainly(lambda i, t: entropy[i, t] < 0.6)
    assert exits(PCEE(threshold=0.7, patience=2), problem) == plainly(
        lambda i, t: t > 0 and entropy[i, t - 1] < 0.7 and entropy[i, t] < 0.7
    )
    assert exits(Patience(patience=2), problem) == plainly(
        lambda i, t: t > 0 and trace.prediction[i, t - 1] == trace.prediction[i, t]
    )
    unit = trace.states / np.linalg.norm(trace.states, axis=2, keepdims=True)
    assert exits(Saturation(threshold=0.3), problem) == plainly(
        lambda i, t: t > 0 and unit[i, t - 1] @ unit[i, t] > 0.3
    )
    assert set(exits(FixedLayer(layer=3), problem)) == {3}


RULES = [Confidence, Margin, Entropy, Patience, PCEE, Saturation, FixedLayer]


@pytest.mark.parametrize("kind", RULES)
def test_paths_and_whole_traces_agree_and_survive_saving(problem, tmp_path, kind) -> None:
    policy = kind().policy(problem)
    policy.save(tmp_path / "policy")
    again = ExitPolicy.load(tmp_path / "policy")
    assert again.score == policy.score
    assert again.description() == policy.description()
    observations = problem.observe()
    whole = policy.scores(observations)
    np.testing.assert_array_equal(again.scores(observations), whole)
    for t in range(1, 7):
        np.testing.assert_array_equal(policy.scores(observations[:, :t])[:, -1], whole[:, t - 1])


def test_a_rule_that_has_drawn_survives_saving_too(problem, tmp_path) -> None:
    policy = RandomExit(probability=0.3, seed=4).policy(problem)
    first = policy.scores_on(problem)
    policy.save(tmp_path / "policy")
    again = ExitPolicy.load(tmp_path / "policy")
    assert again.score.settings() == {"probability": 0.3, "seed": 4}
    np.testing.assert_array_equal(again.scores_on(problem), first)  # it starts anew


def test_full_depth_leaves_nobody_before_the_last(problem) -> None:
    policy = full_depth(Sizes(6, 6, 3))
    assert policy.observe == ("layer",)
    layers = Problem(problem.trace, observe=("layer",))
    assert set(policy.exit_layers(policy.scores_on(layers)).tolist()) == {6}
    assert list(policy.score.exit_layers(6, policy.threshold)) == []


@pytest.mark.parametrize("kind", [*RULES, RandomExit])
def test_a_rule_is_known_by_its_name_and_names_the_part_it_lacks(problem, kind) -> None:
    assert SCORES.get(kind.name) is kind
    (part,) = kind.reads
    others = Problem(problem.trace, observe=[name for name in PARTS if name != part])
    with pytest.raises(CeeGymError, match=f"{kind.name} reads {part}: observe it"):
        kind().policy(others)


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        (Patience, {"patience": 0}, "patience must be 1 to 1000, got 0"),
        (PCEE, {"patience": 0}, "patience must be 1 to 1000, got 0"),
        (PCEE, {"patience": 10**13}, "patience must be 1 to 1000"),
        (PCEE, {"patience": 2.5}, r"patience must be a whole number, got 2\.5"),
        (Confidence, {"threshold": 1.5}, r"threshold must be 0 to 1, got 1\.5"),
        (Confidence, {"threshold": "high"}, "threshold must be a number, got 'high'"),
        (Saturation, {"threshold": -2}, "threshold must be -1 to 1, got -2"),
        (Entropy, {"threshold": float("nan")}, "threshold must be 0 to 1, got nan"),
        (FixedLayer, {"layer": 0}, "layer must be 1 to 1000, got 0"),
        (RandomExit, {"probability": 2.0}, r"probability must be 0 to 1, got 2\.0"),
        (RandomExit, {"seed": -1}, "seed must be 0 to 4294967295, got -1"),
        (RandomExit, {"seed": 2**32}, "seed must be 0 to 4294967295, got 4294967296"),
    ],
)
def test_settings_out_of_range_are_refused(kind, settings, said) -> None:
    with pytest.raises(CeeGymError, match=said):
        kind(**settings)
