"""What it is worth to start a policy from the confidence rule.

The same agent, observing the same, from equally likely exits and from the rule, at several prices
of a layer and seeds, beside the bare rule. Thresholds are chosen on calibration for levels of saved
layers, accuracy is that on dev and, of three to twelve times as many rows, on calibration itself.

    python benchmarks/start_from_confidence.py --recordings sst2=DIR mrpc=DIR
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from common import write

from cee_gym.agents import ExpectedReturn
from cee_gym.envs import EarlyExitEnv
from cee_gym.evaluation.curve import accuracy_speed_curve
from cee_gym.returns import first_exit

LEVELS = (0.5, 0.6, 0.7, 0.8)
ALPHAS = (0.01, 0.035, 0.1)
OBSERVE = ("hidden", "layer", "confidence")
STARTS = ("equally_likely", "confidence")


@dataclass
class Args:
    """Arguments.

    Attributes:
        recordings: NAME=DIR, one or more.
        seeds: how many.
        timesteps: of each policy.
    """

    recordings: tuple[str, ...]
    seeds: int = 3
    timesteps: int = 600_000


def main(args: Args) -> None:
    """Trains and compares."""
    tasks = {}
    for given in args.recordings:
        task, _, path = given.partition("=")
        tasks[task] = on_one(Path(path), args)
        write(
            "start_from_confidence",
            {"levels": LEVELS, "observe": OBSERVE, "timesteps": args.timesteps, "tasks": tasks},
        )


def on_one(recording: Path, args: Args) -> dict[str, Any]:
    """Both starts and the bare rule on one recording."""
    rows = []
    for alpha in ALPHAS:
        tables = {
            split: EarlyExitEnv(trace=recording, split=split, alpha=alpha, observe=OBSERVE)
            for split in ("train", "calibration", "dev")
        }
        for start in STARTS:
            for seed in range(args.seeds):
                agent = ExpectedReturn(start=start, weight_decay=0.01, seed=seed)
                agent.learn(tables["train"], args.timesteps)
                scores = {s: agent.exit_probabilities(e.observations) for s, e in tables.items()}
                found = {"alpha": alpha, "start": start, "seed": seed, **at_levels(tables, scores)}
                rows.append(found)
                print(found, flush=True)
    confidence = {split: env.table.trace.confidence for split, env in tables.items()}
    return {
        "traces": {split: env.table.trace.fingerprint for split, env in tables.items()},
        "bare_rule": at_levels(tables, confidence),
        "mean_over_seeds": {
            f"{start}, alpha {alpha}": {
                split: np.mean(
                    [r[split] for r in rows if (r["start"], r["alpha"]) == (start, alpha)], axis=0
                )
                .round(4)
                .tolist()
                for split in ("calibration", "dev")
            }
            for start in STARTS
            for alpha in ALPHAS
        },
        "rows": rows,
    }


def at_levels(tables: dict[str, EarlyExitEnv], scores: dict[str, Any]) -> dict[str, Any]:
    """Accuracy on calibration and dev at thresholds that save each level on calibration."""
    points = accuracy_speed_curve(tables["calibration"].table.trace, scores["calibration"])
    found: dict[str, list[float]] = {"calibration": [], "dev": []}
    for level in LEVELS:
        fits = [point for point in points if point.saved_layers >= level - 1e-9]
        threshold = min(fits, key=lambda point: point.saved_layers).threshold
        for split, accuracies in found.items():
            correct = tables[split].table.correct
            exits = first_exit(scores[split] > threshold)
            right = correct[np.arange(len(correct)), exits - 1]
            accuracies.append(round(float(right.mean()), 4))
    return found


if __name__ == "__main__":
    main(tyro.cli(Args))
