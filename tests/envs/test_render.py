"""What an episode looks like."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import RecordVideo
from matplotlib import pyplot

import cee_gym  # noqa: F401 - registers
from cee_gym.agents import make_agent
from cee_gym.agents.presets import OBSERVE
from cee_gym.envs.render import Readings, picture, text
from cee_gym.errors import CeeGymError

GREEN, RED, GREY, BLUE = (46, 160, 84), (214, 69, 65), (226, 228, 232), (33, 100, 200)
READINGS = Readings(
    np.array([0.5, 0.25, 1.0]),
    np.array([1, 2, 1]),
    1,
    names=("no", "yes", "maybe"),
    text="is it so?",
    full_depth=0,
    scores=np.array([0.1, 0.2, 0.9]),
)


@pytest.mark.parametrize("has_left", [False, True])
def test_text(has_left: bool) -> None:
    first, *layers, last = text(READINGS, 5, has_left).splitlines()
    assert first == "is it so?"
    assert [line.split()[0] for line in layers] == ["5", "4", "[3]" if has_left else "3", "2", "1"]
    assert layers[2].split()[1:] == ["yes", "1.00", "right", "exit", "score", "0.90"]
    assert layers[3].split()[1:4] == ["maybe", "0.25", "wrong"]
    assert layers[0].split()[1:] == ["."]
    assert last == "label yes; full depth says no; the policy leaves above 0.50"


def bar(drawn: np.ndarray, layer: int, of: int = 5, lines: int = 1) -> list[tuple[int, ...]]:
    """The colours along the middle of a layer's bar."""
    y = 14 + 20 * lines + (8 if lines else 0) + 26 * (of - layer) + 13
    return [tuple(pixel) for pixel in drawn[y, 110:301].tolist()]


def test_a_bar_is_as_long_as_the_exit_is_sure_and_has_the_colour_of_its_answer() -> None:
    drawn = picture(READINGS, 5, has_left=True)
    assert (drawn.dtype, drawn.shape) == (np.uint8, (14 + 28 + 26 * 5 + 34, 640, 3))
    right, wrong, sure, not_run = (bar(drawn, layer) for layer in (1, 2, 3, 4))
    assert right.count(GREEN) == pytest.approx(95, abs=2)
    assert RED not in right
    assert wrong.count(RED) == pytest.approx(48, abs=2)
    assert sure.count(GREEN) == 191
    assert not_run.count(GREY) == 191


def framed(drawn: np.ndarray) -> int:
    return int((drawn.reshape(-1, 3) == BLUE).all(axis=1).sum())


def test_the_exit_is_framed_only_once_it_has_happened() -> None:
    before, after = (picture(READINGS, 5, has_left) for has_left in (False, True))
    assert framed(after) > framed(before) + 1000


def test_what_is_not_known_is_not_shown() -> None:
    bare = Readings(np.array([0.5]), np.array([1]), 0)
    assert text(bare, 2, False).splitlines() == ["   2   .", "   1   1  0.50  wrong", "label 0"]
    assert picture(bare, 2, False).shape == (14 + 26 * 2 + 34, 640, 3)


def test_the_built_in_task_shows_its_text_and_a_policy_its_scores() -> None:
    train = gym.make("EarlyExit-ToyBERT-Clauses", observe=OBSERVE)
    policy = make_agent("policy-improvement").learn(train, 0).policy
    env = gym.make("EarlyExit-ToyBERT-Clauses", split="dev", observe=OBSERVE, render_mode="ansi")
    env.unwrapped.watch(policy)
    env.reset(options={"instance": 3})
    env.step(0)
    shown = env.render()
    problem = env.unwrapped.problem
    expected = policy.scores_on(problem)[3, :2]
    lines = shown.splitlines()
    for layer, score in enumerate(expected, start=1):
        (line,) = [one for one in lines if one.split()[:1] == [str(layer)]]
        assert line.endswith(f"exit score {score:.2f}")
    assert " " in lines[0]
    assert "full depth says" in lines[-1]
    env.unwrapped.watch(None)
    env.reset()
    assert "score" not in env.render()
    with pytest.raises(CeeGymError):
        gym.make("EarlyExit-ToyBERT-Clauses").unwrapped.watch(policy)


def test_human_shows_every_state_in_one_window(monkeypatch) -> None:
    shown = []
    monkeypatch.setattr("cee_gym.envs.render.show", lambda drawn, _: shown.append(drawn))
    env = gym.make("EarlyExit-BERT-RTE", render_mode="human")
    env.reset(seed=0)
    env.step(0)
    env.step(1)
    assert env.render() is None
    assert len(shown) == 3
    monkeypatch.undo()
    pyplot.switch_backend("agg")
    env.reset()
    assert pyplot.get_figlabels() == ["cee-gym"]
    pyplot.close("all")


def test_a_video_is_recorded(tmp_path) -> None:
    pytest.importorskip("moviepy", reason="RecordVideo needs moviepy")
    env = gym.make("EarlyExit-ToyBERT-Clauses", render_mode="rgb_array")
    env = RecordVideo(env, str(tmp_path), episode_trigger=lambda episode: True)
    env.reset(seed=0)
    for action in (0, 0, 1):
        env.step(action)
    env.close()
    (video,) = tmp_path.glob("*.mp4")
    assert video.stat().st_size > 1000
