"""The table, the plot and the JSON of one agent on one split."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cee_gym.agents.at_alpha import AtAlpha
from cee_gym.agents.base import Agent, check_layout, check_model
from cee_gym.errors import CeeGymError
from cee_gym.evaluation.curve import (
    Threshold,
    accuracy_speed_curve,
    choose_threshold,
    evaluate_at,
    fixed_layers,
    hindsight,
)
from cee_gym.evaluation.guarantee import Risk, guaranteed_threshold
from cee_gym.problem import ExitTable

POINTS_LOST = (0.0, 0.5, 1.0, 2.0)


class Promise(NamedTuple):
    """The rate of a risk to stay under, with probability `1 - delta`."""

    risk: Risk
    epsilon: float
    delta: float


def report(
    agent: Agent,
    calibration: ExitTable,
    dev: ExitTable,
    metrics: tuple[str, ...],
    promise: Promise | None = None,
) -> dict[str, Any]:
    """Evaluates an agent against full depth, every fixed layer and the hindsight optimum.

    Thresholds are chosen on calibration and reported on dev. Where alpha is a range, the rewards
    are those at its middle, or at the alpha the agent is held at, and so are the observations.

    Args:
        agent: what decides.
        calibration: of the split the thresholds are chosen on.
        dev: of the split to report on.
        metrics: of the task, the leading one first.
        promise: to find a guaranteed threshold for, and to check on dev.

    Returns:
        JSON-able: `full_depth`, `fixed_layers`, `policy`, `hindsight` and `curve` hold points, see
        `Point`.

    Raises:
        CeeGymError: if the agent does not fit the tables, or nothing can be promised.
    """
    check_layout(agent, dev.layout)
    check_model(agent, dev.trace.header.model)
    alpha = agent.alpha if isinstance(agent, AtAlpha) else sum(dev.alpha) / 2
    rewards = dev.rewards(alpha)
    scores = {name: _scores(agent, t, alpha) for name, t in (("dev", dev), ("cal", calibration))}
    # 1/2 is the paper's rule; it is chosen on no split.
    thresholds = {"p > 1/2": Threshold(0.5, chosen_on="")}
    for lost in POINTS_LOST:
        thresholds[f"at most {lost:g} points lost on calibration"] = choose_threshold(
            calibration.trace, scores["cal"], most_points_lost=lost
        )
    checked = None
    if promise is not None:
        if isinstance(agent, AtAlpha) and agent.chosen_on == calibration.trace.fingerprint:
            raise CeeGymError(
                f"alpha {agent.alpha:g} was chosen on this calibration split, so nothing can be "
                "promised from it: give the agent an alpha by hand"
            )
        guarantee = guaranteed_threshold(
            calibration.trace,
            scores["cal"],
            risk=promise.risk,
            epsilon=promise.epsilon,
            delta=promise.delta,
        )
        thresholds[guarantee.name] = guarantee.threshold
        checked = guarantee.check(dev.trace, scores["dev"])
    fixed = fixed_layers(dev.trace, metrics=metrics, rewards=rewards)
    policy = {
        name: evaluate_at(dev.trace, scores["dev"], threshold, metrics=metrics, rewards=rewards)
        for name, threshold in thresholds.items()
    }
    return {
        "split": dev.trace.header.split,
        "trace": dev.trace.fingerprint,
        "calibration_trace": calibration.trace.fingerprint,
        "agent": agent.name,
        "alpha": alpha,
        "deterministic": dev.deterministic,
        "rows": len(dev.trace),
        "metrics": list(metrics),
        "full_depth": fixed[-1].to_json(),
        "fixed_layers": [point.to_json() for point in fixed],
        "policy": {name: _finite(point.to_json()) for name, point in policy.items()},
        "guarantee": checked,
        "hindsight": hindsight(dev.trace, rewards, metrics=metrics).to_json(),
        "curve": [
            _finite(point.to_json())
            for point in accuracy_speed_curve(dev.trace, scores["dev"], metrics=metrics)
        ],
    }


def _scores(agent: Agent, table: ExitTable, alpha: float) -> npt.NDArray[np.float32]:
    """The agent's scores `[N, L]` of every state of a table at this alpha."""
    if table.alpha_column is None:
        return agent.exit_probabilities(table.observations)
    chunks = []
    for start in range(0, len(table.observations), 4096):
        chunks.append(agent.exit_probabilities(table.observe(slice(start, start + 4096), alpha)))
    return np.concatenate(chunks)


def _finite(point: dict[str, Any]) -> dict[str, Any]:
    # JSON has no infinity: the thresholds that always or never leave early are spelt by a score out
    # of range.
    if point["threshold"] is not None and not math.isfinite(point["threshold"]):
        point["threshold"] = 2.0 if point["threshold"] > 0 else -1.0
    return point


def table(results: Mapping[str, Any]) -> str:
    """The results as a table of plain text."""
    names = list(dict.fromkeys(["accuracy", *results["metrics"]]))
    head = ["", *names, "exit layer", "saved layers", "layer speed-up", "return"]
    return aligned([head, *([row, *_cells(p, names)] for row, p in rows(results).items())])


def rows(results: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The points of the table, by the name of their row."""
    layers = enumerate(results["fixed_layers"][:-1], start=1)
    return {
        "full depth": results["full_depth"],
        **{f"fixed layer {layer}": point for layer, point in layers},
        **{f"{results['agent']}, {name}": point for name, point in results["policy"].items()},
        "hindsight (knows the label)": results["hindsight"],
    }


def aligned(cells: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first the head, as a table of plain text."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in cells
    ]
    rule = "-" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:]])


def _cells(point: Mapping[str, Any], names: list[str]) -> list[str]:
    values = {"accuracy": point["accuracy"], **point["metrics"]}
    return [
        *(f"{values[name]:.3f}" for name in names),
        f"{point['mean_exit_layer']:.2f}",
        f"{point['saved_layers']:.1%}",
        f"{point['layer_speedup']:.2f}x",
        f"{point['mean_return']:.4f}",
    ]


def plot(results: Mapping[str, Any], path: Path, title: str) -> None:
    """Draws the leading metric against saved layers, as PNG or SVG by the name of the file."""
    from matplotlib.figure import Figure

    metric = results["metrics"][0]

    def xy(points: list[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
        return [100 * p["saved_layers"] for p in points], [p["metrics"][metric] for p in points]

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(*xy(results["curve"]), color="tab:blue", label=f"{results['agent']}, every threshold")
    axes.plot(*xy(results["fixed_layers"]), "s--", color="tab:gray", label="fixed layer")
    chosen = list(results["policy"].values())
    axes.plot(*xy(chosen[1:]), "o", color="tab:blue", label="thresholds chosen on calibration")
    axes.plot(*xy(chosen[:1]), "D", color="tab:orange", label="p > 1/2")
    axes.plot(
        *xy([results["hindsight"]]),
        "*",
        markersize=13,
        color="tab:green",
        zorder=1,
        label="hindsight",
    )
    axes.axhline(
        results["full_depth"]["metrics"][metric], color="black", linewidth=0.8, linestyle=":"
    )
    axes.set(xlabel="saved layers (%)", ylabel=f"{results['split']} {metric}", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower left")
    figure.savefig(path, dpi=120)


def write(results: Mapping[str, Any], path: Path, title: str) -> None:
    """Writes `PATH.json` and `PATH.png`."""
    path.with_suffix(".json").write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    plot(results, path.with_suffix(".png"), title)
