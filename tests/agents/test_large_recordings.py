"""What is solved at once reads a recording larger than memory by rows, to the same policy."""

import numpy as np
import pytest

from cee_gym import Problem
from cee_gym.agents.registry import make_agent
from cee_gym.envs import EarlyExitEnv
from cee_gym.headroom import headroom
from tests.made_traces import write_trace

OBSERVE = ("hidden", "layer", "confidence", "previous")
ROWS = 200
PLACES = ("recorded_observations", "stopping", "agents.learning_to_exit")


@pytest.fixture
def little_memory(monkeypatch):
    """Has nothing held, and 4 KB read at a time; gives how many rows were read at once."""
    longest: list[int] = []

    def begin() -> list[int]:
        observe = Problem.observe

        def watched(self, rows=slice(None), *given, **named):
            observations = observe(self, rows, *given, **named)
            longest.append(len(observations))
            return observations

        monkeypatch.setattr(Problem, "observe", watched)
        monkeypatch.setattr("cee_gym.policies.base._ROWS_AT_A_TIME", 50)
        for place in PLACES:
            monkeypatch.setattr(f"cee_gym.{place}.MOST_BYTES_IN_MEMORY", 0)
        for place in PLACES[1:]:
            monkeypatch.setattr(f"cee_gym.{place}._BYTES_AT_A_TIME", 4000)
        return longest

    return begin


@pytest.mark.parametrize("alpha", [0.02, (0.0, 0.1)])
@pytest.mark.parametrize("name", ["policy-improvement", "longstaff-schwartz", "learning-to-exit"])
def test_the_policy_is_the_same(tmp_path, little_memory, name, alpha) -> None:
    observe = OBSERVE if isinstance(alpha, float) else (*OBSERVE, "alpha")

    def learned(place: str) -> np.ndarray:
        trace = write_trace(tmp_path / place, n=ROWS, width=8)
        env = EarlyExitEnv(trace=trace, observe=observe, alpha=alpha)
        agent = make_agent(name).learn(env, 1)
        return agent.policy.scores_on(Problem(trace, observe=observe, alpha=alpha))

    held = learned("held")
    longest = little_memory()
    np.testing.assert_allclose(learned("read"), held, rtol=1e-3, atol=1e-3)
    assert 0 < max(longest) <= 50


def test_headroom_is_the_same(tmp_path, little_memory) -> None:
    def measured(place: str) -> list[str]:
        others, reported = (
            Problem(
                write_trace(tmp_path / place / split, n=ROWS, seed=seed, split=split),
                observe=OBSERVE,
            )
            for seed, split in enumerate(("train", "dev"))
        )
        return [str(headroom(reported, others)), str(headroom(reported))]

    held = measured("held")
    longest = little_memory()
    assert measured("read") == held
    assert 0 < max(longest) <= 50


def test_one_layer_is_the_observation_of_that_layer(tmp_path, little_memory) -> None:
    observe = (*OBSERVE, "agreement", "alpha")

    def problem(place: str) -> Problem:
        return Problem(write_trace(tmp_path / place, n=20), observe=observe, alpha=(0.0, 1.0))

    held = problem("held")
    little_memory()
    read = problem("read")
    rows, alpha = slice(5, 15), np.linspace(0, 1, 10)
    for layer in range(1, held.num_layers + 1):
        whole = held.observe(rows, alpha)[:, layer - 1]
        assert np.array_equal(held.observe(rows, alpha, layer), whole)
        assert np.array_equal(read.observe(rows, alpha, layer), whole)
