"""An exit policy: its scores, its speed, and what it says to the runtime, layer by layer."""

import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from cee_gym.agents import Agent, make_agent
from cee_gym.agents.registry import agent_names
from cee_gym.envs import EarlyExitEnv
from cee_gym.errors import CeeGymError
from cee_gym.policies.base import ExitPolicy
from cee_gym.policies.rules import Confidence, RandomExit
from cee_gym.policies.score import Decider
from cee_gym.policies.speeds import AT_ONCE
from cee_gym.problem import Problem
from cee_gym.returns import first_exit
from tests.made_traces import write_trace

ALL = ("hidden", "layer", "probs", "entropy", "confidence", "margin", "alpha")
CPU = torch.device("cpu")
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in agent_names() if name != "random"),
    ("expected-return", {"start": "confidence"}),
    ("expected-return", {"hidden_width": 0}),
    ("confidence", {"threshold": 0.4}),
    ("confidence", {"threshold": 0.0}),
    ("confidence", {"threshold": 1.0}),
    ("entropy", {"threshold": 0.9}),
    ("entropy", {"threshold": 0.0}),
    ("entropy", {"threshold": 1.0}),
    ("patience", {"patience": 1}),
    ("pcee", {"threshold": 0.9, "patience": 3}),
    ("pcee", {"threshold": 1.0}),
    ("saturation", {"threshold": 0.2}),
    ("saturation", {"threshold": -1.0}),
    ("fixed-layer", {"layer": 3}),
    ("fixed-layer", {"layer": 9}),
    ("sb3:ppo", {}),
    ("sb3:dqn", {"learning_starts": 64}),
]


@pytest.fixture(scope="module")
def env(tmp_path_factory) -> EarlyExitEnv:
    trace = write_trace(tmp_path_factory.mktemp("trace") / "t", n=60, num_layers=5)
    return EarlyExitEnv(trace=trace, alpha=(0.02, 0.1), observe=ALL)


@pytest.fixture(scope="module")
def problem(env) -> Problem:
    return env.problem


def learned(name: str, settings: dict[str, Any], env: EarlyExitEnv) -> Agent:
    agent = make_agent(name, **settings).learn(env, 200)
    network = getattr(agent.policy.score, "network", None)
    if network is not None:  # otherwise scores hardly differ within a layer
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return agent


@pytest.fixture(scope="module", params=SETTINGS, ids=str)
def policy(request, env) -> ExitPolicy:
    return learned(*request.param, env).policy


def at_other_speeds(policy: ExitPolicy, problem: Problem) -> list[ExitPolicy]:
    """At its own threshold and others, and at prices that are chosen in each way there is."""
    thresholds = (0.0, 0.21, 0.31, 0.5, 0.71, 0.83, 1.0)
    found = [policy, replace(policy, threshold=AT_ONCE)]
    found += [policy.at(threshold=threshold) for threshold in thresholds]
    if policy.has_every_price:
        found += [policy.at(alpha=0.07, threshold=threshold) for threshold in thresholds]
    return [*found, *(policy.for_budget(saved_layers=s, on=problem) for s in (0.0, 0.3, 0.6))]


def shown_to(decider: Decider, problem: Problem) -> torch.Tensor:
    """The parts of observations that it reads, `[N, L, D]`."""
    observations = problem.observe(alpha=decider.alpha)
    parts = [observations[..., problem.layout[part]] for part in decider.parts]
    return torch.tensor(np.concatenate(parts, axis=2))


def test_the_decider_passes_the_scores_above_the_threshold(problem, policy) -> None:
    for one in at_other_speeds(policy, problem):
        leave = one.scores_on(problem) > np.float32(one.threshold)
        decider = one.decider(CPU)
        shown = shown_to(decider, problem)
        for layer in range(1, problem.num_layers):
            paths = shown[:, :layer]
            found = decider.leave(paths if one.score.has_memory else paths[:, -1], layer)
            np.testing.assert_array_equal(found, leave[:, layer - 1])


def test_exits_are_at_the_exit_layers(problem, policy) -> None:
    for one in at_other_speeds(policy, problem):
        exits = one.exit_layers(one.scores_on(problem))
        layers = one.score.exit_layers(problem.num_layers, one.threshold)
        assert list(layers) == sorted(set(layers))
        assert {*exits.tolist()} <= {*layers, problem.num_layers}
        assert all(1 <= layer < problem.num_layers for layer in layers)


@pytest.mark.parametrize(
    ("name", "settings", "layers"),
    [
        ("fixed-layer", {"layer": 3}, [3]),
        ("fixed-layer", {"layer": 5}, []),
        ("patience", {"patience": 3}, [3, 4]),
        ("pcee", {"patience": 2}, [2, 3, 4]),
        ("saturation", {}, [2, 3, 4]),
        ("confidence", {}, [1, 2, 3, 4]),
        ("reinforce", {}, [1, 2, 3, 4]),
    ],
)
def test_where_nothing_can_be_decided_nothing_is_asked(env, name, settings, layers) -> None:
    policy = make_agent(name, **settings).learn(env, 0).policy
    assert list(policy.score.exit_layers(5, policy.threshold)) == layers


def test_what_has_a_memory_says_so(problem, policy) -> None:
    observations = problem.observe()
    whole, last = (policy.scores(observations[:, i:4])[:, -1] for i in (0, 3))
    if policy.score.has_memory:
        assert not np.allclose(whole, last, rtol=1e-5)
    else:
        np.testing.assert_allclose(whole, last, rtol=1e-5)


def test_scores_are_float32_from_0_to_1_and_above_the_threshold_is_left(problem, policy) -> None:
    observations = problem.observe()
    scores = policy.scores(observations)
    assert scores.dtype == np.float32
    assert scores.shape == (60, 5)
    assert ((scores >= 0) & (scores <= 1)).all()
    leave = scores > np.float32(policy.threshold)
    np.testing.assert_array_equal(policy.exit_layers(scores), first_exit(leave))
    p = policy.exit_probabilities(observations)
    np.testing.assert_array_equal(p, scores if policy.score.is_probability else leave)


def test_it_reads_a_problem_in_parts(problem, policy, monkeypatch) -> None:
    whole = policy.scores_on(problem)
    monkeypatch.setattr("cee_gym.policies.base._ROWS_AT_A_TIME", 7)
    np.testing.assert_allclose(policy.scores_on(problem), whole, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(policy.scores(problem.observe()), whole, rtol=1e-5, atol=1e-7)


def test_of_no_instances_there_are_no_scores(problem, policy) -> None:
    assert policy.scores(problem.observe()[:0]).shape == (0, 5)


def test_the_threshold_of_chance_is_its_probability(problem) -> None:
    decider = RandomExit(probability=0.3).policy(problem).decider(CPU)
    states = shown_to(decider, problem)[:, 0]
    left = [np.mean(decider.leave(states, 1)) for _ in range(100)]
    assert np.mean(left) == pytest.approx(0.3, abs=0.02)


@pytest.fixture(scope="module")
def every_price(env) -> ExitPolicy:
    return learned("expected-return", {"start": "confidence"}, env).policy


@pytest.mark.parametrize("alpha", [0.02, 0.06, 0.1])
def test_held_at_a_price_it_decides_as_where_the_observation_says_so(
    problem, every_price, alpha
) -> None:
    expected = every_price.scores(problem.observe(alpha=alpha))
    held = every_price.at(alpha=alpha)
    for said in (0.02, 0.05):
        observations = problem.observe(alpha=said)
        np.testing.assert_array_equal(held.scores(observations), expected)
        np.testing.assert_array_equal(held.scores_on(problem, said), expected)
        single = held.scores(observations[:, :3])[:, -1]
        np.testing.assert_allclose(single, expected[:, 2], rtol=1e-5)
    np.testing.assert_array_equal(every_price.scores_on(problem, alpha), expected)
    assert not np.array_equal(every_price.at(alpha=0.08).scores_on(problem), expected)


def test_an_instance_may_have_a_price_of_its_own(problem, every_price) -> None:
    prices = np.linspace(0.02, 0.1, len(problem))
    scores = every_price.scores_on(problem, prices)
    for row in (0, 17, 59):
        alone = every_price.at(alpha=prices[row]).scores_on(problem)[row]
        np.testing.assert_allclose(scores[row], alone, rtol=1e-5)


def test_it_leaves_what_it_is_given_as_it_is(problem, every_price) -> None:
    observations = np.array(problem.observe())
    before = observations.copy()
    every_price.at(alpha=0.05).scores(observations)
    np.testing.assert_array_equal(observations, before)


def test_another_speed_is_another_policy(every_price) -> None:
    held = replace(every_price, chosen_on="abc").at(alpha=0.05)
    assert (held.alpha, held.threshold, held.chosen_on) == (0.05, 0.5, "")
    again = held.at(threshold=0.4)
    assert (again.alpha, again.threshold) == (0.05, 0.4)
    assert (held.threshold, every_price.alpha) == (0.5, None)
    assert again.score is every_price.score
    with pytest.raises(AttributeError):
        held.threshold = 0.3  # type: ignore[misc]


@pytest.mark.parametrize("alpha", [0.2, 0.0, 1e308, float("nan"), float("inf")])
def test_a_price_it_did_not_learn_at_is_refused(every_price, alpha) -> None:
    with pytest.raises(CeeGymError, match=r"is not in the range .* give 0\.02 to 0\.1"):
        every_price.at(alpha=alpha)


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan")])
def test_a_threshold_that_is_none_is_refused(every_price, threshold) -> None:
    with pytest.raises(CeeGymError, match="threshold must be 0 to 1"):
        every_price.at(threshold=threshold)


def test_a_policy_of_one_price_is_held_at_none(env, every_price) -> None:
    rule = Confidence().policy(env)
    assert not rule.has_every_price
    rule.check_has_a_speed()
    with pytest.raises(CeeGymError, match="learned for one price of a layer"):
        rule.at(alpha=0.05)
    with pytest.raises(CeeGymError, match=r"for every alpha from 0\.02 to 0\.1: choose one"):
        every_price.check_has_a_speed()
    every_price.at(alpha=0.05).check_has_a_speed()


def test_states_of_another_model_are_refused(problem) -> None:
    policy = replace(Confidence().policy(problem), model="one")
    policy.check_fits(problem.layout, "one")
    policy.check_fits(problem.layout, None)
    with pytest.raises(CeeGymError, match="states of model one, not other"):
        policy.check_fits(problem.layout, "other")


def test_other_observations_are_refused_with_the_sizes_of_both(problem) -> None:
    policy = Confidence().policy(problem)
    other = {"confidence": slice(0, 1), "layer": slice(1, 13)}
    with pytest.raises(CeeGymError, match=r"hidden \[6\].* are confidence \[1\], layer \[12\]"):
        policy.check_fits(other, None)


def test_it_says_what_it_is(every_price) -> None:
    assert repr(every_price.at(alpha=0.05, threshold=0.25)) == (
        "<ExitPolicy expected-return: reads hidden, layer, probs, entropy, confidence, margin, "
        "alpha; threshold 0.25, alpha 0.05>"
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda x: 3 * x, "must be from 0 to 1, and goes from"),
        (lambda x: x * np.nan, "must be from 0 to 1, and goes from nan"),
        (lambda x: x[..., None], "one number for each state"),
    ],
)
def test_a_score_that_is_none_is_refused(given, message, monkeypatch) -> None:
    from cee_gym.envs import EarlyExitEnv

    env = EarlyExitEnv("EarlyExit-BERT-SST-2", observe=("confidence",))
    policy = Confidence(threshold=0.5).policy(env)
    monkeypatch.setattr(Confidence, "scores", lambda self, seen, layout: given(seen[..., 0]))
    with pytest.raises(CeeGymError, match=message):
        policy.scores_on(env.problem)


def test_scores_of_a_recording_hold_no_observations(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("cee_gym.recorded_observations.MOST_BYTES_IN_MEMORY", 0)
    trace = write_trace(tmp_path / "trace", n=20_000, num_layers=4, width=64)
    problem = Problem(trace, observe=("hidden", "confidence"))
    policy = Confidence(threshold=0.5).policy(problem)
    tracemalloc.start()
    scores = policy.scores_on(problem)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 2 * scores.nbytes
    assert peak < 0.8 * trace.states.nbytes
