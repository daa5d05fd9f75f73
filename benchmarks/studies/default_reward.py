"""Which reward and which observation a policy learns best from, at equal saved layers.

    python benchmarks/studies/default_reward.py --recordings DIR DIR ...

Longstaff-Schwartz learns on the train split of each recording at a range of prices, which draws a
curve of accuracy over saved layers on calibration. Rewards are in different units, so they are
compared by accuracy at the same saved layers, and never by return. Dev is not looked at.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import write

from cee_gym import Problem, Reward
from cee_gym.reward import register_quality
from cee_gym.stopping import regress_backwards
from cee_gym.traces.recordings import open_split

SAVED = np.array([0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
PRICES = np.geomspace(0.0005, 0.5, 13)


@register_quality("label_probability", low=0.0, high=1.0)
def label_probability(exits: Any) -> Any:
    """The probability that the exit gives the label."""
    return np.exp(-np.asarray(exits.loss))


@register_quality("full_depth_agreement", low=0.0, high=1.0, deeper=True)
def full_depth_agreement(exits: Any) -> Any:
    """Whether the exit says what the last one says."""
    prediction = np.asarray(exits.prediction)
    return prediction == prediction[..., -1:]


QUALITIES = ("correctness", "cross_entropy", "label_probability", "full_depth_agreement")
HARDNESS = (None, "memorized_layer")
OBSERVATIONS = {
    "hidden": ("hidden",),
    "hidden, confidence": ("hidden", "confidence"),
    "path": ("confidence", "margin", "agreement", "previous"),
    "hidden, path": ("hidden", "confidence", "margin", "agreement", "previous"),
    "hidden, probs, path": ("hidden", "probs", "confidence", "margin", "agreement", "previous"),
}


@dataclass
class Args:
    """Arguments.

    Attributes:
        recordings: with splits train and calibration.
    """

    recordings: tuple[Path, ...]


def on_curve(saved: Any, accuracy: Any) -> list[float]:
    """Accuracy at the wanted savings, between the points of a curve."""
    order = np.argsort(saved)
    return np.interp(SAVED, np.asarray(saved)[order], np.asarray(accuracy)[order]).tolist()


def point(exits: Any, correct: Any) -> tuple[float, float]:
    """Saved layers and accuracy."""
    num_layers = correct.shape[1]
    return 1 - exits.mean() / num_layers, correct[np.arange(len(exits)), exits - 1].mean()


def learned(recording: Path, reward: Reward, observe: tuple[str, ...]) -> list[float]:
    """The curve of Longstaff-Schwartz."""
    train, calibration = (
        Problem(open_split(recording, split), reward, observe) for split in ("train", "calibration")
    )
    correct = np.asarray(calibration.trace.correct)
    num_layers = correct.shape[1]
    points = [point(np.full(len(correct), layer), correct) for layer in (1, num_layers)]
    states, shown = np.array(train.observe()), np.array(calibration.observe())
    for price in PRICES:
        rule = regress_backwards(states, train.rewards(price), 5, 0)
        points.append(point(rule.exits_of(shown), correct))
    return on_curve(*zip(*points, strict=True))


def baselines(recording: Path) -> dict[str, list[float]]:
    """Fixed layers, and every threshold of confidence and of margin."""
    trace = open_split(recording, "calibration")
    correct, num_layers = np.asarray(trace.correct), trace.num_layers
    problem = Problem(trace, Reward.paper(), ("confidence", "margin"))
    scores = np.array(problem.observe())
    fixed = [point(np.full(len(correct), layer + 1), correct) for layer in range(num_layers)]
    curves = {"fixed layer": on_curve(*zip(*fixed, strict=True))}
    for number, name in enumerate(("confidence", "margin")):
        score = scores[..., number]
        points = []
        for threshold in np.quantile(score, np.linspace(0, 1, 200)):
            leave = score >= threshold
            leave[:, -1] = True
            points.append(point(leave.argmax(axis=1) + 1, correct))
        curves[name] = on_curve(*zip(*points, strict=True))
    return curves


def main(args: Args) -> None:
    """Measures all."""
    results: dict[str, Any] = {"saved_layers": SAVED.tolist(), "recordings": {}}
    for recording in args.recordings:
        of: dict[str, Any] = {"baselines": baselines(recording), "rewards": {}, "observations": {}}
        for quality in QUALITIES:
            for hardness in HARDNESS:
                name = quality if hardness is None else f"{quality}, {hardness}"
                curve = learned(
                    recording, Reward(quality, hardness), OBSERVATIONS["hidden, confidence"]
                )
                of["rewards"][name] = curve
                print(recording.name, name, np.mean(curve).round(4), flush=True)
        for name, observe in OBSERVATIONS.items():
            of["observations"][name] = learned(recording, Reward("correctness", None), observe)
            print(recording.name, name, np.mean(of["observations"][name]).round(4), flush=True)
        print({k: np.mean(v).round(4) for k, v in of["baselines"].items()}, flush=True)
        results["recordings"][recording.name] = of
    results["means"] = {
        kind: {
            name: float(np.mean([of[kind][name] for of in results["recordings"].values()]))
            for name in next(iter(results["recordings"].values()))[kind]
        }
        for kind in ("baselines", "rewards", "observations")
    }
    write("default_reward", results)


if __name__ == "__main__":
    main(tyro.cli(Args))
