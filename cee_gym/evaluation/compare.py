"""Runs side by side: at equal saved layers, row by row."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cee_gym.errors import CeeGymError
from cee_gym.evaluation.curve import Point, evaluate_policy
from cee_gym.evaluation.matched import MatchedCurve, fixed_layer_curve, policy_curve
from cee_gym.evaluation.resampling import Interval, paired_difference
from cee_gym.runs import CONFIG, Run
from cee_gym.tables import aligned, paragraph

SAVED_LAYERS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
FIXED = "fixed layer"


@dataclass(frozen=True, eq=False)
class Compared:
    """One run, or the seeds of one, on the split that is reported.

    Attributes:
        name: of the run.
        seeds: how many runs it stands for.
        own: the policies at their own speed, one for each seed.
        curves: at every speed, one for each seed.
        accuracy: of each seed at each of the saved layers, `[seeds, S]`.
        right: how often each row is right there, over the seeds, `[S, N]`.
    """

    name: str
    seeds: int
    own: list[Point]
    curves: list[MatchedCurve]
    accuracy: npt.NDArray[np.float64]
    right: npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Runs at equal saved layers.

    Attributes:
        split: that is reported.
        rows: how many it has.
        saved_layers: `[S]`, at which accuracies are compared.
        runs: in the order given, and last the best fixed layers.
        differences: of each run to the first: over all of the saved layers under `mean`, and at
            each one under its number.
    """

    split: str
    rows: int
    saved_layers: tuple[float, ...]
    runs: list[Compared]
    differences: dict[str, dict[str, Interval]]

    def to_json(self) -> dict[str, Any]:
        """As plain types."""
        return {
            "split": self.split,
            "rows": self.rows,
            "saved_layers": list(self.saved_layers),
            "runs": {
                run.name: {
                    "own": [point.to_json() for point in run.own],
                    "accuracy": run.accuracy.tolist(),
                    "area": [curve.area for curve in run.curves],
                    "hypervolume": [curve.hypervolume() for curve in run.curves],
                }
                for run in self.runs
            },
            "differences": {
                name: {at: found._asdict() for at, found in by.items()}
                for name, by in self.differences.items()
            },
        }

    def __str__(self) -> str:
        first = self.runs[0]
        head = ["", "seeds", "accuracy", "saved", "return", "mean acc.", "over the first, points"]
        lines = [head]
        for run in self.runs:
            cells = ["", "", ""]
            if run.own:
                cells = [
                    f"{np.mean([point.accuracy for point in run.own]):.3f}",
                    f"{np.mean([point.saved_layers for point in run.own]):.1%}",
                    f"{np.mean([point.mean_return for point in run.own]):.4f}",
                ]
            over = ""
            if run is not first:
                found = self.differences[run.name]["mean"]
                over = (
                    f"{100 * found.mean:+.2f} ({100 * found.low:+.2f} to {100 * found.high:+.2f})"
                )
            lines.append([run.name, str(run.seeds), *cells, f"{run.accuracy.mean():.3f}", over])
        low, high = self.saved_layers[0], self.saved_layers[-1]
        note = (
            f"On {self.rows} rows of {self.split}. Accuracy, saved layers and return are at each "
            f"run's own speed. The mean accuracy is that at {low:.0%} to {high:.0%} saved layers; "
            f"its difference to {first.name} is paired by row, with a 95 % interval from a "
            "bootstrap of the rows. Speeds are chosen on calibration."
        )
        return aligned(lines) + "\n\n" + paragraph(note)


def compare(
    runs: Sequence[str | Path],
    *,
    split: str = "dev",
    saved_layers: Sequence[float] = SAVED_LAYERS,
    names: Sequence[str] | None = None,
) -> Comparison:
    """Compares runs of `cee-gym train` on the same rows.

    Args:
        runs: directories of runs; a directory that `--seeds` made stands for all of its seeds.
        split: to report on; speeds are chosen on calibration.
        saved_layers: at which accuracies are compared.
        names: of the runs; by default those of their directories.

    Raises:
        CeeGymError: if there is no run, runs were not recorded on the same rows, or the split is
            the one that speeds are chosen on.
    """
    if not runs:
        raise CeeGymError("there is nothing to compare: give the directories of runs")
    if split == "calibration":
        raise CeeGymError("speeds are chosen on calibration: report on dev or test")
    wanted = np.array(saved_layers, dtype=np.float64)
    if wanted.ndim != 1 or not len(wanted) or not ((wanted >= 0) & (wanted < 1)).all():
        raise CeeGymError(f"saved_layers must be shares from 0 up to 1, got {list(saved_layers)}")
    directories = [Path(run) for run in runs]
    labels = list(names) if names is not None else _names(directories)
    found, rows = [], None
    for name, directory in zip(labels, directories, strict=True):
        opened = [Run.open(one) for one in seed_directories(directory)]
        problems = [run.problem(split) for run in opened]
        for run, problem in zip(opened, problems, strict=True):
            ids = (problem.trace.row_ids.tolist(), problem.trace.header.text)
            rows = rows or ids
            if ids[0] != rows[0]:
                raise CeeGymError(
                    f"{run.directory} was recorded on other rows of {split} than {directories[0]}: "
                    "differences are paired by row, so compare runs of the same data"
                )
        curves = [
            policy_curve(run.policy, run.speeds, problem)
            for run, problem in zip(opened, problems, strict=True)
        ]
        right = np.array([curve.at(wanted) for curve in curves])
        own = [
            evaluate_policy(run.policy.at_some_price(), problem, metrics=run.metrics)
            for run, problem in zip(opened, problems, strict=True)
        ]
        accuracy = right.mean(axis=2)
        found.append(Compared(name, len(opened), own, curves, accuracy, right.mean(axis=0)))
        if directory == directories[0]:
            calibration = [run.problem("calibration").trace for run in opened]
            fixed = [
                fixed_layer_curve(problem.trace, chosen_on)
                for problem, chosen_on in zip(problems, calibration, strict=True)
            ]
            groups = problems[0].trace.sequence
    at = np.array([curve.at(wanted) for curve in fixed])
    found.append(Compared(FIXED, len(fixed), [], fixed, at.mean(axis=2), at.mean(axis=0)))
    first = found[0]
    differences = {
        run.name: {
            "mean": paired_difference(
                run.right.mean(axis=0), first.right.mean(axis=0), groups=groups
            ),
            **{
                f"{share:g}": paired_difference(run.right[s], first.right[s], groups=groups)
                for s, share in enumerate(wanted.tolist())
            },
        }
        for run in found[1:]
    }
    return Comparison(split, first.right.shape[1], tuple(wanted.tolist()), found, differences)


def seed_directories(directory: Path) -> list[Path]:
    """The runs of a directory: itself, or those of its seeds."""
    if (directory / CONFIG).exists():
        return [directory]
    seeds = sorted(
        (path.parent for path in directory.glob(f"seed-*/{CONFIG}")),
        key=lambda path: int(path.name.removeprefix("seed-")),
    )
    if not seeds:
        raise CeeGymError(f"there is no run at {directory} (it has no {CONFIG})")
    return seeds


def _names(directories: Sequence[Path]) -> list[str]:
    """A short name for each: its last parts, as many as tell them apart."""
    parts = [path.absolute().parts for path in directories]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(of[-count:]) for of in parts]
        if len(set(names)) == len(names):
            return names
    raise CeeGymError("a run is named twice: name each once")
