import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3.common.env_checker
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils.env_checker import check_env

from cee_gym.envs import CONTINUE, EXIT, EarlyExitEnv
from cee_gym.errors import CeeGymError
from cee_gym.hardness import memorized_layer
from cee_gym.reward import Reward
from cee_gym.traces.recordings import open_split
from cee_gym.traces.trace import Trace
from tests.made_traces import write_recording

OBSERVE = [
    ("hidden", "layer"),
    ("hidden", "layer", "probs", "entropy", "confidence", "alpha"),
    ("margin", "agreement", "previous"),
]


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    return write_recording(tmp_path / "recording", n=30, num_layers=4)


@pytest.fixture
def trace(recording: Path) -> Trace:
    return open_split(recording, "train")


@pytest.mark.parametrize("observe", OBSERVE)
@pytest.mark.parametrize("alpha", [0.035, (0.0, 0.1)])
def test_both_checkers_have_nothing_to_say(
    recording: Path, observe: tuple[str, ...], alpha: Any
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make("EarlyExit", trace=str(recording), observe=observe, alpha=alpha)
        check_env(env.unwrapped)
        stable_baselines3.common.env_checker.check_env(env.unwrapped)


@pytest.mark.parametrize("exit_layer", [1, 2, 3, 4])
def test_episode_has_exactly_exit_layer_steps(trace: Trace, exit_layer: int) -> None:
    env = EarlyExitEnv(trace=trace, alpha=0.25)
    quality = Reward().quality_of(trace)
    price = Reward().price_of(trace, np.arange(1, 5))
    observations = env.problem.observe()
    observation, info = env.reset(seed=1, options={"instance": 7})
    assert info == {"instance": 7, "alpha": 0.25}
    for layer in range(1, exit_layer):
        np.testing.assert_array_equal(observation, observations[7, layer - 1])
        observation, reward, terminated, truncated, info = env.step(CONTINUE)
        assert (reward, terminated, truncated, info) == (0.0, False, False, {})
    observation, reward, terminated, truncated, info = env.step(EXIT)
    assert (terminated, truncated) == (True, False)
    # The state that was left, not the next one.
    np.testing.assert_array_equal(observation, observations[7, exit_layer - 1])
    at = (7, exit_layer - 1)
    assert reward == float(quality[at]) - 0.25 * float(price[at])
    assert info == {
        "exit_layer": exit_layer,
        "saved_layers": 1 - exit_layer / 4,
        "prediction": trace.prediction[at],
        "correct": trace.correct[at],
        "is_success": trace.correct[at],
        "memorized_layer": memorized_layer(trace.correct)[7],
        "reward_components": {"quality": quality[at], "price": price[at]},
    }
    types = {key: type(value) for key, value in info.items()}
    assert types == {
        "exit_layer": int,
        "saved_layers": float,
        "prediction": int,
        "correct": bool,
        "is_success": bool,
        "memorized_layer": int,
        "reward_components": dict,
    }
    assert type(reward) is float


def test_last_layer_exits_whatever_the_action(trace: Trace) -> None:
    env = EarlyExitEnv(trace=trace)
    ends = []
    for action in (CONTINUE, EXIT):
        env.reset(seed=3, options={"instance": 2})
        for _ in range(3):
            assert not env.step(CONTINUE)[2]
        ends.append(env.step(action))
    assert ends[0][1:] == ends[1][1:]
    assert ends[0][2] is True
    np.testing.assert_array_equal(ends[0][0], ends[1][0])


def play(env: EarlyExitEnv, episodes: int, seed: int | None) -> list[tuple[int, float]]:
    """The instance and alpha of some episodes, each left at once."""
    drawn = []
    for episode in range(episodes):
        _, info = env.reset(seed=seed if episode == 0 else None)
        env.step(EXIT)
        drawn.append((info["instance"], info["alpha"]))
    return drawn


def test_same_seed_same_episodes(trace: Trace) -> None:
    # More episodes than are drawn at a time.
    one = play(EarlyExitEnv(trace=trace, alpha=(0.0, 0.1)), 600, seed=5)
    again = EarlyExitEnv(trace=trace, alpha=(0.0, 0.1))
    play(again, 10, seed=6)
    assert play(again, 600, seed=5) == one
    assert play(again, 600, seed=6) != one


def test_instances_and_alphas_are_uniform(trace: Trace) -> None:
    drawn = play(EarlyExitEnv(trace=trace, alpha=(0.0, 0.1)), 6000, seed=0)
    instances, alphas = (np.array(column) for column in zip(*drawn, strict=True))
    counts = np.bincount(instances, minlength=30)
    assert ((counts - 200) ** 2 / 200).sum() < 60  # chi-square, 29 degrees of freedom: p < 0.001
    assert alphas.min() >= 0
    assert alphas.max() <= 0.1
    assert abs(alphas.mean() - 0.05) < 0.002


def test_fixed_instance_and_alpha_take_no_draw(trace: Trace) -> None:
    env = EarlyExitEnv(trace=trace, alpha=(0.0, 0.1))
    expected = play(env, 5, seed=9)
    env.reset(seed=9)
    env.reset(seed=9, options={"instance": 0, "alpha": 0.05})
    assert play(env, 5, seed=None) == expected


def test_episode_pays_its_own_alpha(trace: Trace) -> None:
    env = EarlyExitEnv(trace=trace, alpha=(0.0, 0.1), observe=("layer", "alpha"))
    observation, info = env.reset(seed=4, options={"instance": 3})
    assert observation[env.layout["alpha"]] == np.float32(info["alpha"])
    observation, reward, *_ = env.step(EXIT)
    assert observation[env.layout["alpha"]] == np.float32(info["alpha"])
    assert reward == env.problem.rewards(info["alpha"])[3, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"instnace": 3}, "no option 'instnace': did you mean instance"),
        ({"instance": 30}, "no instance 30: they are numbered 0 to 29"),
        ({"instance": -1}, "no instance -1"),
        ({"instance": 1.5}, "must be an integer"),
        ({"alpha": -0.1}, r"must be 0 to 1e\+06, got -0.1"),
        ({"alpha": 1e308}, r"must be 0 to 1e\+06, got 1e\+308"),
        ({"alpha": float("nan")}, "must be a finite number"),
        ({"alpha": "high"}, "must be a finite number"),
    ],
)
def test_bad_options_are_refused_at_once(
    trace: Trace, options: dict[str, Any], message: str
) -> None:
    env = EarlyExitEnv(trace=trace)
    with pytest.raises(CeeGymError, match=message):
        env.reset(options=options)


def test_observed_alpha_stays_in_its_range(trace: Trace) -> None:
    env = EarlyExitEnv(trace=trace, alpha=(0.0, 0.1), observe=("layer", "alpha"))
    with pytest.raises(CeeGymError, match=r"must be 0 to 0\.1, the range that is observed"):
        env.reset(options={"alpha": 0.2})
    for arguments in ({"alpha": (0.0, 0.1)}, {"alpha": 0.1, "observe": ("layer", "alpha")}):
        env = EarlyExitEnv(trace=trace, **arguments)
        assert env.reset(options={"alpha": 0.2})[1]["alpha"] == 0.2
    assert env.step(EXIT)[0][env.layout["alpha"]] == np.float32(0.2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": -1}, r"alpha must be from 0 to 1e\+06"),
        ({"alpha": 1e308}, r"alpha must be from 0 to 1e\+06"),
        ({"reward": Reward(hardness=np.ones(3))}, "hardness must be 30 finite numbers"),
        ({"reward": "f1"}, "unknown quality 'f1'"),
        ({"reward": None}, "must be a Reward, 'paper', or the name of a quality, got None"),
        ({"reward": Reward(cost=[1.0, 2.0])}, "cost must be 4 finite numbers"),
        ({"split": "test"}, "no split 'test'"),
        ({"render_mode": "window"}, "render_mode must be ansi, rgb_array, human or None"),
        ({"trace": None}, "give trace=PATH"),
    ],
)
def test_bad_arguments(recording: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(CeeGymError, match=message):
        EarlyExitEnv(**{"trace": recording, **arguments})


def test_step_needs_an_episode_under_way(trace: Trace) -> None:
    env = EarlyExitEnv(trace=trace, render_mode="ansi")
    with pytest.raises(ResetNeeded):
        env.step(CONTINUE)
    with pytest.raises(ResetNeeded):
        env.render()
    env.reset(seed=0)
    env.step(EXIT)
    with pytest.raises(ResetNeeded):
        env.step(CONTINUE)


def test_unknown_action(trace: Trace) -> None:
    env = EarlyExitEnv(trace=trace)
    env.reset(seed=0)
    with pytest.raises(InvalidAction, match="got 2"):
        env.step(2)


def test_observation_is_the_callers_to_change(trace: Trace) -> None:
    env = EarlyExitEnv(trace=trace)
    observation, _ = env.reset(options={"instance": 0})
    observation[:] = 9
    assert env.reset(options={"instance": 0})[0].max() < 9
    with pytest.raises(ValueError, match="read-only"):
        env.problem.observe()[0, 0, 0] = 9


def test_statistics_of_gymnasium_are_the_sum_of_rewards(recording: Path) -> None:
    env = gym.wrappers.RecordEpisodeStatistics(gym.make("EarlyExit", trace=str(recording)))
    env.action_space.seed(0)
    env.reset(seed=0)
    total, steps, ended = 0.0, 0, 0
    while ended < 50:
        _, reward, terminated, _, info = env.step(env.action_space.sample())
        total, steps = total + float(reward), steps + 1
        if terminated:
            assert info["episode"]["r"] == total
            assert info["episode"]["l"] == steps == info["exit_layer"]
            total, steps, ended = 0.0, 0, ended + 1
            env.reset()
