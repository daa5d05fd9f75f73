"""Rewards `[quality, -price]`, by the protocol of MO-Gymnasium, against the scalar ones."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box

from cee_gym.agents import Reinforce
from cee_gym.agents.sb3 import make_sb3_vec_env
from cee_gym.envs import EarlyExitEnv, EarlyExitVectorEnv
from cee_gym.errors import CeeGymError
from cee_gym.reward import Reward
from cee_gym.traces.trace import Trace
from tests.envs.test_vector import MODES, assert_same
from tests.made_traces import write_trace

RANGED: dict[str, Any] = {"alpha": (0.0, 0.1), "observe": ("layer", "alpha")}


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    return write_trace(tmp_path_factory.mktemp("traces") / "trace", n=30, num_layers=4)


@pytest.mark.parametrize("arguments", [{}, RANGED, {"reward": "correctness"}])
def test_weighed_by_alpha_it_is_the_scalar_environment(
    trace: Trace, arguments: dict[str, Any]
) -> None:
    scalar = EarlyExitEnv(trace=trace, **arguments)
    vector = EarlyExitEnv(trace=trace, **arguments, vector_reward=True)
    rng = np.random.default_rng(0)
    one, other = scalar.reset(seed=5), vector.reset(seed=5)
    for _ in range(600):
        assert_same(other, one)
        alpha = vector.alpha
        action = int(rng.integers(2))
        (seen, reward, *rest), (its, rewards, *its_rest) = scalar.step(action), vector.step(action)
        assert_same([its, *its_rest], [seen, *rest])
        assert rewards.dtype == np.float32
        assert rewards in vector.reward_space
        assert float(rewards[0]) + alpha * float(rewards[1]) == reward
        if rest[0]:
            parts = rest[2]["reward_components"]
            assert rewards.tolist() == [parts["quality"], -parts["price"]]
            one, other = scalar.reset(), vector.reset()
        else:
            assert rewards.tolist() == [0, 0]
            one, other = (seen, {}), (its, {})


def test_protocol_of_mo_gymnasium(trace: Trace) -> None:
    env = gym.make(
        "EarlyExit", trace=str(trace.path), vector_reward=True, disable_env_checker=True
    ).unwrapped
    assert isinstance(env.reward_space, Box)
    assert env.reward_space.shape == (env.reward_dim,) == (2,)
    assert env.reward_space.dtype == np.float32
    envs = EarlyExitVectorEnv.of(env, 3)
    assert envs.reward_space == env.reward_space
    for scalar in (EarlyExitEnv(trace=trace), EarlyExitVectorEnv(2, trace=trace)):
        assert not hasattr(scalar, "reward_space")
        assert not hasattr(scalar, "reward_dim")


def test_reward_space_is_bounded_by_what_exits_achieve_and_cost(trace: Trace) -> None:
    space = EarlyExitEnv(trace=trace, reward="paper", vector_reward=True).reward_space
    assert space.low[0] == -np.inf
    assert space.high.tolist() == [0, 0]
    reward = Reward("correctness", hardness=None, cost=[1, 2, 3, 5])
    space = EarlyExitEnv(trace=trace, reward=reward, vector_reward=True).reward_space
    assert space.low.tolist() == [0, -5]
    assert space.high.tolist() == [1, 0]
    paying = Reward(hardness=-np.ones(30))
    paid = EarlyExitEnv(trace=trace, reward=paying, vector_reward=True).reward_space
    assert (paid.low[1], paid.high[1]) == (0, 4)


@pytest.mark.parametrize("arguments", [{}, RANGED], ids=["plain", "ranged alpha"])
@pytest.mark.parametrize("mode", MODES)
def test_vector_environment_keeps_step(trace: Trace, mode: str, arguments: dict[str, Any]) -> None:
    scalar, vector = (
        EarlyExitVectorEnv(5, trace=trace, autoreset_mode=mode, vector_reward=given, **arguments)
        for given in (False, True)
    )
    rng = np.random.default_rng(0)
    (_, infos), _ = scalar.reset(seed=3), vector.reset(seed=3)
    alpha = infos["alpha"]
    for step in range(300):
        actions = rng.integers(2, size=5)
        (seen, reward, *rest), (its, rewards, *its_rest) = (
            scalar.step(actions),
            vector.step(actions),
        )
        assert_same([its, *its_rest], [seen, *rest], where=f"step {step}")
        assert rewards.dtype == np.float32
        assert rewards.shape == (5, 2)
        ended, infos = rest[0], rest[2]
        weighed = rewards.astype(np.float64) @ np.array([1, 0]) + alpha * rewards[:, 1]
        np.testing.assert_array_equal(weighed, reward)
        assert not rewards[~ended].any()
        if mode == "Disabled" and ended.any():
            _, infos = scalar.reset(options={"reset_mask": ended})
            vector.reset(options={"reset_mask": ended.copy()})
        if "alpha" in infos:
            alpha = np.where(infos["_alpha"], infos["alpha"], alpha)


def test_agents_refuse_vector_rewards(trace: Trace) -> None:
    env = EarlyExitEnv(trace=trace, vector_reward=True)
    with pytest.raises(CeeGymError, match="make it without vector_reward"):
        Reinforce().learn(env, 100)
    with pytest.raises(CeeGymError, match="make it without vector_reward"):
        make_sb3_vec_env(EarlyExitVectorEnv.of(env, 2))


def test_wrapper_of_mo_gymnasium(trace: Trace) -> None:
    mo_gymnasium = pytest.importorskip("mo_gymnasium")
    from mo_gymnasium.wrappers import LinearReward

    path = str(Path(trace.path))
    scalar = gym.make("EarlyExit", trace=path, alpha=0.25)
    vector = mo_gymnasium.make("EarlyExit", trace=path, alpha=0.25, vector_reward=True)
    weighed = LinearReward(vector, weight=np.array([1.0, 0.25]))
    rng = np.random.default_rng(0)
    scalar.reset(seed=0), weighed.reset(seed=0)
    for _ in range(200):
        action = int(rng.integers(2))
        one, other = scalar.step(action), weighed.step(action)
        assert other[1] == pytest.approx(one[1], abs=1e-12)
        if one[2]:
            scalar.reset(), weighed.reset()
