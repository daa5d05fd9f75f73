"""One policy for every speed, beside a policy for each.

The published objection to learned exits is that one trained policy has one operating point. Here an
agent that observes alpha, drawn anew for each episode, is trained once and asked for 8 levels of
saved layers by `for_budget`. Beside it, policies are trained separately at a grid of prices; for
each level the one is taken that saves just as much on calibration at p > 1/2, and its threshold is
then moved on calibration so that it saves no more than asked, so that nothing is lost to the grid.
Everything is chosen on calibration and reported on dev; the two are compared row by row, and the
rows are bootstrapped.

    python benchmarks/one_policy_every_speed.py --recording DIR
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tyro
from common import RESULTS, write

from cee_gym.agents import ExpectedReturn
from cee_gym.envs import EarlyExitEnv
from cee_gym.policies.rules import Confidence
from cee_gym.problem import Problem
from cee_gym.traces.recordings import open_split

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
ALPHAS = (0.0, 0.6)
GRID = tuple(float(alpha) for alpha in np.geomspace(0.005, 0.6, 12).round(4))
OBSERVE = ("hidden", "layer", "confidence")
AGENT: dict[str, Any] = {"start": "confidence", "weight_decay": 0.01}
DRAWS = 10_000

Correct = npt.NDArray[np.bool_]


@dataclass
class Args:
    """Arguments.

    Attributes:
        recording: with the splits train, calibration and dev.
        seeds: how many.
        timesteps: of each separate policy.
        conditioned_timesteps: of the one policy.
    """

    recording: Path
    seeds: int = 3
    timesteps: int = 600_000
    conditioned_timesteps: int = 2_400_000


def main(args: Args) -> None:
    """Trains, compares and draws."""
    calibration, dev = (open_split(args.recording, split) for split in ("calibration", "dev"))
    rows: list[dict[str, Any]] = []
    right: dict[str, list[Correct]] = {"one": [], "separate": []}
    for seed in range(args.seeds):
        one, one_right = conditioned(args, seed)
        separate, separate_right = separately(args, seed)
        rows.append({"seed": seed, "one": one, "separate": separate})
        right["one"].append(one_right)
        right["separate"].append(separate_right)
        print(seed, one, separate, sep="\n", flush=True)
    # Points lost by the one policy, for each level and row of dev: mean over seeds.
    lost = 100 * (
        np.mean(right["separate"], axis=0, dtype=float) - np.mean(right["one"], axis=0, dtype=float)
    )
    results = {
        "task": dev.header.task,
        "backbone": dev.header.backbone,
        "trace": dev.fingerprint,
        "rows": {split: len(open_split(args.recording, split)) for split in ("train", "dev")},
        "levels": LEVELS,
        "alphas": ALPHAS,
        "grid": GRID,
        "observe": OBSERVE,
        "agent": {"name": ExpectedReturn.name, **AGENT},
        "timesteps": {"separate, each": args.timesteps, "one": args.conditioned_timesteps},
        "full_depth_accuracy": float(dev.correct[:, -1].mean()),
        "confidence": confidence(calibration, dev),
        "target_for_the_upper_end": 0.5,
        "points_lost": interval(lost),
        "points_lost_at_the_four_fastest": interval(lost[4:]),
        "points_lost_by_level": lost.mean(axis=1).round(3).tolist(),
        "seeds": rows,
    }
    write("one_policy_every_speed", results)
    print(results["points_lost"], results["points_lost_at_the_four_fastest"])
    plot(results, RESULTS / "one_policy_every_speed.png")


def interval(lost: npt.NDArray[np.float64]) -> dict[str, Any]:
    """The mean of `[levels, N]`, and its 95 % interval from a bootstrap of the rows."""
    rows = lost.mean(axis=0)
    rng = np.random.default_rng(0)
    means = np.array([rows[rng.integers(len(rows), size=len(rows))].mean() for _ in range(DRAWS)])
    low, high = np.quantile(means, [0.025, 0.975])
    return {"mean": float(rows.mean()), "interval_95": [float(low), float(high)]}


def env_of(args: Args, split: str, alpha: float | tuple[float, float]) -> EarlyExitEnv:
    """The environment of a split."""
    return EarlyExitEnv(
        trace=args.recording,
        split=split,
        alpha=alpha,
        reward="paper",
        observe=OBSERVE if isinstance(alpha, float) else (*OBSERVE, "alpha"),
    )


def conditioned(args: Args, seed: int) -> tuple[dict[str, Any], Correct]:
    """The policy that observes alpha, at every level."""
    env = env_of(args, "train", ALPHAS)
    calibration, dev = (env_of(args, s, ALPHAS).problem for s in ("calibration", "dev"))
    start = time.perf_counter()
    policy = ExpectedReturn(seed=seed, **AGENT).learn(env, args.conditioned_timesteps).policy
    trained = time.perf_counter() - start
    held = [policy.for_budget(saved_layers=level, on=calibration) for level in LEVELS]
    exits = np.stack([one.exit_layers(one.scores_on(dev)) for one in held])
    report, right = measured(dev.trace, exits)
    return {
        "seconds": round(trained, 1),
        "alpha": [h.alpha for h in held],
        "threshold": [h.threshold for h in held],
        **report,
    }, right


def separately(args: Args, seed: int) -> tuple[dict[str, Any], Correct]:
    """A policy for each price of the grid; for each level the one that fits."""
    start = time.perf_counter()
    calibration, dev = (env_of(args, split, GRID[0]).problem for split in ("calibration", "dev"))
    saved, policies = [], []
    for alpha in GRID:
        agent = ExpectedReturn(seed=seed, **AGENT).learn(
            env_of(args, "train", alpha), args.timesteps
        )
        policies.append(agent.policy)
        exits_there = agent.policy.exit_layers(agent.policy.scores_on(calibration))
        saved.append(1 - float(exits_there.mean()) / calibration.num_layers)
    trained = time.perf_counter() - start
    chosen, exits = [], []
    for level in LEVELS:
        enough = [i for i, share in enumerate(saved) if share >= level] or [int(np.argmax(saved))]
        pick = min(enough, key=lambda i: saved[i])
        held = policies[pick].for_budget(saved_layers=level, on=calibration)
        exits.append(held.exit_layers(held.scores_on(dev)))
        chosen.append(GRID[pick])
    report, right = measured(dev.trace, np.stack(exits))
    return {"seconds": round(trained, 1), "alpha": chosen, **report}, right


def confidence(calibration: Any, dev: Any) -> dict[str, Any]:
    """A confidence threshold for each level."""
    there, report = (Problem(trace, observe=("confidence",)) for trace in (calibration, dev))
    rule = Confidence().policy(there)
    held = [rule.for_budget(saved_layers=level, on=there) for level in LEVELS]
    return measured(dev, np.stack([one.exit_layers(one.scores_on(report)) for one in held]))[0]


def measured(trace: Any, exits: npt.NDArray[np.int64]) -> tuple[dict[str, Any], Correct]:
    """Accuracy and saved layers for exits `[levels, N]`, and what was right."""
    right = trace.correct[np.arange(len(trace)), exits - 1]
    return {
        "accuracy": right.mean(axis=1).round(4).tolist(),
        "saved_layers": (1 - exits.mean(axis=1) / trace.num_layers).round(4).tolist(),
    }, right


def plot(results: dict[str, Any], path: Path) -> None:
    """Accuracy against saved layers, mean over seeds, each seed as a dot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    seeds = results["seeds"]
    for name, label, color in (
        ("one", "one policy, alpha observed", "tab:blue"),
        ("separate", "a policy for each level", "tab:orange"),
    ):
        saved = 100 * np.array([s[name]["saved_layers"] for s in seeds])
        accuracy = np.array([s[name]["accuracy"] for s in seeds])
        axes.plot(saved.mean(axis=0), accuracy.mean(axis=0), "o-", color=color, label=label)
        axes.plot(saved.ravel(), accuracy.ravel(), ".", color=color, alpha=0.35)
    rule = results["confidence"]
    axes.plot(
        100 * np.array(rule["saved_layers"]),
        rule["accuracy"],
        "s--",
        color="tab:gray",
        label="confidence threshold",
    )
    axes.axhline(
        results["full_depth_accuracy"], color="black", linewidth=0.8, linestyle=":",
        label="full depth",
    )  # fmt: skip
    axes.set(
        xlabel="saved layers (%)",
        ylabel="dev accuracy",
        title=f"{results['task']}, {results['backbone']}: one policy for every speed",
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower left")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main(tyro.cli(Args))
