"""The rules against their definitions, layer by layer in plain Python."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cee_gym.agents import (
    PCEE,
    Confidence,
    Entropy,
    FixedLayer,
    Patience,
    RandomExit,
    Saturation,
    load_agent,
)
from cee_gym.envs import EarlyExitEnv
from cee_gym.errors import CeeGymError
from cee_gym.policies.rules import graded
from cee_gym.returns import first_exit
from tests.made_traces import write_arrays, write_trace

PARTS = ("layer", "probs", "entropy", "confidence", "hidden")
# Values from 0 to 1, some of them equal to each other and to thresholds.
SHARES = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.floats(0, 1, width=32))
PATIENCE = st.integers(1, 7)


def instances(*width: int, elements: st.SearchStrategy = SHARES) -> st.SearchStrategy:
    """One part of the observations of 3 instances at 6 layers, float32 `[3, 6, width]`."""
    return arrays(np.float32, (3, 6, *width), elements=elements)


@pytest.fixture
def env(tmp_path) -> EarlyExitEnv:
    return EarlyExitEnv(trace=write_trace(tmp_path / "t", n=60, num_layers=6), observe=PARTS)


def scores(agent, part: str, values: np.ndarray) -> np.ndarray:
    """The agent's scores where it observes one part only."""
    agent.layout = {part: slice(0, values.shape[2])}
    graded = agent.exit_probabilities(values)
    assert graded.dtype == np.float32
    assert ((graded >= 0) & (graded <= 1)).all()
    return graded


def exits(agent, env: EarlyExitEnv) -> list[int]:
    return first_exit(agent.learn(env).exit_probabilities(env.observations) > 0.5).tolist()


def check(scores: np.ndarray, leaves: list[list[bool]], strength: list[list[float]]) -> None:
    """Scores are above 1/2 exactly where the rule leaves, and never fall as its strength grows."""
    assert (scores > 0.5).tolist() == leaves
    order = np.argsort(np.ravel(strength), kind="stable")
    ordered, strengths = scores.ravel()[order], np.ravel(strength)[order]
    assert (np.diff(ordered) >= 0)[np.diff(strengths) > 0].all()
    assert (np.diff(ordered) == 0)[np.diff(strengths) == 0].all()


@given(confidence=instances(1), threshold=SHARES)
def test_confidence_leaves_where_it_passes_the_threshold(confidence, threshold) -> None:
    leaves = [[float(c) > threshold for c in row] for row in confidence[..., 0]]
    check(
        scores(Confidence(threshold=threshold), "confidence", confidence),
        leaves,
        confidence[..., 0].tolist(),
    )


@given(entropy=instances(1), threshold=SHARES)
def test_entropy_leaves_where_it_falls_below_the_threshold(entropy, threshold) -> None:
    leaves = [[float(e) < threshold for e in row] for row in entropy[..., 0]]
    strength = [[-float(e) for e in row] for row in entropy[..., 0]]
    check(scores(Entropy(threshold=threshold), "entropy", entropy), leaves, strength)


@pytest.mark.parametrize(("classes", "likely"), [(2, 1), (2, 2), (150, 1), (150, 12), (150, 150)])
def test_entropy_means_the_same_for_any_number_of_classes(tmp_path, classes, likely) -> None:
    """All likely classes are equally likely: the entropy is log(likely) of log(classes)."""
    logits = np.full((5, 2, classes), -40.0)
    logits[..., :likely] = 0
    trace = write_arrays(tmp_path / "t", np.zeros((5, 2, 3)), logits, np.zeros(5, dtype=int))
    env = EarlyExitEnv(trace=trace, observe=("entropy",))
    expected = math.log(likely) / math.log(classes)
    for threshold in (0.01, 0.4, 0.6, 0.99):
        leaves = Entropy(threshold=threshold).learn(env).exit_probabilities(env.observations) > 0.5
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
    graded = scores(Patience(patience=patience), "probs", probs)
    check(graded, leaves, runs)
    assert len(np.unique(graded)) == len(np.unique(runs))


@given(entropy=instances(1), threshold=SHARES, patience=PATIENCE)
def test_pcee_counts_classifiers_in_a_row_that_are_confident(entropy, threshold, patience) -> None:
    leaves, strength = [], []
    for row in entropy[..., 0].tolist():
        confident, leaves_row, strength_row = 0, [], []
        for t, value in enumerate(row):
            confident = confident + 1 if value < threshold else 0
            leaves_row.append(confident >= patience)
            seen = t + 1 >= patience
            strength_row.append(-max(row[t - patience + 1 : t + 1]) if seen else -1.0)
        leaves.append(leaves_row)
        strength.append(strength_row)
    agent = PCEE(threshold=threshold, patience=patience)
    check(scores(agent, "entropy", entropy), leaves, strength)


@given(
    quarters=instances(1, elements=st.integers(0, 16)),
    thresholds=st.tuples(*[st.integers(1, 15)] * 2),
    patience=PATIENCE,
)
def test_the_curve_of_pcee_varies_its_threshold(quarters, thresholds, patience) -> None:
    one, other = (
        scores(PCEE(threshold=t / 16, patience=patience), "entropy", quarters / np.float32(16))
        for t in thresholds
    )
    stays = one[other <= 0.5]
    cut = stays.max() if len(stays) else -1.0
    assert ((one > cut) == (other > 0.5)).all()


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
    graded = scores(Saturation(threshold=threshold), "hidden", hidden)
    assert (graded[:, :1] <= graded.clip(max=0.5)).all()
    assert ((graded > 0.5) == np.array(leaves))[np.array(clear)].all()


def test_saturation_grows_with_the_similarity() -> None:
    angles = np.linspace(math.pi, 0, 50)
    hidden = np.zeros((50, 2, 2), dtype=np.float32)
    hidden[:, 0] = 3, 0
    hidden[:, 1] = np.stack([np.cos(angles), np.sin(angles)], axis=1) * 0.1
    graded = scores(Saturation(threshold=0.5), "hidden", hidden)[:, 1]
    assert (np.diff(graded) > 0).all()
    assert ((graded > 0.5) == (angles < math.pi / 3)).all()


@given(layer=st.integers(1, 8))
def test_a_fixed_layer_is_fixed(layer) -> None:
    one_hot = np.eye(6, dtype=np.float32)[None]
    leaves = [[t >= layer for t in range(1, 7)]]
    graded = scores(FixedLayer(layer=layer), "layer", one_hot)
    check(graded, leaves, [[1, 2, 3, 4, 5, 6]])
    # Every layer is somewhere on its curve.
    assert len(np.unique(graded)) == 6


def test_random_exits_are_geometric(tmp_path) -> None:
    env = EarlyExitEnv(trace=write_trace(tmp_path / "r", n=4000, num_layers=4))
    counts = np.bincount(exits(RandomExit(probability=0.3, seed=1), env), minlength=5)[1:] / 4000
    np.testing.assert_allclose(counts, [0.3, 0.21, 0.147, 0.343], atol=0.03)


def test_rules_read_their_parts_where_they_stand(env) -> None:
    trace = env.table.trace

    def plainly(leaves) -> list[int]:
        return [next((t + 1 for t in range(6) if leaves(i, t)), 6) for i in range(len(trace))]

    entropy = trace.entropy / np.log(3)
    assert exits(Confidence(threshold=0.7), env) == plainly(
        lambda i, t: trace.confidence[i, t] > 0.7
    )
    assert exits(Entropy(threshold=0.6), env) == plainly(lambda i, t: entropy[i, t] < 0.6)
    assert exits(PCEE(threshold=0.7, patience=2), env) == plainly(
        lambda i, t: t > 0 and entropy[i, t - 1] < 0.7 and entropy[i, t] < 0.7
    )
    assert exits(Patience(patience=2), env) == plainly(
        lambda i, t: t > 0 and trace.prediction[i, t - 1] == trace.prediction[i, t]
    )
    unit = trace.states / np.linalg.norm(trace.states, axis=2, keepdims=True)
    assert exits(Saturation(threshold=0.3), env) == plainly(
        lambda i, t: t > 0 and unit[i, t - 1] @ unit[i, t] > 0.3
    )
    assert set(exits(FixedLayer(layer=3), env)) == {3}


@pytest.mark.parametrize("kind", [Confidence, Entropy, Patience, PCEE, Saturation, FixedLayer])
def test_paths_and_whole_traces_agree_and_survive_saving(env, tmp_path, kind) -> None:
    agent = kind().learn(env)
    agent.save(tmp_path / "agent")
    again = load_agent(tmp_path / "agent")
    assert again.hyperparameters() == agent.hyperparameters()
    whole = agent.exit_probabilities(env.observations)
    np.testing.assert_array_equal(again.exit_probabilities(env.observations), whole)
    for t in range(1, 7):
        np.testing.assert_array_equal(
            agent.exit_probability(env.observations[:, :t]), whole[:, t - 1]
        )


@given(
    values=st.lists(SHARES, min_size=2, max_size=20),
    threshold=SHARES,
    sign=st.sampled_from([1, -1]),
)
def test_grading_keeps_the_order_and_puts_the_threshold_at_one_half(
    values, threshold, sign
) -> None:
    x = np.sort(sign * np.array(values))
    low, high = (0, 1) if sign == 1 else (-1, 0)
    scores = graded(x, sign * threshold, low=low, high=high)
    assert (np.diff(scores) >= 0).all()
    assert ((scores >= 0) & (scores <= 1)).all()
    assert ((scores > 0.5) == (x > sign * threshold)).all()


@given(threshold=st.floats(1e-3, 0.999), low=st.sampled_from([0, -1]))
def test_neighbours_of_the_threshold_come_to_the_right_side_of_one_half(threshold, low) -> None:
    nearest = np.float32(threshold)
    around = np.array([np.nextafter(nearest, to) for to in np.float32([-9, nearest, 9])])
    leaves = [float(value) > threshold for value in around]
    assert (graded(around, threshold, low=low) > 0.5).tolist() == leaves


def test_rules_name_the_part_they_lack_and_settings_out_of_range(tmp_path) -> None:
    env = EarlyExitEnv(trace=write_trace(tmp_path / "t"))
    for kind, part in ((Patience, "probs"), (PCEE, "entropy"), (Confidence, "confidence")):
        with pytest.raises(CeeGymError, match=f"reads {part}: observe it"):
            kind().learn(env)
    layers = EarlyExitEnv(trace=env.table.trace, observe=("layer",))
    with pytest.raises(CeeGymError, match="saturation reads hidden: observe it"):
        Saturation().learn(layers)
    with pytest.raises(CeeGymError, match="call learn first"):
        Saturation().exit_probabilities(env.observations)
    with pytest.raises(CeeGymError, match="at least 1, got 0"):
        Patience(patience=0)
    with pytest.raises(CeeGymError, match="patience must be at least 1"):
        PCEE(patience=0)
    with pytest.raises(CeeGymError, match=r"0 to 1, got 1\.5"):
        Confidence(threshold=1.5)
    with pytest.raises(CeeGymError, match=r"-1 to 1, got -2"):
        Saturation(threshold=-2)
