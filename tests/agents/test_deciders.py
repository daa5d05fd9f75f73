"""What an agent says to the runtime, layer by layer, is what it says of whole traces."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from cee_gym.agents.at_alpha import AtAlpha

from cee_gym.agents import AGENTS, RandomExit
from cee_gym.agents.base import Agent, Decider, make_agent
from cee_gym.envs import EarlyExitEnv
from cee_gym.returns import first_exit
from tests.made_traces import write_trace

ALL = ("hidden", "layer", "probs", "entropy", "confidence", "alpha")
CPU = torch.device("cpu")
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in AGENTS if name != "random"),
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
    ("sb3:dqn", {"learning_starts": 64}),
]


@pytest.fixture(scope="module")
def env(tmp_path_factory) -> EarlyExitEnv:
    trace = write_trace(tmp_path_factory.mktemp("trace") / "t", n=60, num_layers=5)
    return EarlyExitEnv(trace=trace, alpha=(0.02, 0.1), observe=ALL)


def learned(name: str, settings: dict[str, Any], env: EarlyExitEnv) -> Agent:
    agent = make_agent(name, **settings).learn(env, 200)
    policy = getattr(agent, "policy", None)
    if policy is not None:  # otherwise scores hardly differ within a layer
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return agent


@pytest.fixture(scope="module", params=SETTINGS, ids=str)
def agent(request, env) -> Agent:
    return learned(*request.param, env)


def also_held(agent: Agent) -> list[Agent]:
    return [agent, *(AtAlpha(agent, 0.07, value) for value in (0.5, 0.31, 0.83, 0.0, 1.0))]


def at_lowest_alpha(env: EarlyExitEnv) -> np.ndarray:
    """Observations as an agent that is not held is shown them."""
    observations = env.observations.copy()
    observations[..., env.layout["alpha"]] = env.alpha_range[0]
    return observations


def shown_to(decider: Decider, env: EarlyExitEnv) -> torch.Tensor:
    """The parts of observations that it reads, `[N, L, D]`."""
    parts = {part: env.observations[..., place] for part, place in env.layout.items()}
    parts["alpha"] = np.full_like(parts["alpha"], decider.alpha)
    return torch.tensor(np.concatenate([parts[part] for part in decider.parts], axis=2))


def test_the_decider_passes_the_scores_above_the_threshold(env, agent) -> None:
    for one, threshold in product(also_held(agent), (0.0, 0.21, 0.5, 0.71, 1.0, np.inf)):
        leave = one.exit_probabilities(at_lowest_alpha(env)) > threshold
        decider = one.decider(threshold, CPU)
        shown = shown_to(decider, env)
        for layer in range(1, env.num_layers):
            paths = shown[:, :layer]
            found = decider.leave(paths if one.has_memory else paths[:, -1], layer)
            np.testing.assert_array_equal(found, leave[:, layer - 1])


def test_exits_are_at_the_exit_layers(env, agent) -> None:
    for one, threshold in product(also_held(agent), (0.0, 0.21, 0.5, 0.71, 1.0, np.inf)):
        exits = first_exit(one.exit_probabilities(env.observations) > threshold)
        layers = one.exit_layers(env.num_layers, threshold)
        assert list(layers) == sorted(set(layers))
        assert {*exits} <= {*layers, env.num_layers}
        assert all(1 <= layer < env.num_layers for layer in layers)


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
def test_where_nothing_can_be_decided_nothing_is_asked(name, settings, layers) -> None:
    assert list(make_agent(name, **settings).exit_layers(5)) == layers


def test_what_has_a_memory_says_so(env, agent) -> None:
    whole, last = (agent.exit_probability(env.observations[:, i:4]) for i in (0, 3))
    if agent.has_memory:
        assert not np.array_equal(whole, last)
    else:
        np.testing.assert_array_equal(whole, last)
    assert {one.has_memory for one in also_held(agent)} == {agent.has_memory}


def test_the_threshold_of_chance_is_its_probability(env) -> None:
    agent = RandomExit(probability=0.3).learn(env)
    decider = agent.decider(0.5, CPU)
    states = shown_to(decider, env)[:, 0]
    left = [np.mean(decider.leave(states, 1)) for _ in range(100)]
    assert np.mean(left) == pytest.approx(0.3, abs=0.02)
