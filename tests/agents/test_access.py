"""Wrappers that watch are looked through, those that change rewards honoured, others refused."""

import sys
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import wrappers
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import vector as vector_wrappers
from stable_baselines3.common.monitor import Monitor

from cee_gym.agents import make_agent
from cee_gym.agents.access import access
from cee_gym.agents.registry import agent_names
from cee_gym.agents.sb3 import make_sb3_vec_env
from cee_gym.envs import EarlyExitEnv, EarlyExitVectorEnv
from cee_gym.errors import CeeGymError
from cee_gym.reward import QUALITIES, Quality
from cee_gym.traces import Trace
from tests.made_traces import write_trace

OBSERVE = ("hidden", "layer", "probs", "confidence", "margin", "entropy")
SMALL: dict[str, dict[str, Any]] = {
    "reinforce": {"batch_size": 8, "rollouts": 4},
    "ppo": {"num_envs": 4, "num_steps": 16},
    "sb3:ppo": {"num_envs": 4, "n_steps": 64, "batch_size": 64, "n_epochs": 4},
}
BY_STEPS = ("reinforce", "ppo", "sb3:ppo")
BY_TABLES = (
    "expected-return",
    "constrained",
    "longstaff-schwartz",
    "policy-improvement",
    "learning-to-exit",
    "cat",
)
SAME_STEP, DISABLED = AutoresetMode.SAME_STEP, AutoresetMode.DISABLED


@pytest.fixture
def trace(tmp_path) -> Trace:
    return write_trace(tmp_path / "t")


def scalar(trace: Trace, **changes: Any) -> EarlyExitEnv:
    settings = {"alpha": 0.25, "reward": "correctness", "observe": OBSERVE} | changes
    return EarlyExitEnv(trace=trace, **settings)


def vector(agent: str, trace: Trace, num_envs: int = 4) -> EarlyExitVectorEnv:
    """Environments that reset when the agent needs it."""
    mode = SAME_STEP if agent in ("ppo", "sb3:ppo") else DISABLED
    settings = {"alpha": 0.25, "reward": "correctness", "observe": OBSERVE}
    return EarlyExitVectorEnv(num_envs, trace=trace, autoreset_mode=mode, **settings)


def side_by_side(agent: str, wrap, trace: Trace, num_envs: int = 4) -> SyncVectorEnv:
    mode = SAME_STEP if agent in ("ppo", "sb3:ppo") else DISABLED
    return SyncVectorEnv([lambda: wrap(scalar(trace))] * num_envs, autoreset_mode=mode)


def learned(agent: str, env: Any) -> np.ndarray:
    """The scores on all states of what an agent learns in an environment."""
    made = make_agent(agent, **SMALL.get(agent, {})).learn(env, 400)
    inner = env.unwrapped.envs[0] if isinstance(env.unwrapped, SyncVectorEnv) else env
    return made.policy.scores_on(inner.unwrapped.problem)


WATCHERS = {
    "order": lambda env: wrappers.OrderEnforcing(env),
    "checker": lambda env: wrappers.PassiveEnvChecker(env),
    "statistics": lambda env: wrappers.RecordEpisodeStatistics(env),
    "monitor": lambda env: Monitor(env),
    "all": lambda env: Monitor(wrappers.RecordEpisodeStatistics(wrappers.OrderEnforcing(env))),
}


@pytest.mark.parametrize("which", WATCHERS)
@pytest.mark.parametrize("agent", [*BY_STEPS, *BY_TABLES, "confidence"])
def test_what_only_watches_changes_nothing(trace, agent, which) -> None:
    wrapped = WATCHERS[which](scalar(trace))
    np.testing.assert_array_equal(learned(agent, wrapped), learned(agent, scalar(trace)))


@pytest.mark.parametrize("agent", [*BY_STEPS, "expected-return", "cat"])
def test_what_only_watches_a_vector_environment_changes_nothing(trace, agent) -> None:
    wrapped = vector_wrappers.RecordEpisodeStatistics(vector(agent, trace))
    np.testing.assert_array_equal(learned(agent, wrapped), learned(agent, vector(agent, trace)))


def test_videos_only_watch(trace, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "moviepy", ModuleType("moviepy"))
    filmed = scalar(trace, render_mode="rgb_array")
    folder = str(tmp_path / "videos")
    env = wrappers.RecordVideo(filmed, folder, episode_trigger=lambda _: False)
    assert access(env) == access(scalar(trace))
    env.close()


def test_what_gym_make_puts_around_only_watches() -> None:
    env = gym.make("EarlyExit-BERT-RTE")
    assert env is not env.unwrapped
    assert access(env).problem is env.unwrapped.problem


def minus(reward: Any) -> Any:
    return -reward


def half(reward: Any) -> Any:
    return reward / 2


def same(reward: Any) -> Any:
    return reward


def transformed(change):
    return lambda env: wrappers.TransformReward(env, change)


class Minus(gym.RewardWrapper):
    """One of the user's own."""

    def reward(self, reward: Any) -> Any:
        return -reward


@pytest.mark.parametrize("agent", BY_STEPS)
@pytest.mark.parametrize("wrap", [transformed(minus), Minus], ids=["gymnasium's", "own"])
def test_changed_rewards_are_learned_from(trace, agent, wrap) -> None:
    problem = scalar(trace).problem
    depths = []
    for env in (transformed(same)(scalar(trace)), wrap(scalar(trace))):
        made = make_agent(agent, learning_rate=2e-2, **SMALL.get(agent, {})).learn(env, 2_000)
        depths.append(made.policy.exit_probabilities(problem.observe())[:, 0].mean())
    # A layer costs a lot, so it is best to leave at once; where the sign is turned, at the end.
    assert depths[0] > depths[1] + 0.2


@pytest.fixture
def halved(monkeypatch) -> None:
    """A quality of half as much, known for one test."""
    quality = Quality(lambda exits: exits.correct / 2, 0.0, 0.5, False)
    monkeypatch.setitem(QUALITIES._entries, "half correct", quality)
    monkeypatch.setitem(QUALITIES._modules, "half correct", __name__)


@pytest.mark.usefixtures("halved")
@pytest.mark.parametrize("agent", BY_STEPS)
def test_half_the_reward_is_learned_from_like_a_reward_of_half_as_much(trace, agent) -> None:
    wrapped = transformed(half)(scalar(trace))
    # Wrapped too, so that it is learned from by steps as well.
    other = transformed(same)(scalar(trace, reward="half correct", alpha=0.125))
    np.testing.assert_array_equal(learned(agent, wrapped), learned(agent, other))
    untouched = transformed(same)(scalar(trace))
    assert not np.array_equal(learned(agent, wrapped), learned(agent, untouched))


def test_a_price_for_each_step_is_a_price_for_each_layer(trace) -> None:
    wrapped = wrappers.TransformReward(scalar(trace), lambda reward: reward - 0.125)
    dearer = transformed(same)(scalar(trace, alpha=0.375))
    np.testing.assert_array_equal(learned("reinforce", wrapped), learned("reinforce", dearer))


@pytest.mark.parametrize("agent", ["reinforce", "ppo"])
@pytest.mark.parametrize("num_envs", [1, 4])
def test_scalar_or_vector_a_wrapped_environment_means_the_same(trace, agent, num_envs) -> None:
    around = vector_wrappers.TransformReward(vector(agent, trace, num_envs), minus)
    each = vector_wrappers.VectorizeTransformReward(
        vector(agent, trace, num_envs), wrappers.TransformReward, func=minus
    )
    inside = side_by_side(agent, transformed(minus), trace, num_envs)
    first = learned(agent, around)
    np.testing.assert_array_equal(learned(agent, each), first)
    np.testing.assert_array_equal(learned(agent, inside), first)
    if num_envs == 1:
        np.testing.assert_array_equal(learned(agent, transformed(minus)(scalar(trace))), first)
    assert not np.array_equal(learned(agent, vector(agent, trace, num_envs)), first)


def test_stable_baselines3_learns_from_the_rewards_of_a_wrapped_vector_environment(trace) -> None:
    def of(wrap) -> np.ndarray:
        return learned("sb3:ppo", wrap(vector("sb3:ppo", trace)))

    plain = of(lambda env: env)
    np.testing.assert_array_equal(of(lambda e: vector_wrappers.TransformReward(e, same)), plain)
    assert not np.array_equal(of(lambda e: vector_wrappers.TransformReward(e, minus)), plain)


def test_the_vec_env_pays_what_wrappers_make_of_rewards(trace) -> None:
    plain, wrapped = (
        make_sb3_vec_env(env, seed=0)
        for env in (
            vector("sb3:ppo", trace),
            vector_wrappers.TransformReward(vector("sb3:ppo", trace), lambda r: r - 0.5),
        )
    )
    for envs in (plain, wrapped):
        envs.reset()
    ended = 0
    for _ in range(30):
        actions = np.random.default_rng(ended).integers(2, size=4)
        one, other = plain.step(actions), wrapped.step(actions)
        np.testing.assert_allclose(other[1], one[1] - 0.5)
        for mine, expected in zip(other[3], one[3], strict=True):
            if mine:
                ended += 1
                paid = expected["episode"]["r"] - 0.5 * expected["episode"]["l"]
                assert mine["episode"]["r"] == pytest.approx(paid)
    assert ended > 20


@pytest.mark.parametrize(
    "wrap",
    [wrappers.NormalizeReward, lambda env: wrappers.ClipReward(env, -0.1, 0.1)],
    ids=["normalize", "clip"],
)
def test_other_wrappers_of_rewards_are_honoured_too(trace, wrap) -> None:
    plain = learned("reinforce", transformed(same)(scalar(trace)))
    assert not np.array_equal(learned("reinforce", wrap(scalar(trace))), plain)


@pytest.mark.parametrize("agent", BY_TABLES)
def test_agents_that_learn_from_tables_refuse_changed_rewards(trace, agent) -> None:
    for env in (
        transformed(minus)(scalar(trace)),
        Monitor(transformed(minus)(scalar(trace))),
        vector_wrappers.TransformReward(vector(agent, trace), minus),
        side_by_side(agent, transformed(minus), trace),
    ):
        with pytest.raises(CeeGymError, match="without wrappers that change rewards") as caught:
            make_agent(agent).learn(env, 100)
        assert "\n" not in str(caught.value)


class Own(gym.Wrapper):
    """One of the user's own, which may do anything."""


OTHERS = {
    "TransformReward and TimeLimit": lambda env: wrappers.TimeLimit(transformed(same)(env), 2),
    "TimeLimit": lambda env: wrappers.TimeLimit(env, 2),
    "NormalizeObservation": wrappers.NormalizeObservation,
    "FrameStackObservation": lambda env: wrappers.FrameStackObservation(env, 2),
    "TransformObservation": lambda env: wrappers.TransformObservation(env, np.abs, None),
    "StickyAction": lambda env: wrappers.StickyAction(env, 0.1),
    "Own": Own,
}
VECTOR_OTHERS = {
    "NormalizeObservation": vector_wrappers.NormalizeObservation,
    "TransformObservation": lambda envs: vector_wrappers.TransformObservation(envs, np.abs),
}


def next_step(trace: Trace) -> EarlyExitVectorEnv:
    """The only mode in which Gymnasium has all its wrappers of observations."""
    return EarlyExitVectorEnv(4, trace=trace, observe=OBSERVE, autoreset_mode="NextStep")


@pytest.mark.parametrize("which", OTHERS)
@pytest.mark.parametrize("agent", [*BY_STEPS, "expected-return", "cat", "confidence"])
def test_what_changes_observations_or_episodes_is_refused(trace, agent, which) -> None:
    name = which.rpartition(" ")[2]
    environments = [OTHERS[which](scalar(trace)), side_by_side(agent, OTHERS[which], trace)]
    if which in VECTOR_OTHERS:
        environments.append(VECTOR_OTHERS[which](next_step(trace)))
    for env in environments:
        with pytest.raises(CeeGymError, match=f"{name} changes what an agent observes") as caught:
            make_agent(agent, **SMALL.get(agent, {})).learn(env, 100)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("which", VECTOR_OTHERS)
def test_the_vec_env_refuses_them_too(trace, which) -> None:
    with pytest.raises(CeeGymError, match=f"{which} changes what an agent observes"):
        make_sb3_vec_env(VECTOR_OTHERS[which](next_step(trace)))


@pytest.mark.parametrize("agent", ["reinforce", "ppo", "expected-return", "confidence"])
def test_vector_rewards_are_refused(trace, agent) -> None:
    for env in (
        scalar(trace, vector_reward=True),
        SyncVectorEnv([lambda: scalar(trace, vector_reward=True)]),
    ):
        with pytest.raises(CeeGymError, match="make it without vector_reward"):
            make_agent(agent).learn(env, 100)


def test_environments_that_differ_are_no_vector_to_learn_in(trace) -> None:
    differ = SyncVectorEnv([lambda: scalar(trace), lambda: scalar(trace, alpha=0.5)])
    mixed = SyncVectorEnv([lambda: scalar(trace), lambda: transformed(minus)(scalar(trace))])
    for env in (differ, mixed):
        with pytest.raises(CeeGymError, match="of this vector environment differ"):
            make_agent("expected-return").learn(env, 100)


@pytest.mark.parametrize("agent", [*agent_names(), "sb3:ppo"])
def test_one_layer_is_nothing_to_decide(tmp_path, agent) -> None:
    env = scalar(write_trace(tmp_path / "one", num_layers=1))
    with pytest.raises(CeeGymError, match="has one layer, so there is nothing to decide"):
        make_agent(agent).learn(env, 100)


def test_other_environments_are_refused() -> None:
    for env in (gym.make("CartPole-v1"), gym.make_vec("CartPole-v1", 2)):
        with pytest.raises(CeeGymError, match="environments of cee-gym"):
            make_agent("reinforce").learn(env, 100)
