"""A picture of runs side by side."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cee_gym.documents import written_whole
from cee_gym.evaluation.compare import FIXED, Comparison, seed_directories
from cee_gym.evaluation.learning_curves import RETURN, LearningCurve, learning_curves


def smoothed(curve: LearningCurve) -> LearningCurve:
    """The means over a twentieth of the curve, at their middles."""
    width = max(1, len(curve.steps) // 20)
    kernel = np.ones(width) / width
    steps = np.convolve(curve.steps, kernel, "valid").astype(np.int64)
    return LearningCurve(steps, np.convolve(curve.values, kernel, "valid"))


def plot_comparison(comparison: Comparison, runs: Sequence[str | Path], path: Path) -> None:
    """Draws accuracy against saved layers, learning curves, and where rows leave.

    Every seed has a thin line of its own, and its run's colour.

    Args:
        comparison: of these runs.
        runs: their directories, in the same order.
        path: of the picture; its suffix says the format, such as .png or .svg.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.6), layout="constrained")
    speed, learning, leaving = figure.subplots(1, 3)
    grid = np.linspace(0, 1, 201)
    any_curve = False
    for number, run in enumerate(comparison.runs):
        colour = "0.5" if run.name == FIXED else f"C{number}"
        style = "--" if run.name == FIXED else "-"
        for seed, curve in enumerate(run.curves):
            shown = grid[grid <= curve.saved[-1]]
            accuracy = curve.at(shown).mean(axis=1)
            label = run.name if seed == 0 else None
            speed.plot(100 * shown, accuracy, style, color=colour, lw=1.3, label=label)
        for point in run.own:
            speed.plot(100 * point.saved_layers, point.accuracy, "D", color=colour)
        if run.name == FIXED:
            continue
        for directory in seed_directories(Path(runs[number])):
            found = learning_curves(directory).get(RETURN)
            if found is not None and len(found.steps) > 1:
                learning.plot(found.steps, found.values, color=colour, lw=0.5, alpha=0.25)
                learning.plot(*smoothed(found), color=colour, lw=1.6)
                any_curve = True
        exits = np.mean([point.exits for point in run.own], axis=0)
        layers = np.arange(1, len(exits) + 1)
        width = 0.8 / (len(comparison.runs) - 1)
        leaving.bar(layers - 0.4 + (number + 0.5) * width, exits / exits.sum(), width, color=colour)
    speed.set(xlabel="saved layers (%)", ylabel=f"{comparison.split} accuracy")
    speed.set_title("accuracy at every speed; diamonds: own speed", fontsize=10)
    speed.legend(fontsize=8)
    learning.set(xlabel="decisions", ylabel="mean return while learning")
    learning.set_title(
        "learning; thick: running mean" if any_curve else "no learning curves", fontsize=10
    )
    leaving.set(xlabel="exit", ylabel="share of the rows")
    leaving.set_title("where rows leave at the own speed", fontsize=10)
    for axes in (speed, learning, leaving):
        axes.grid(alpha=0.3)
    with written_whole(path) as unfinished:
        figure.savefig(unfinished, dpi=120, format=path.suffix[1:])
