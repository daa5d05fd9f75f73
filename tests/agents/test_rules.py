"""The rules against their definitions, layer by layer in plain Python."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cee_gym.agents import Confidence, Entropy, FixedLayer, Patience, RandomExit, load_agent
from cee_gym.agents.rules import _graded
from cee_gym.envs import EarlyExitEnv
from cee_gym.errors import CeeGymError
from cee_gym.returns import first_exit
from tests.traces import write_trace

PARTS = ("layer", "probs", "entropy", "confidence")


@pytest.fixture
def env(tmp_path) -> EarlyExitEnv:
    return EarlyExitEnv(trace=write_trace(tmp_path / "t", n=60, num_layers=6), observe=PARTS)


def exits(agent, env: EarlyExitEnv) -> list[int]:
    return first_exit(agent.learn(env).exit_probabilities(env.observations) > 0.5).tolist()


def plainly(env: EarlyExitEnv, leaves) -> list[int]:
    return [next((t + 1 for t in range(6) if leaves(i, t)), 6) for i in range(len(env.table.trace))]


def test_confidence_leaves_where_it_passes_the_threshold(env) -> None:
    confidence = env.table.trace.confidence
    assert exits(Confidence(threshold=0.7), env) == plainly(
        env, lambda i, t: confidence[i, t] > 0.7
    )


def test_entropy_is_normalised_by_the_number_of_classes(env) -> None:
    entropy = env.table.trace.entropy / np.log(3)
    assert exits(Entropy(threshold=0.6), env) == plainly(env, lambda i, t: entropy[i, t] < 0.6)


@pytest.mark.parametrize("patience", [1, 2, 3, 6])
def test_patience_counts_classifiers_in_a_row_that_agree(env, patience) -> None:
    prediction = env.table.trace.prediction

    def leaves(i: int, t: int) -> bool:
        row = prediction[i, max(0, t - patience + 1) : t + 1]
        return len(row) == patience and len(set(row)) == 1

    assert exits(Patience(patience=patience), env) == plainly(env, leaves)


@pytest.mark.parametrize("layer", [1, 3, 6])
def test_a_fixed_layer_is_fixed(env, layer) -> None:
    assert set(exits(FixedLayer(layer=layer), env)) == {layer}


def test_random_exits_are_geometric(tmp_path) -> None:
    env = EarlyExitEnv(trace=write_trace(tmp_path / "r", n=4000, num_layers=4))
    counts = np.bincount(exits(RandomExit(probability=0.3, seed=1), env), minlength=5)[1:] / 4000
    np.testing.assert_allclose(counts, [0.3, 0.21, 0.147, 0.343], atol=0.03)


@pytest.mark.parametrize("kind", [Confidence, Entropy, Patience, FixedLayer])
def test_paths_and_whole_traces_agree_and_survive_saving(env, tmp_path, kind) -> None:
    agent = kind().learn(env)
    agent.save(tmp_path / "agent")
    again = load_agent(tmp_path / "agent")
    whole = agent.exit_probabilities(env.observations)
    np.testing.assert_array_equal(again.exit_probabilities(env.observations), whole)
    for t in range(1, 7):
        np.testing.assert_array_equal(
            agent.exit_probability(env.observations[:, :t]), whole[:, t - 1]
        )


@given(values=st.lists(st.floats(0, 1), min_size=2, max_size=20), threshold=st.floats(0, 1))
def test_grading_keeps_the_order_and_puts_the_threshold_at_one_half(values, threshold) -> None:
    x = np.sort(np.array(values))
    graded = _graded(x, threshold)
    assert (np.diff(graded) >= 0).all()
    assert ((graded >= 0) & (graded <= 1 + 1e-6)).all()
    clear = np.abs(x - threshold) > 1e-6
    assert ((graded > 0.5) == (x > threshold))[clear].all()


def test_rules_name_the_part_they_lack_and_settings_out_of_range(tmp_path) -> None:
    env = EarlyExitEnv(trace=write_trace(tmp_path / "t"))
    with pytest.raises(CeeGymError, match="reads probs: observe it"):
        Patience().learn(env)
    with pytest.raises(CeeGymError, match="at least 1, got 0"):
        Patience(patience=0)
    with pytest.raises(CeeGymError, match=r"0 to 1, got 1\.5"):
        Confidence(threshold=1.5)
