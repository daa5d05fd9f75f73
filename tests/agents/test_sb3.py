"""Our `VecEnv` against Stable-Baselines3's own over our scalar environment."""

import numpy as np
import pytest
import torch
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cee_gym.agents.sb3 import make_sb3_vec_env
from cee_gym.envs import EarlyExitVectorEnv
from cee_gym.errors import CeeGymError
from tests.made_traces import write_trace

RTE = "EarlyExit-BERT-RTE"


def test_it_is_step_for_step_what_dummy_vec_env_is() -> None:
    kwargs = {"alpha": (0.01, 0.1), "observe": ("hidden", "layer", "alpha")}
    ours = make_sb3_vec_env(RTE, 6, seed=3, **kwargs)
    theirs = make_vec_env(RTE, 6, seed=3, env_kwargs=kwargs)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    np.testing.assert_array_equal(ours.reset(), theirs.reset())
    assert ours.reset_infos == theirs.reset_infos
    rng = np.random.default_rng(0)
    finished = 0
    for _ in range(60):
        actions = rng.integers(2, size=6)
        one, other = ours.step(actions), theirs.step(actions)
        for mine, expected in zip(one[:3], other[:3], strict=True):
            np.testing.assert_array_equal(mine, expected)
            assert mine.dtype == expected.dtype
        for mine, expected in zip(one[3], other[3], strict=True):
            expected.setdefault("TimeLimit.truncated", False)
            if not mine:
                assert not expected["TimeLimit.truncated"]
                continue
            finished += 1
            np.testing.assert_array_equal(
                mine.pop("terminal_observation"), expected.pop("terminal_observation")
            )
            mine["episode"].pop("t")
            expected["episode"].pop("t")
            # Monitor rounds returns to six digits.
            assert mine.pop("episode") == pytest.approx(expected.pop("episode"), abs=1e-6)
            assert mine == expected
        assert ours.reset_infos == theirs.reset_infos
    assert finished > 50


def test_earlier_observations_are_not_overwritten() -> None:
    envs = make_sb3_vec_env(RTE, 4, seed=0)
    first = envs.reset()
    kept = first.copy()
    second = envs.step(np.zeros(4, dtype=int))[0]
    np.testing.assert_array_equal(first, kept)
    assert not np.array_equal(first, second)


def test_ppo_learns_and_its_curves_are_right(tmp_path) -> None:
    envs = make_sb3_vec_env(RTE, 32, seed=0)
    model = PPO("MlpPolicy", envs, gamma=1.0, n_steps=8, batch_size=64, device="cpu", seed=0)
    seen: list[dict[str, float]] = []

    def keep(local: dict, _: dict) -> bool:
        for info in local["infos"]:
            if info:
                assert info["episode"]["l"] == info["exit_layer"]
                seen.append(info["episode"])
        return True

    model.learn(1_000, callback=keep)
    last = seen[-len(model.ep_info_buffer) :]
    assert [e["r"] for e in model.ep_info_buffer] == [e["r"] for e in last]
    assert len(model.ep_success_buffer) == min(100, len(seen))
    model.save(tmp_path / "ppo")
    again = PPO.load(tmp_path / "ppo", env=make_sb3_vec_env(RTE, 5, seed=0), device="cpu")
    mean, _ = evaluate_policy(again, again.get_env(), n_eval_episodes=50)
    assert 0 < mean < 1


def test_curves_in_tensorboard_are_those_of_the_episodes(tmp_path) -> None:
    envs = make_sb3_vec_env(RTE, 256)
    settings = {"gamma": 1.0, "n_steps": 8, "batch_size": 512, "device": "cpu", "seed": 0}
    # A window that holds all episodes, so that a point is the mean of all before it.
    model = PPO(
        "MlpPolicy", envs, stats_window_size=100_000, tensorboard_log=str(tmp_path), **settings
    )
    ended: list[tuple[int, float, int, bool]] = []

    def keep(local: dict, _: dict) -> bool:
        for info in local["infos"]:
            if info:
                parts = info["reward_components"]
                reward = parts["quality"] - 0.01 * parts["price"]
                ended.append((model.num_timesteps, reward, info["exit_layer"], info["correct"]))
        return True

    model.learn(3 * 2_048, callback=keep)
    steps, returns, layers, correct = np.array(ended, dtype=float).T
    (run,) = tmp_path.iterdir()
    written = EventAccumulator(str(run)).Reload()
    for tag, values in (
        ("rollout/ep_rew_mean", returns),
        ("rollout/ep_len_mean", layers),
        ("rollout/success_rate", correct),
    ):
        points = written.Scalars(tag)
        assert [point.step for point in points] == [2_048, 4_096, 6_144]
        for point in points:
            assert point.value == pytest.approx(values[steps <= point.step].mean(), abs=1e-6)


def test_the_same_seed_gives_the_same_parameters() -> None:
    def parameters(seed: int) -> torch.Tensor:
        envs = make_sb3_vec_env(RTE, 8)
        model = PPO("MlpPolicy", envs, gamma=1.0, n_steps=8, batch_size=32, seed=seed, device="cpu")
        return torch.nn.utils.parameters_to_vector(model.learn(200).policy.parameters()).detach()

    a, b, c = parameters(0), parameters(0), parameters(1)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_off_policy_algorithms_work_too() -> None:
    envs = make_sb3_vec_env(RTE, 8, seed=0)
    DQN("MlpPolicy", envs, gamma=1.0, learning_starts=50, buffer_size=500, device="cpu").learn(300)


def test_pictures_and_attributes_are_those_of_the_environments() -> None:
    envs = make_sb3_vec_env(RTE, 4, seed=0, render_mode="rgb_array")
    envs.reset()
    assert envs.render().ndim == 3
    assert envs.get_attr("num_layers") == [12] * 4
    assert envs.get_attr("num_layers", indices=[1, 2]) == [12, 12]
    with pytest.raises(CeeGymError, match="one array"):
        envs.set_attr("alpha", 0.1)
    with pytest.raises(CeeGymError, match="one array"):
        envs.env_method("reset")


@pytest.mark.parametrize("kind", ["array", "list"])
def test_options_are_those_of_the_environments(kind) -> None:
    envs = make_sb3_vec_env(RTE, 2, seed=0)
    envs.set_options({"instance": 7} if kind == "array" else [{"instance": 7}, {"instance": 9}])
    envs.reset()
    assert [info["instance"] for info in envs.reset_infos] == [7, 7 if kind == "array" else 9]
    envs.set_options({"instances": 7})
    with pytest.raises(CeeGymError, match="no option 'instances': did you mean instance"):
        envs.reset()
    envs.set_options([{"instance": 7}, {}])
    with pytest.raises(CeeGymError, match="given to all environments, or none"):
        envs.reset()


def test_metadata_is_that_of_the_environments(tmp_path) -> None:
    envs = EarlyExitVectorEnv(2, trace=write_trace(tmp_path / "t"))
    metadata = make_sb3_vec_env(envs).metadata
    assert metadata == envs.metadata
    assert metadata["deterministic"] is True
    assert metadata["render_modes"] == ["ansi", "rgb_array"]


def test_what_it_cannot_adapt_is_refused(tmp_path) -> None:
    env = EarlyExitVectorEnv(2, trace=write_trace(tmp_path / "t"), autoreset_mode="Disabled")
    with pytest.raises(CeeGymError, match="SameStep"):
        make_sb3_vec_env(env)
    with pytest.raises(CeeGymError, match="vector environment over a recording"):
        make_sb3_vec_env("CartPole-v1", 2)
    with pytest.raises(CeeGymError, match="make it without vector_reward"):
        make_sb3_vec_env(EarlyExitVectorEnv(2, trace=env.problem.trace, vector_reward=True))
