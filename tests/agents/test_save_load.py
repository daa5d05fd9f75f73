"""What is read back decides as before, goes on learning, and is refused where it does not fit."""

import json
from dataclasses import replace

import numpy as np
import pytest

from cee_gym.agents import PPO, ExpectedReturn, Reinforce, load_agent, make_agent
from cee_gym.agents.registry import agent_names
from cee_gym.envs import EarlyExitEnv, EarlyExitVectorEnv
from cee_gym.errors import CeeGymError
from cee_gym.policies.base import ExitPolicy
from tests.made_traces import write_trace

ALL = [*agent_names(), "sb3:a2c"]


@pytest.fixture
def env(tmp_path) -> EarlyExitEnv:
    return EarlyExitEnv(
        trace=write_trace(tmp_path / "t"),
        observe=("layer", "confidence", "margin", "entropy", "hidden", "probs"),
    )


@pytest.mark.parametrize("name", ALL)
def test_agent_and_policy_are_read_back_as_they_were(env, tmp_path, name) -> None:
    agent = make_agent(name).learn(env, 300)
    agent.save(tmp_path / "agent")
    again = load_agent(tmp_path / "agent")
    policy = ExitPolicy.load(tmp_path / "agent")
    assert type(again) is type(agent)
    assert again.name == agent.name
    assert again.timesteps == agent.timesteps
    assert again.hyperparameters() == agent.hyperparameters()
    observations = env.problem.observe()
    scores = agent.policy.scores(observations)
    for one in (again.policy, policy):
        assert one.description() == agent.policy.description()
        assert one.observe == tuple(env.layout)
        if name != "random":  # its scores are drawn at each call
            np.testing.assert_array_equal(one.scores(observations), scores)


@pytest.mark.parametrize("kind", [Reinforce, ExpectedReturn, PPO])
def test_networks_without_a_hidden_layer_are_too(env, tmp_path, kind) -> None:
    agent = kind(hidden_width=0, batch_size=64).learn(env, 1_000)
    agent.save(tmp_path / "agent")
    np.testing.assert_array_equal(
        load_agent(tmp_path / "agent").policy.scores_on(env.problem),
        agent.policy.scores_on(env.problem),
    )


@pytest.mark.parametrize("kind", [Reinforce, ExpectedReturn, PPO])
def test_state_by_state_and_whole_traces_agree(env, kind) -> None:
    policy = kind(batch_size=64).learn(env, 1_000).policy
    observations = env.problem.observe()
    whole = policy.scores(observations)
    for t in range(1, env.num_layers + 1):
        single = policy.scores(observations[:, :t])[:, -1]
        np.testing.assert_allclose(single, whole[:, t - 1], rtol=1e-5)


def test_only_safetensors_and_json_are_written(env, tmp_path) -> None:
    Reinforce().learn(env, 100).save(tmp_path / "agent")
    assert sorted(p.name for p in (tmp_path / "agent").iterdir()) == [
        "agent.json",
        "agent.safetensors",
        "policy.json",
        "policy.safetensors",
    ]


@pytest.mark.parametrize("name", [name for name in ALL if name != "random"])
def test_learning_goes_on_after_loading(env, tmp_path, name) -> None:
    agent = make_agent(name).learn(env, 300)
    agent.save(tmp_path / "agent")
    again = load_agent(tmp_path / "agent")
    other = EarlyExitVectorEnv.of(env, 64) if name.startswith("sb3") else env
    for one in (agent, again):
        one.learn(other, 300)
    assert again.timesteps == agent.timesteps
    np.testing.assert_array_equal(
        again.policy.scores_on(env.problem), agent.policy.scores_on(env.problem)
    )


@pytest.mark.parametrize("name", ALL)
def test_a_policy_that_was_handed_over_stays_what_it_is(env, tmp_path, name) -> None:
    observations = env.problem.observe()
    agent = make_agent(name).learn(env, 300)
    agent.save(tmp_path / "agent")
    for learner in (agent, load_agent(tmp_path / "agent")):
        policy = learner.policy
        weights = {key: tensor.clone() for key, tensor in policy.score.tensors().items()}
        before, scores = policy.description(), policy.scores(observations)
        learner.learn(env, 2_000)
        assert policy.description() == before
        found = policy.score.tensors()
        assert all((found[key] == weights[key]).all() for key in weights)
        if name != "random":
            np.testing.assert_array_equal(policy.scores(observations), scores)
    if name in ("reinforce", "ppo", "expected-return", "constrained", "cat", "sb3:a2c"):
        assert not np.array_equal(agent.policy.scores(observations), scores)


def test_the_speed_of_a_policy_is_kept(env, tmp_path) -> None:
    policy = Reinforce().learn(env, 100).policy
    held = replace(policy.at(threshold=0.3), model="abc", chosen_on="def")
    held.save(tmp_path / "policy")
    again = ExitPolicy.load(tmp_path / "policy")
    assert (again.threshold, again.alpha, again.model, again.chosen_on) == (0.3, None, "abc", "def")


def test_the_same_seed_learns_the_same_and_scalar_or_vector_does_not_matter(env) -> None:
    vector = EarlyExitVectorEnv(4, trace=env.problem.trace, observe=tuple(env.layout))
    a, b, c, d = (
        Reinforce(seed=seed, batch_size=8).learn(e, 500).policy.scores_on(env.problem)
        for seed, e in ((0, env), (0, env), (1, env), (0, vector))
    )
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(a, d)
    assert not np.array_equal(a, c)


def test_an_agent_is_refused_in_observations_it_was_not_trained_on(env) -> None:
    agent = Reinforce(batch_size=8).learn(env, 100)
    other = EarlyExitEnv(trace=env.problem.trace)
    with pytest.raises(CeeGymError, match="trained on another"):
        agent.learn(other, 100)
    with pytest.raises(CeeGymError, match="trained on another"):
        agent.policy.scores_on(other.problem)


def test_another_range_of_alpha_is_refused(env) -> None:
    settings = {"trace": env.problem.trace, "observe": ("hidden", "layer", "alpha")}
    agent = Reinforce().learn(EarlyExitEnv(alpha=(0, 3), **settings), 100)
    with pytest.raises(CeeGymError, match=r"learned with alpha from 0 to 3, not 0 to 0\.5"):
        agent.learn(EarlyExitEnv(alpha=(0, 0.5), **settings), 10)


def test_missing_foreign_and_unknown_agents_are_named(env, tmp_path) -> None:
    with pytest.raises(CeeGymError, match="no agent at"):
        load_agent(tmp_path / "nothing")
    with pytest.raises(CeeGymError, match="no exit policy at"):
        ExitPolicy.load(tmp_path / "nothing")
    Reinforce().learn(env, 100).save(tmp_path / "agent")
    with pytest.raises(CeeGymError, match="kind reinforce, not ExpectedReturn"):
        ExpectedReturn.load(tmp_path / "agent")
    for file in ("agent.json", "policy.json"):
        path = tmp_path / "agent" / file
        text = path.read_text()
        path.write_text(json.dumps(json.loads(text) | {"version": 99}))
        with pytest.raises(CeeGymError, match="version 99"):
            load_agent(tmp_path / "agent")
        path.write_text(text)


@pytest.mark.parametrize("name", ["reinforce", "sb3:ppo"])
def test_an_agent_has_the_policy_it_was_saved_with(env, tmp_path, name) -> None:
    agent = make_agent(name).learn(env, 100)
    agent.save(tmp_path / "agent")
    agent.policy.at(threshold=0.7).save(tmp_path / "agent")
    assert load_agent(tmp_path / "agent").policy.threshold == 0.7


def test_an_agent_that_has_not_learned_says_so(env, tmp_path) -> None:
    with pytest.raises(CeeGymError, match="call learn first"):
        _ = Reinforce().policy
    with pytest.raises(CeeGymError, match="call learn first"):
        Reinforce().save(tmp_path / "agent")


FILES = ["agent.json", "agent.safetensors", "policy.json", "policy.safetensors"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("how", ["missing", "cut", "foreign"])
def test_a_damaged_agent_or_policy_is_one_clear_error(env, tmp_path, file, how) -> None:
    Reinforce().learn(env, 100).save(tmp_path / "agent")
    damaged = tmp_path / "agent" / file
    if how == "missing":
        damaged.unlink()
    elif how == "cut":
        damaged.write_bytes(damaged.read_bytes()[:-20])
    else:
        damaged.write_text('{"agent": "reinforce", "version": 1}')
    loads = [load_agent, ExitPolicy.load] if file.startswith("policy") else [load_agent]
    for load in loads:
        with pytest.raises(CeeGymError, match=r"(agent|policy) at") as caught:
            load(tmp_path / "agent")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": "high"},
        {"threshold": float("nan")},
        {"alpha": [1]},
        {"alpha_range": [0.1]},
        {"layout": {"layer": [0]}},
        {"layout": []},
        {"settings": {"hidden_width": "wide"}},
        {"settings": None},
        {"score": 3},
    ],
)
def test_a_policy_with_a_wrong_entry_is_one_clear_error(env, tmp_path, change) -> None:
    Reinforce().learn(env, 100).policy.save(tmp_path / "policy")
    path = tmp_path / "policy" / "policy.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CeeGymError, match=r"exit policy at .* is damaged") as caught:
        ExitPolicy.load(tmp_path / "policy")
    assert "\n" not in str(caught.value)
