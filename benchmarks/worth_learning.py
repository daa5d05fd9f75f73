"""Is it worth learning when to leave? Learned policies against rules, at equal saved layers.

    python benchmarks/worth_learning.py --recordings DIR/mcid-ours-0 DIR/mcid-ours-1 ...

A recording is named SET-ours-SEED, as `strong_exits.py` makes them, and the seeds of a set share
the rows they are reported on. A model that was cut to half of its layers and trained by the same
recipe (`half_depth.py`) stands beside it as SET-half-SEED.

Policies learn on train with their presets. Their operating points, and which of the rules and
which range of prices is best, are chosen on calibration. Reported is the accuracy on dev, and on
test where there is one, at 20 to 80 % of the layers saved there: between two operating points,
that of taking either by a coin, so that no policy gains by saving less than was asked. Differences
are paired by row; their intervals come from a bootstrap of the rows.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tyro
from common import write

from cee_gym import ExitPolicy, Problem
from cee_gym.agents.registry import make_agent, preset_for
from cee_gym.envs import EarlyExitEnv
from cee_gym.evaluation.matched import MatchedCurve, fixed_layer_curve, policy_curve
from cee_gym.policies.rules import PCEE, Confidence, Entropy, Margin, Patience
from cee_gym.policies.speeds import measure_speeds
from cee_gym.traces.recordings import open_split, recorded_splits

SAVED = np.array([0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
RANGES = ((0.0, 0.01), (0.0, 0.03), (0.0, 0.1))
PATIENCE = (2, 3, 4)
LEARNING = ("policy-improvement", "longstaff-schwartz", "expected-return", "reinforce", "ppo")
LEARNED_OTHERWISE = ("learning-to-exit", "cat")
RULES = ("confidence", "margin", "entropy", "patience", "pcee")
DRAWS = 4_000

Floats = npt.NDArray[np.floating]


@dataclass
class Args:
    """Arguments.

    Attributes:
        recordings: each named SET-SEED, with splits train, calibration and dev.
        agents: which learn.
    """

    recordings: tuple[Path, ...]
    agents: tuple[str, ...] = (*LEARNING, *LEARNED_OTHERWISE)


def of_policy(
    policy: ExitPolicy, recording: Path, observe: Any, alpha: Any
) -> dict[str, MatchedCurve]:
    """A policy at the operating points of calibration, on every other split than train."""
    problems = {
        split: Problem(open_split(recording, split), observe=observe, alpha=alpha)
        for split in reported(recording)
    }
    speeds = measure_speeds(policy, problems["calibration"])
    return {split: policy_curve(policy, speeds, problem) for split, problem in problems.items()}


def of_fixed_layers(recording: Path) -> dict[str, MatchedCurve]:
    """Every layer but those that another one, on calibration, beats at more saved layers."""
    chosen_on = open_split(recording, "calibration")
    return {
        split: fixed_layer_curve(open_split(recording, split), chosen_on)
        for split in reported(recording)
    }


def reported(recording: Path) -> list[str]:
    """Calibration, to choose on, and what is reported."""
    return [split for split in recorded_splits(recording) if split != "train"]


def rules(recording: Path) -> Iterator[tuple[str, dict[str, MatchedCurve]]]:
    """Each rule, at every threshold; the patience of PCEE is that which is best on calibration."""
    observe = ("confidence", "margin", "entropy", "probs", "layer")
    problem = Problem(open_split(recording, "calibration"), observe=observe)

    def one(rule: Any) -> dict[str, MatchedCurve]:
        return of_policy(rule.policy(problem), recording, observe, 0.01)

    yield "confidence", one(Confidence(threshold=0.9))
    yield "margin", one(Margin(threshold=0.9))
    yield "entropy", one(Entropy(threshold=0.1))
    yield "patience", one(Patience(patience=3))
    tried = [one(PCEE(patience=patience, threshold=0.1)) for patience in PATIENCE]
    yield "pcee", max(tried, key=on_calibration)


def learned(
    name: str, recording: Path, seed: int, task: str
) -> tuple[dict[str, MatchedCurve], dict[str, Any]]:
    """An agent with its preset; of the ranges of prices, that which is best on calibration."""
    preset = preset_for(name)
    settings = dict(preset.hyperparameters)
    observe = preset.observe
    if name in LEARNED_OTHERWISE:
        if name == "cat":
            settings["seed"] = seed
        tried = [((0.01, 0.01), observe)]
    else:
        settings["seed"] = seed
        tried = [(prices, (*observe, "alpha")) for prices in RANGES]
    found = []
    for prices, parts in tried:
        alpha = prices[0] if prices[0] == prices[1] else prices
        env = EarlyExitEnv(trace=recording, split="train", alpha=alpha, observe=parts)
        agent = make_agent(name, **settings).learn(env, preset.total_timesteps)
        curves = of_policy(agent.policy, recording, parts, alpha)
        found.append((curves, {"observe": list(parts), "alpha": alpha}))
    return max(found, key=lambda one: on_calibration(one[0]))


def on_calibration(curves: dict[str, MatchedCurve]) -> float:
    """Mean accuracy over the shares of saved layers on calibration."""
    return float(curves["calibration"].at(SAVED).mean())


@cache
def draws(num_rows: int) -> Floats:
    """How often each row is in each bootstrap sample, float32 `[DRAWS, N]`."""
    rng = np.random.default_rng(0)
    shares = np.full(num_rows, 1 / num_rows)
    return rng.multinomial(num_rows, shares, size=DRAWS).astype(np.float32)


def interval(rows: Floats) -> dict[str, Any]:
    """The mean over `[N]`, and its 95 % interval from a bootstrap of the rows."""
    means = draws(len(rows)) @ rows.astype(np.float32) / len(rows)
    low, high = np.quantile(means, [0.025, 0.975])
    return {"mean": float(rows.mean()), "low": float(low), "high": float(high)}


def on_set(name: str, recordings: list[Path], args: Args) -> dict[str, Any]:
    """All policies on the recordings of one set."""
    by_policy: dict[str, list[dict[str, MatchedCurve]]] = {}
    how: dict[str, list[dict[str, Any]]] = {}
    full: dict[str, list[Floats]] = {}
    half: dict[str, list[Floats]] = {}
    for recording in recordings:
        seed = int(recording.name.rpartition("-")[2])
        by_policy.setdefault("fixed layer", []).append(of_fixed_layers(recording))
        for rule, curves in rules(recording):
            by_policy.setdefault(rule, []).append(curves)
        task = open_split(recording, "dev").header.task
        for agent in args.agents:
            curves, chosen = learned(agent, recording, seed, task)
            by_policy.setdefault(agent, []).append(curves)
            how.setdefault(agent, []).append(chosen)
            print(
                recording.name, agent, chosen["alpha"], f"{on_calibration(curves):.4f}", flush=True
            )
        cut = recording.with_name(f"{name}-half-{seed}")
        for split in reported(recording):
            full.setdefault(split, []).append(open_split(recording, split).correct[:, -1])
            if cut.exists():
                half.setdefault(split, []).append(open_split(cut, split).correct[:, -1])
    # What is better is said by calibration alone.
    calibrated = {p: np.mean([on_calibration(c) for c in of]) for p, of in by_policy.items()}
    best_rule = max(RULES, key=lambda rule: calibrated[rule])
    best_agent = max(
        (agent for agent in args.agents if agent in LEARNING), key=lambda agent: calibrated[agent]
    )
    splits = {}
    for split in reported(recordings[0]):
        right = {
            policy: np.array([curves[split].at(SAVED) for curves in of])  # [seeds, S, N]
            for policy, of in by_policy.items()
        }
        over = {
            f"{agent} over {other}": {
                **interval((right[agent] - right[other]).mean(axis=(0, 1))),
                "by_seed": (right[agent] - right[other]).mean(axis=(1, 2)).round(4).tolist(),
                "by_saved_layers": [
                    interval(rows) for rows in (right[agent] - right[other]).mean(axis=0)
                ],
            }
            for agent in args.agents
            for other in (best_rule, "confidence", "fixed layer")
        }
        splits[split] = {
            "rows": right["confidence"].shape[2],
            "full_depth": np.mean(full[split], axis=1).round(4).tolist(),
            "cut_and_trained_at_half_depth": np.mean(half[split], axis=1).round(4).tolist()
            if split in half and split != "calibration"
            else None,
            "mean_accuracy": {p: round(float(of.mean()), 4) for p, of in right.items()},
            "accuracy": {p: of.mean(axis=(0, 2)).round(4).tolist() for p, of in right.items()},
            "accuracy_by_seed": {p: of.mean(axis=2).round(4).tolist() for p, of in right.items()},
            "differences": over,
        }
        print(name, split, splits[split]["mean_accuracy"], flush=True)
    return {
        "best_rule_on_calibration": best_rule,
        "best_agent_on_calibration": best_agent,
        "how": how,
        "splits": splits,
    }


def main(args: Args) -> None:
    """Learns and compares."""
    warnings.filterwarnings("ignore", category=UserWarning)
    sets: dict[str, list[Path]] = {}
    for recording in args.recordings:
        sets.setdefault(recording.name.split("-")[0], []).append(recording)
    results: dict[str, Any] = {"saved_layers": SAVED.tolist(), "price_ranges": RANGES, "sets": {}}
    for name, recordings in sets.items():
        results["sets"][name] = on_set(name, recordings, args)
        write("worth_learning", results)


if __name__ == "__main__":
    main(tyro.cli(Args))
