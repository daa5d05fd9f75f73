"""Weights for each layer, or shared by all: how well exits are learned from a thousand texts.

    python benchmarks/studies/sharing_layers.py --recordings DIR DIR ...

The rows the policy learns on are cross-validated in five parts: at each of a range of prices, the
best threshold on the confidence, Longstaff-Schwartz, and one step of policy iteration from that
threshold with weights that all layers share. They are compared at equal saved layers with every
threshold there is on the confidence, chosen on the very rows. Neither calibration nor dev is looked
at.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import write
from worth_learning import SAVED

from cee_gym import Problem
from cee_gym.evaluation.matched import matched_curve
from cee_gym.returns import best_threshold, first_exit
from cee_gym.stopping import improve_on_threshold, regress_backwards
from cee_gym.traces.recordings import open_split

PRICES = np.geomspace(0.0005, 0.2, 11)
PATH = ("confidence", "margin", "agreement", "previous")
PARTS = 5

Floats = npt.NDArray[np.floating]
Exits = npt.NDArray[np.int64]
# From states, confidences and rewards of some rows to the exits of others.
Learn = Callable[[Floats, Floats, Floats], Callable[[Floats, Floats], Exits]]


@dataclass
class Args:
    """Arguments.

    Attributes:
        recordings: with the split train.
    """

    recordings: tuple[Path, ...]


def threshold(_: Floats, confidence: Floats, rewards: Floats) -> Callable[[Floats, Floats], Exits]:
    """The best threshold on the confidence."""
    best = best_threshold(confidence, rewards)
    return lambda _, confidence: first_exit(confidence > best)


def per_layer(states: Floats, _: Floats, rewards: Floats) -> Callable[[Floats, Floats], Exits]:
    """Longstaff-Schwartz."""
    rule = regress_backwards(states, rewards, 5, 0)
    return lambda states, _: rule.exits_of(states)


def shared(
    states: Floats, confidence: Floats, rewards: Floats
) -> Callable[[Floats, Floats], Exits]:
    """One step of policy iteration from the threshold."""
    weight, bias = improve_on_threshold(states[None], confidence, rewards[None])
    return lambda states, _: first_exit(np.einsum("nld,ld->nl", states, weight) + bias > 0)


WAYS: dict[str, Learn] = {
    "threshold": threshold,
    "longstaff-schwartz": per_layer,
    "policy-improvement": shared,
}


def on_one(recording: Path) -> dict[str, Any]:
    """All ways on one recording."""
    problem = Problem(open_split(recording, "train"), observe=PATH)
    states, correct = np.array(problem.observe()), np.asarray(problem.correct)
    confidence = problem.trace.confidence.astype(np.float64)
    rows = np.arange(len(problem))
    parts = np.array_split(np.random.default_rng(0).permutation(rows), PARTS)
    grid = np.quantile(confidence, np.linspace(0, 1, 100))
    frontier = matched_curve([first_exit(confidence > score) for score in grid], correct).at(SAVED)
    found: dict[str, Any] = {
        "rows": len(rows),
        "every_threshold": round(float(frontier.mean()), 4),
    }
    for name, learn in WAYS.items():
        exits = []
        for price in PRICES:
            rewards = problem.rewards(price)
            of_price = np.empty(len(rows), dtype=np.int64)
            for own in parts:
                others = np.delete(rows, own)
                decide = learn(states[others], confidence[others], rewards[others])
                of_price[own] = decide(states[own], confidence[own])
            exits.append(of_price)
        learned = matched_curve(exits, correct)
        over = (learned.at(SAVED) - frontier).mean(axis=0)
        found[name] = {
            "mean_accuracy": round(float(learned.at(SAVED).mean()), 4),
            "over_every_threshold": round(float(over.mean()), 4),
            "standard_error": round(float(over.std(ddof=1) / len(over) ** 0.5), 4),
            "accuracy": learned.at(SAVED).mean(axis=1).round(4).tolist(),
        }
        print(recording.name, name, found[name]["over_every_threshold"], flush=True)
    return found


def main(args: Args) -> None:
    """Measures all."""
    results = {recording.name: on_one(recording) for recording in args.recordings}
    write(
        "sharing_layers",
        {"saved_layers": SAVED.tolist(), "prices": PRICES.tolist(), "recordings": results},
    )


if __name__ == "__main__":
    main(tyro.cli(Args))
