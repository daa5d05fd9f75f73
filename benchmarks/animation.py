"""Draws `docs/episode.gif`: three sentences of the built-in task, each as deep as a policy says.

python benchmarks/animation.py
"""

from pathlib import Path

import gymnasium as gym
from PIL import Image

import cee_gym  # noqa: F401 - registers
from cee_gym.agents import PolicyImprovement
from cee_gym.agents.presets import OBSERVE

ID = "EarlyExit-ToyBERT-Clauses"


def main() -> None:
    """Writes the picture."""
    observe = ("hidden", *OBSERVE)
    train = gym.make(ID, observe=observe, alpha=0.035)
    policy = PolicyImprovement().learn(train).policy
    env = gym.make(ID, split="dev", observe=observe, alpha=0.035, render_mode="rgb_array")
    env.unwrapped.watch(policy)
    problem = env.unwrapped.problem
    exits = policy.exit_layers(policy.scores_on(problem))
    frames, seconds = [], []
    # One that leaves early, one in the middle, one late; all are answered rightly.
    for wanted in (2, 4, 8):
        right = [row for row in range(len(problem)) if problem.correct[row, exits[row] - 1]]
        instance = min(right, key=lambda row: abs(int(exits[row]) - wanted))
        env.reset(options={"instance": instance})
        for layer in range(1, int(exits[instance]) + 1):
            frames.append(Image.fromarray(env.render()))
            seconds.append(500)
            env.step(int(layer == exits[instance]))
        frames.append(Image.fromarray(env.render()))
        seconds.append(1800)
    height = max(frame.height for frame in frames)
    shown = []
    for frame in frames:
        whole = Image.new("RGB", (frame.width, height), (250, 250, 250))
        whole.paste(frame, (0, 0))
        shown.append(whole.quantize(48))
    target = Path(__file__).parents[1] / "docs" / "episode.gif"
    shown[0].save(target, save_all=True, append_images=shown[1:], duration=seconds, loop=0)
    print(f"{target}: {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
