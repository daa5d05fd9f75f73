"""An agent read back decides as before, goes on learning, and is refused where it does not fit."""

import json

import numpy as np
import pytest

from cee_gym.agents import PPO, ExpectedReturn, Reinforce, load_agent
from cee_gym.agents.base import agent_class
from cee_gym.envs import EarlyExitEnv, EarlyExitVectorEnv
from cee_gym.errors import CeeGymError
from tests.made_traces import write_trace


@pytest.fixture
def env(tmp_path) -> EarlyExitEnv:
    return EarlyExitEnv(
        trace=write_trace(tmp_path / "t"), observe=("layer", "confidence", "hidden", "probs")
    )


@pytest.mark.parametrize("kind", [Reinforce, ExpectedReturn, PPO])
@pytest.mark.parametrize("hidden_width", [0, 8])
def test_a_saved_agent_decides_as_before(env, tmp_path, kind, hidden_width) -> None:
    agent = kind(hidden_width=hidden_width, batch_size=64).learn(env, 1_000)
    agent.save(tmp_path / "agent")
    again = load_agent(tmp_path / "agent")
    assert type(again) is kind
    assert again.hyperparameters() == agent.hyperparameters()
    assert again.observe == tuple(env.layout)
    np.testing.assert_array_equal(
        again.exit_probabilities(env.observations), agent.exit_probabilities(env.observations)
    )


@pytest.mark.parametrize("kind", [Reinforce, ExpectedReturn, PPO])
def test_state_by_state_and_whole_traces_agree(env, kind) -> None:
    agent = kind(batch_size=64).learn(env, 1_000)
    whole = agent.exit_probabilities(env.observations)
    for t in range(1, env.num_layers + 1):
        paths = env.observations[:, :t]
        np.testing.assert_allclose(agent.exit_probability(paths), whole[:, t - 1], rtol=1e-5)


def test_only_safetensors_and_json_are_written(env, tmp_path) -> None:
    Reinforce().learn(env, 100).save(tmp_path / "agent")
    assert sorted(p.name for p in (tmp_path / "agent").iterdir()) == [
        "agent.json",
        "agent.safetensors",
    ]


def test_learning_goes_on_after_loading(env, tmp_path) -> None:
    agent = Reinforce(batch_size=8).learn(env, 500)
    agent.save(tmp_path / "agent")
    again = Reinforce.load(tmp_path / "agent")
    assert again.timesteps == agent.timesteps >= 500
    for one in (agent, again):
        one.learn(env, 500)
    np.testing.assert_array_equal(
        again.exit_probabilities(env.observations), agent.exit_probabilities(env.observations)
    )


def test_the_same_seed_learns_the_same_and_scalar_or_vector_does_not_matter(env) -> None:
    vector = EarlyExitVectorEnv(4, trace=env.table.trace, observe=tuple(env.layout))
    a, b, c, d = (
        Reinforce(seed=seed, batch_size=8).learn(e, 500).exit_probabilities(env.observations)
        for seed, e in ((0, env), (0, env), (1, env), (0, vector))
    )
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(a, d)
    assert not np.array_equal(a, c)


def test_an_agent_is_refused_in_observations_it_was_not_trained_on(env) -> None:
    agent = Reinforce(batch_size=8).learn(env, 100)
    other = EarlyExitEnv(trace=env.table.trace)
    with pytest.raises(CeeGymError, match="trained on another"):
        agent.learn(other, 100)


def test_the_part_layer_is_needed(env) -> None:
    for observe in (("hidden",), ("layer",)):
        with pytest.raises(CeeGymError, match="observe 'layer'"):
            Reinforce().learn(EarlyExitEnv(trace=env.table.trace, observe=observe), 100)


def test_alpha_in_the_observation_is_the_one_that_is_paid(tmp_path) -> None:
    env = EarlyExitEnv(
        trace=write_trace(tmp_path / "a", n=200),
        observe=("layer", "confidence", "alpha"),
        alpha=(0.0, 2.0),
        hardness=None,
    )
    agent = ExpectedReturn(learning_rate=1e-2, batch_size=50).learn(env, 100_000)
    observations = np.array(env.observations)
    mean_exit = []
    for alpha in (0.0, 2.0):
        observations[:, :, env.table.alpha_column] = alpha
        p = agent.exit_probabilities(observations)
        mean_exit.append((p[:, 0]).mean())
    assert mean_exit[1] > 0.9 > mean_exit[0] + 0.3


def test_missing_foreign_and_unknown_agents_are_named(env, tmp_path) -> None:
    with pytest.raises(CeeGymError, match="no agent at"):
        load_agent(tmp_path / "nothing")
    Reinforce().learn(env, 100).save(tmp_path / "agent")
    with pytest.raises(CeeGymError, match="not ExpectedReturn"):
        ExpectedReturn.load(tmp_path / "agent")
    file = tmp_path / "agent" / "agent.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"version": 99}))
    with pytest.raises(CeeGymError, match="version 99"):
        load_agent(tmp_path / "agent")
    with pytest.raises(CeeGymError, match="did you mean reinforce"):
        agent_class("reinforc")


def test_an_agent_that_has_not_learned_says_so(env) -> None:
    with pytest.raises(CeeGymError, match="call learn first"):
        Reinforce().exit_probabilities(env.observations)


def test_other_environments_are_refused() -> None:
    import gymnasium as gym

    with pytest.raises(CeeGymError, match="environments of cee-gym"):
        Reinforce().learn(gym.make("CartPole-v1"), 100)


@pytest.mark.parametrize("file", ["agent.json", "agent.safetensors"])
@pytest.mark.parametrize("how", ["missing", "cut", "foreign"])
def test_a_damaged_agent_is_one_clear_error(env, tmp_path, file, how) -> None:
    Reinforce().learn(env, 100).save(tmp_path / "agent")
    damaged = tmp_path / "agent" / file
    if how == "missing":
        damaged.unlink()
    elif how == "cut":
        damaged.write_bytes(damaged.read_bytes()[:-20])
    else:
        damaged.write_text('{"agent": "reinforce", "version": 1}')
    with pytest.raises(CeeGymError, match="agent at"):
        load_agent(tmp_path / "agent")
