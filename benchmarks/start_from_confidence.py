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

from cee_gym import ExitPolicy, Problem
from cee_gym.agents import ExpectedReturn
from cee_gym.envs import EarlyExitEnv
from cee_gym.policies.rules import Confidence
from cee_gym.policies.speeds import Speed, measure_speeds

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
        envs = {
            split: EarlyExitEnv(
                trace=recording, split=split, alpha=alpha, observe=OBSERVE, reward="paper"
            )
            for split in ("train", "calibration", "dev")
        }
        for start in STARTS:
            for seed in range(args.seeds):
                agent = ExpectedReturn(start=start, weight_decay=0.01, seed=seed)
                policy = agent.learn(envs["train"], args.timesteps).policy
                problems = {split: env.problem for split, env in envs.items()}
                found = {"alpha": alpha, "start": start, "seed": seed}
                found |= at_levels(policy, problems)
                rows.append(found)
                print(found, flush=True)
    traces = {split: env.problem.trace for split, env in envs.items()}
    bare = {split: Problem(trace, observe=("confidence",)) for split, trace in traces.items()}
    return {
        "traces": {split: trace.fingerprint for split, trace in traces.items()},
        "bare_rule": at_levels(Confidence().policy(bare["train"]), bare),
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


def at_levels(policy: ExitPolicy, problems: dict[str, Problem]) -> dict[str, Any]:
    """Accuracy on calibration and dev at thresholds that save each level on calibration."""
    speeds = measure_speeds(policy, problems["calibration"])
    found: dict[str, list[float]] = {"calibration": [], "dev": []}
    for level in LEVELS:
        held = Speed(saved_layers=level).choose(policy, speeds)
        for split, accuracies in found.items():
            correct = problems[split].correct
            exits = held.exit_layers(held.scores_on(problems[split]))
            right = correct[np.arange(len(correct)), exits - 1]
            accuracies.append(round(float(right.mean()), 4))
    return found


if __name__ == "__main__":
    main(tyro.cli(Args))
