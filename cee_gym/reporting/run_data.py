"""What a report shows of a run, as tidy tables."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import log_softmax

from cee_gym.evaluation.learning_curves import RETURN, learning_curves
from cee_gym.evaluation.matched import MatchedCurve, fixed_layer_curve, policy_curve
from cee_gym.hardness import memorized_layer
from cee_gym.problem import Problem
from cee_gym.runs import EVALUATION, Run
from cee_gym.tasks.texts import built_in_texts
from cee_gym.traces.recordings import open_split, recorded_splits
from cee_gym.traces.trace import Trace

GRID = np.linspace(0, 1, 101)
DRAWS = 300
BINS = 10


def curve_table(name: str, curve: MatchedCurve) -> pd.DataFrame:
    """A curve on a grid, with the 95 % interval from a bootstrap of the rows."""
    saved = GRID[curve.saved[-1] + 1e-9 >= GRID]
    right = curve.at(saved)
    rng = np.random.default_rng(0)
    rows = right.shape[1]
    # Counts of each row in each draw: one product of matrices is all draws.
    weights = rng.multinomial(rows, np.full(rows, 1 / rows), size=DRAWS) / rows
    low, high = np.quantile(right @ weights.T, (0.025, 0.975), axis=1)
    return pd.DataFrame(
        {"name": name, "saved": saved, "accuracy": right.mean(axis=1), "low": low, "high": high}
    )


def speed_table(run: Run, split: str) -> pd.DataFrame:
    """The policy and the best fixed layers at every speed."""
    problem = run.problem(split)
    curve = policy_curve(run.policy, run.speeds, problem)
    fixed = fixed_layer_curve(problem.trace, run.problem("calibration").trace)
    return pd.concat([curve_table(run.agent, curve), curve_table("fixed layer", fixed)])


def own_exits(run: Run, problem: Problem) -> np.ndarray:
    """Where rows leave at the policy's own speed, integers `[N]` from 1."""
    policy = run.policy.at_some_price()
    return policy.exit_layers(policy.scores_on(problem))


def exit_table(exits: np.ndarray, trace: Trace) -> pd.DataFrame:
    """The share of rows that leaves at each exit, right or wrong."""
    right = trace.correct[np.arange(len(trace)), exits - 1]
    return pd.DataFrame(
        [
            {"exit": int(depth), "answer": answer, "share": float((at & (right == value)).mean())}
            for number, depth in enumerate(trace.depths, start=1)
            for at in [exits == number]
            for answer, value in (("right", True), ("wrong", False))
        ]
    )


def memorized_table(exits: np.ndarray, trace: Trace) -> pd.DataFrame:
    """How many rows have each pair of memorized layer and exit layer."""
    memorized = memorized_layer(trace.correct)
    pairs = pd.DataFrame({"memorized layer": memorized, "exit layer": exits})
    return pairs.groupby(["memorized layer", "exit layer"]).size().rename("rows").reset_index()


def reliability_table(trace: Trace, temperatures: list[float] | None) -> pd.DataFrame:
    """Accuracy in bins of the confidence, of the first, middle and last exit.

    Where the exits have temperatures, also what it was before them: the recorded logits, or those
    that the probabilities of two classes stand for, times the temperature.
    """
    chosen = sorted({1, (trace.num_layers + 1) // 2, trace.num_layers})
    tables = []
    for exit in chosen:
        confidence = np.asarray(trace.confidence[:, exit - 1], dtype=np.float64)
        shown = [("as recorded", confidence)]
        if temperatures is not None and trace.logits is not None:
            logits = np.asarray(trace.logits[:, exit - 1], dtype=np.float64)
            before = np.exp(log_softmax(logits * temperatures[exit - 1], axis=1)).max(axis=1)
            shown.append(("before temperatures", before))
        for when, values in shown:
            place = np.minimum((values * BINS).astype(int), BINS - 1)
            frame = pd.DataFrame(
                {"bin": place, "confidence": values, "accuracy": trace.correct[:, exit - 1]}
            )
            grouped = frame.groupby("bin").agg(
                confidence=("confidence", "mean"),
                accuracy=("accuracy", "mean"),
                rows=("accuracy", "size"),
            )
            tables.append(grouped[grouped["rows"] >= 5].assign(exit=str(exit), when=when))
    return pd.concat(tables).reset_index(drop=True)


def loss_table(run: Run, split: str) -> pd.DataFrame:
    """Quantiles of the cross-entropy of each exit after each round (ConsistentEE, Figure 2)."""
    rows = []
    recordings = {"recorded": run.recording}
    rounds = sorted(run.directory.glob(f"round-*/{EVALUATION}"))
    if len(rounds) > 1:
        recordings = {
            f"round {file.parent.name.removeprefix('round-')}": file.parent / "recording"
            for file in rounds
        }
    for name, recording in recordings.items():
        if not recorded_splits(recording):
            continue
        trace = open_split(recording, split)
        quantiles = np.quantile(trace.loss, (0.05, 0.25, 0.5, 0.75, 0.95), axis=0)
        for number, depth in enumerate(trace.depths):
            lowest, low, middle, high, highest = quantiles[:, number].tolist()
            rows.append(
                {"round": name, "exit": int(depth), "lowest": lowest, "low": low}
                | {"middle": middle, "high": high, "highest": highest}
            )
    return pd.DataFrame(rows)


def reward_table(problem: Problem) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The mean reward of each exit over alpha, and how often each is the best (Figures 4 and 5)."""
    low, high = problem.alpha
    alphas = np.linspace(0, max(0.1, 2 * high, 2 * low), 21)
    means, best = [], []
    for alpha in alphas.tolist():
        rewards = problem.rewards(alpha)
        shares = np.bincount(rewards.argmax(axis=1), minlength=rewards.shape[1]) / len(rewards)
        for number, depth in enumerate(problem.trace.depths):
            at = {"alpha": alpha, "exit": str(depth)}
            means.append({**at, "mean reward": float(rewards[:, number].mean())})
            best.append({**at, "share": float(shares[number])})
    return pd.DataFrame(means), pd.DataFrame(best)


def learning_table(directory: Path, most: int = 400) -> pd.DataFrame:
    """The mean return while learning; empty where the agent logs none."""
    curve = learning_curves(directory).get(RETURN)
    if curve is None or len(curve.steps) < 2:
        return pd.DataFrame()
    kept = np.unique(np.linspace(0, len(curve.steps) - 1, most).astype(int))
    return pd.DataFrame(
        {"decisions": curve.steps[kept], "mean return": curve.values[kept], "run": "run"}
    )


def examples(exits: np.ndarray, trace: Trace, count: int = 6) -> list[dict[str, Any]]:
    """Rows that leave earliest and latest, with what their exit said."""
    texts = built_in_texts(trace.header.task)
    if texts is None:
        return []
    order = np.argsort(exits, kind="stable")
    names = trace.header.labels or ()
    rows = []
    for kind, some in (("early", order[:count]), ("late", order[::-1][:count])):
        for row in some.tolist():
            said = int(trace.prediction[row, exits[row] - 1])
            rows.append(
                {
                    "kind": kind,
                    "text": texts.get(str(trace.row_ids[row]), str(trace.row_ids[row])),
                    "exit": int(trace.depths[exits[row] - 1]),
                    "said": names[said] if said < len(names) else str(said),
                    "right": bool(trace.correct[row, exits[row] - 1]),
                }
            )
    return rows
