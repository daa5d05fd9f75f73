import json
import os
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.vec_env import SubprocVecEnv

import cee_gym  # noqa: F401 (registers the ids)
from cee_gym.envs import BENCHMARKS, EarlyExitVectorEnv, register_benchmark, register_envs
from cee_gym.errors import CeeGymError
from cee_gym.reward import Reward
from cee_gym.traces.recordings import MissingRecordingError
from tests.made_traces import write_recording


@pytest.fixture
def recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own recording of MRPC."""
    monkeypatch.setenv("CEE_GYM_HOME", str(tmp_path))
    return write_recording(tmp_path / "EarlyExit-BERT-MRPC")


def test_every_id_is_registered_without_version_or_time_limit() -> None:
    for id in ("EarlyExit", *BENCHMARKS):
        spec = gym.spec(id)
        assert spec.version is None
        assert spec.max_episode_steps is None
        assert spec.vector_entry_point == "cee_gym.envs.vector:EarlyExitVectorEnv"


def test_every_id_makes_both_environments_without_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CEE_GYM_HOME", str(tmp_path))
    monkeypatch.setattr("cee_gym.traces.recordings._SHIPPED", tmp_path / "shipped")
    for id in BENCHMARKS:
        write_recording(tmp_path / id, n=4)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            register_envs()  # a second time, as in a worker
            env = gym.make(id, render_mode="rgb_array")
            env.reset(seed=0)
            env.step(env.action_space.sample())
            env.render()
            envs = gym.make_vec(id, num_envs=3, autoreset_mode="NextStep")
            envs.reset(seed=0)
            envs.step(envs.action_space.sample())
        assert env.unwrapped.problem.trace.path == tmp_path / id / "train"
        assert isinstance(envs, EarlyExitVectorEnv)


def test_benchmark_that_is_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CEE_GYM_HOME", str(tmp_path))
    with pytest.raises(MissingRecordingError, match="cee-gym build EarlyExit-BERT-QQP"):
        gym.make("EarlyExit-BERT-QQP")


def test_misspelt_id_is_answered_with_the_right_one() -> None:
    with pytest.raises(gym.error.NameNotFound, match="EarlyExit-BERT-RTE"):
        gym.make("EarlyExit-BERT-RET")


def test_spec_can_be_written_down_and_made_again(recording: Path) -> None:
    env = gym.make(
        "EarlyExit-BERT-MRPC",
        split="dev",
        alpha=(0.0, 0.1),
        observe=("layer", "alpha"),
        reward=Reward("correctness", "last_layer_loss", [1, 2, 3, 5]),
    )
    text = env.spec.to_json()
    assert json.loads(text)["id"] == "EarlyExit-BERT-MRPC"
    again = gym.make(gym.envs.registration.EnvSpec.from_json(text))
    assert again.observation_space == env.observation_space
    assert again.unwrapped.problem is env.unwrapped.problem


def test_own_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CEE_GYM_HOME", str(tmp_path))
    monkeypatch.setattr("cee_gym.envs.registration.BENCHMARKS", dict(BENCHMARKS))
    try:
        register_benchmark("EarlyExit-BERT-Mine", "mine")
        register_benchmark("EarlyExit-BERT-Mine", "mine")
        write_recording(tmp_path / "EarlyExit-BERT-Mine")
        assert gym.make("EarlyExit-BERT-Mine").reset(seed=0)
        with pytest.raises(CeeGymError, match="the id EarlyExit-BERT-Mine is taken"):
            register_benchmark("EarlyExit-BERT-Mine", "other")
        with pytest.raises(CeeGymError, match="the id CartPole-v1 is taken"):
            register_benchmark("CartPole-v1", "poles")
    finally:
        gym.registry.pop("EarlyExit-BERT-Mine", None)


def test_spawned_workers_of_gymnasium(recording: Path) -> None:
    envs = gym.make_vec(
        "cee_gym:EarlyExit-BERT-MRPC",
        num_envs=2,
        vectorization_mode="async",
        vector_kwargs={"context": "spawn", "autoreset_mode": "SameStep"},
    )
    try:
        observations, _ = envs.reset(seed=0)
    finally:
        envs.close()
    expected, _ = gym.make_vec("EarlyExit-BERT-MRPC", num_envs=2).reset(seed=0)
    np.testing.assert_array_equal(observations, expected)


def test_spawned_workers_find_what_is_the_users_own(own_module: str, recording: Path) -> None:
    arguments: dict[str, Any] = {
        "reward": Reward("mine:probability", "mine:mean_correct"),
        "observe": ("mine:runner_up", "layer"),
    }
    envs = gym.make_vec(
        "cee_gym:EarlyExit-BERT-MRPC",
        num_envs=2,
        vectorization_mode="async",
        vector_kwargs={"context": "spawn", "autoreset_mode": "SameStep"},
        **arguments,
    )
    ours = gym.make_vec("EarlyExit-BERT-MRPC", num_envs=2, **arguments)
    try:
        np.testing.assert_array_equal(envs.reset(seed=0)[0], ours.reset(seed=0)[0])
        leave = np.array([1, 1])
        np.testing.assert_array_equal(envs.step(leave)[1], ours.step(leave)[1])
    finally:
        envs.close()


def test_spawned_workers_of_stable_baselines3(recording: Path) -> None:
    make = partial(gym.make, "cee_gym:EarlyExit-BERT-MRPC")
    envs = SubprocVecEnv([make, make], start_method="spawn")
    try:
        envs.seed(0)
        observations = envs.reset()
        envs.step(np.array([1, 1]))
    finally:
        envs.close()
    expected, _ = gym.make_vec("EarlyExit-BERT-MRPC", num_envs=2).reset(seed=0)
    np.testing.assert_array_equal(observations, expected)


def test_recorded_environment_imports_nothing_heavy(recording: Path) -> None:
    program = """
import sys
import gymnasium as gym
import cee_gym
for env in (gym.make("EarlyExit-BERT-MRPC"), gym.make_vec("EarlyExit-BERT-MRPC", num_envs=2)):
    env.reset(seed=0)
    env.step(env.action_space.sample())
    env.unwrapped.headroom()
heavy = {"torch", "transformers", "stable_baselines3", "datasets", "sklearn", "scipy"}
print(sorted(heavy & sys.modules.keys()))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "[]\n", done.stderr


def test_folder_is_not_imported_under_its_own_name() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import envs"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "import it by that name" in done.stderr
