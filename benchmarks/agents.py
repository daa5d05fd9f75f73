"""Every agent on several recordings: what it earns, how fast, and its accuracy-speed curve.

Each agent is trained on train with its preset, its thresholds are chosen on calibration, and what
it then does is reported on dev, for each seed. What parts of an observation are worth is measured
for two agents on calibration.

    python benchmarks/agents.py
"""

import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tyro
from common import write
from stable_baselines3.common.logger import KVWriter, Logger

from cee_gym import ExitPolicy, Problem
from cee_gym.agents.presets import OBSERVE
from cee_gym.agents.registry import make_agent, preset_for
from cee_gym.envs import EarlyExitEnv
from cee_gym.policies.speeds import Speed, Speeds, measure_speeds
from cee_gym.problem import ALPHA
from cee_gym.returns import hindsight_return
from cee_gym.traces.recordings import find_recording, open_split

SHIPPED = {"rte": "EarlyExit-BERT-RTE", "sst2": "EarlyExit-BERT-SST-2"}
PARTS = {
    "path": OBSERVE,
    "path without margin": tuple(part for part in OBSERVE if part != "margin"),
    "path without agreement": tuple(part for part in OBSERVE if part != "agreement"),
    "path without previous": tuple(part for part in OBSERVE if part != "previous"),
    "confidence": ("layer", "confidence"),
    "path, entropy": (*OBSERVE, "entropy"),
    "hidden, confidence": ("hidden", "layer", "confidence"),
    "hidden, path": ("hidden", *OBSERVE),
}
LEARNING = (
    "policy-improvement",
    "longstaff-schwartz",
    "expected-return",
    "reinforce",
    "ppo",
    "sb3:ppo",
    "sb3:a2c",
    "sb3-contrib:trpo",
)
# They learn something else than the return, or nothing: they have no learning curve of it.
OTHERS = (
    "constrained",
    "learning-to-exit",
    "cat",
    "confidence",
    "margin",
    "entropy",
    "patience",
    "pcee",
    "saturation",
    "fixed-layer",
    "random",
)
WITH_SEEDS = (*LEARNING, "constrained", "cat", "random")
SMOOTHED_OVER = 5

Scores = npt.NDArray[np.float32]


@dataclass
class Args:
    """Arguments.

    Attributes:
        recordings: NAME=DIR each; by default those of RTE and SST-2 in the package.
        seeds: how many.
        agents: which; all by default.
    """

    recordings: tuple[str, ...] = ()
    seeds: int = 3
    agents: tuple[str, ...] = (*LEARNING, *OTHERS)


class Curve(KVWriter):
    """Keeps when each mean return of a learning run was written."""

    def __init__(self) -> None:
        self.points: list[tuple[float, float]] = []
        self.start = time.perf_counter()

    def write(self, key_values: dict[str, Any], *_: Any, **__: Any) -> None:
        """Takes a point."""
        if "rollout/ep_rew_mean" in key_values:
            elapsed = time.perf_counter() - self.start
            self.points.append((elapsed, float(key_values["rollout/ep_rew_mean"])))

    def close(self) -> None:
        """Nothing to close."""


def main(args: Args) -> None:
    """Trains and reports."""
    warnings.filterwarnings("ignore", category=UserWarning)
    tasks = {}
    recordings = {name: find_recording(id) for name, id in SHIPPED.items()}
    if args.recordings:
        parts = (given.partition("=") for given in args.recordings)
        recordings = {name: Path(path) for name, _, path in parts}
    for task, recording in recordings.items():
        tasks[task] = on_one(task, recording, args)
        write("agents", {"alpha": ALPHA, "seeds": args.seeds, "tasks": tasks})


def on_one(task: str, recording: Path, args: Args) -> dict[str, Any]:
    """All agents on one recording."""
    traces = {split: open_split(recording, split) for split in ("train", "calibration", "dev")}
    rewards = {split: Problem(trace, alpha=ALPHA).rewards(ALPHA) for split, trace in traces.items()}
    fixed = int(rewards["train"].mean(axis=0).argmax())
    rows: dict[str, list[dict[str, Any]]] = {}
    of_rows: dict[str, list[dict[str, npt.NDArray[np.float64]]]] = {}
    for name in args.agents:
        for seed in range(args.seeds if name in WITH_SEEDS else 1):
            row, returns = one(name, recording, seed, rewards)
            rows.setdefault(name, []).append(row)
            of_rows.setdefault(name, []).append(returns)
            print(
                task, name, seed, row["at_its_own_threshold"], f"{row['seconds']:.1f} s", flush=True
            )
    learning = [name for name in LEARNING if name in rows]
    base = {split: float(rewards[split][:, fixed].mean()) for split in rewards}
    gains = {}
    for split in ("train", "dev"):
        leader = max(
            learning, key=lambda name: np.mean([row["return"][split] for row in rows[name]])
        )
        mean = np.mean([returns[split] for returns in of_rows[leader]], axis=0)
        gains[split] = gain(leader, mean - rewards[split][:, fixed])
    for name in learning:
        for row in rows[name]:
            row["normalised_return"] = {
                split: None
                if found["within_noise"]
                else round((row["return"][split] - base[split]) / found["mean"], 3)
                for split, found in gains.items()
            }
            row["seconds_to_99_percent"] = time_to(row.pop("curve"), row["seconds"])
    return {
        "backbone": traces["dev"].header.backbone,
        "traces": {split: trace.fingerprint for split, trace in traces.items()},
        "rows": {split: len(trace) for split, trace in traces.items()},
        "full_depth_accuracy": float(traces["dev"].correct[:, -1].mean()),
        "best_fixed_layer_on_train": fixed + 1,
        "return_of_it": base,
        "hindsight_return": {s: float(hindsight_return(rewards[s]).mean()) for s in rewards},
        "gain_over_it": gains,
        "mean_accuracy_on_calibration_by_parts": ablation(recording),
        "agents": rows,
    }


def ablation(recording: Path) -> dict[str, dict[str, float]]:
    """Mean accuracy on calibration over its own thresholds, by what is observed."""
    found: dict[str, dict[str, float]] = {}
    for agent in ("policy-improvement", "longstaff-schwartz", "expected-return"):
        preset = preset_for(agent)
        for parts, observe in PARTS.items():
            env = EarlyExitEnv(trace=recording, split="train", observe=observe)
            policy = make_agent(agent, **preset.hyperparameters).learn(env, 300_000).policy
            problem = Problem(open_split(recording, "calibration"), observe=observe)
            scores, rewards = policy.scores_on(problem), problem.rewards(ALPHA)
            speeds = measure_speeds(policy, problem)
            found.setdefault(agent, {})[parts] = area(policy, speeds, problem, scores, rewards)
            print(agent, parts, found[agent][parts], flush=True)
    return found


def one(
    name: str, recording: Path, seed: int, rewards: dict[str, npt.NDArray[np.float64]]
) -> tuple[dict[str, Any], dict[str, npt.NDArray[np.float64]]]:
    """One agent and seed: what is reported, and the return of each row, by split.

    Returns are those of the policy at its own threshold.
    """
    preset = preset_for(name)
    problems = {
        split: Problem(open_split(recording, split), observe=preset.observe, alpha=ALPHA)
        for split in rewards
    }
    env = EarlyExitEnv(trace=recording, split="train", alpha=ALPHA, observe=preset.observe)
    settings = dict(preset.hyperparameters)
    if name in WITH_SEEDS:
        settings["seed"] = seed
    agent = make_agent(name, **settings)
    curve = Curve()
    cpu = time.process_time()
    agent.learn(env, preset.total_timesteps, logger=Logger(None, [curve]))
    seconds = time.perf_counter() - curve.start
    policy = agent.policy
    scores = {split: policy.scores_on(problem) for split, problem in problems.items()}
    returns = {
        split: rewards[split][np.arange(len(found)), policy.exit_layers(found) - 1]
        for split, found in scores.items()
    }
    speeds = measure_speeds(policy, problems["calibration"])
    dev = (problems["dev"], scores["dev"], rewards["dev"])
    row = {
        "seed": seed,
        "observe": list(preset.observe),
        "hyperparameters": dict(preset.hyperparameters),
        "timesteps": preset.total_timesteps,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "return": {split: float(values.mean()) for split, values in returns.items()},
        "at_its_own_threshold": measured(policy, *dev),
        "at_most_half_a_point_lost": measured(Speed(points_lost=0.5).choose(policy, speeds), *dev),
        "at_half_of_the_layers": measured(Speed(saved_layers=0.5).choose(policy, speeds), *dev),
        "area_under_the_curve": area(policy, speeds, *dev),
    }
    if name in LEARNING:
        row["curve"] = curve.points
    return row, returns


def measured(
    policy: ExitPolicy, dev: Problem, scores: Scores, rewards: npt.NDArray[np.float64]
) -> dict[str, float]:
    """Accuracy, saved layers and return of a policy at its speed."""
    exits = policy.exit_layers(scores)
    rows = np.arange(len(dev))
    return {
        "accuracy": round(float(dev.correct[rows, exits - 1].mean()), 4),
        "saved_layers": round(1 - float(exits.mean()) / dev.num_layers, 4),
        "return": round(float(rewards[rows, exits - 1].mean()), 4),
    }


def area(
    policy: ExitPolicy,
    speeds: Speeds,
    dev: Problem,
    scores: Scores,
    rewards: npt.NDArray[np.float64],
) -> float:
    """Mean accuracy on dev over levels of saved layers from 0 to all but one layer."""
    levels = np.linspace(0, 1 - 1 / dev.num_layers, 21).tolist()
    held = [Speed(saved_layers=level).choose(policy, speeds) for level in levels]
    points = [measured(one, dev, scores, rewards) for one in held]
    return round(float(np.mean([point["accuracy"] for point in points])), 4)


def gain(leader: str, rows: npt.NDArray[np.float64]) -> dict[str, Any]:
    """What the best learning agent earns more than the best fixed layer, and whether it is noise.

    It is called noise below two standard errors over the rows.
    """
    error = float(rows.std(ddof=1) / len(rows) ** 0.5)
    return {
        "agent": leader,
        "mean": float(rows.mean()),
        "standard_error": error,
        "within_noise": bool(rows.mean() < 2 * error),
    }


def time_to(points: list[tuple[float, float]], whole: float) -> float:
    """Seconds until the smoothed curve has come 99 % of its way up.

    An agent that learns in one go takes all of its time.
    """
    if len(points) < SMOOTHED_OVER:
        return whole
    seconds, values = np.array(points).T
    smooth = np.convolve(values, np.ones(SMOOTHED_OVER) / SMOOTHED_OVER, mode="valid")
    there = np.flatnonzero(smooth >= smooth[0] + 0.99 * (smooth.max() - smooth[0]))
    return round(float(seconds[there[0] + SMOOTHED_OVER - 1]), 2)


if __name__ == "__main__":
    main(tyro.cli(Args))
