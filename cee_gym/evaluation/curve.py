"""Accuracy against saved layers, for a policy at every threshold.

An agent gives each state a score in [0, 1]; a threshold turns scores into exits. The threshold is
chosen on one split and reported on another: `choose_threshold` remembers where, and `evaluate`
refuses to report there.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cee_gym.errors import CeeGymError
from cee_gym.metrics import score
from cee_gym.returns import first_exit
from cee_gym.traces.trace import Trace

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.integer]


@dataclass(frozen=True)
class Point:
    """One operating point on one split.

    Attributes:
        metrics: the task's metrics, the leading one first.
        accuracy: share of right predictions.
        mean_exit_layer: from 1.
        saved_layers: `1 - mean_exit_layer / L`.
        layer_speedup: `L / mean_exit_layer`; counts layers, not seconds.
        exits: how many left at each layer, `[L]`.
        threshold: a state with a score above it is left; None where exits were not made by scores.
        mean_return: the mean reward, where rewards were given.
    """

    metrics: dict[str, float]
    accuracy: float
    mean_exit_layer: float
    saved_layers: float
    layer_speedup: float
    exits: list[int]
    threshold: float | None = None
    mean_return: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain types."""
        return asdict(self)


@dataclass(frozen=True)
class Threshold:
    """A threshold, and the fingerprint of the trace it was chosen on."""

    value: float
    chosen_on: str


def evaluate(
    trace: Trace,
    exit_layers: Ints,
    *,
    metrics: tuple[str, ...] = ("accuracy",),
    rewards: Floats | None = None,
    threshold: float | None = None,
) -> Point:
    """What leaving each instance of a trace at a given layer comes to.

    Args:
        trace: of the split to report on.
        exit_layers: integers `[N]` from 1.
        metrics: of the task.
        rewards: `[N, L]`, to report the mean return.
        threshold: recorded in the result.
    """
    rows, index = np.arange(len(trace)), exit_layers - 1
    predictions = trace.prediction[rows, index]
    mean_exit = float(exit_layers.mean())
    return Point(
        metrics=score(metrics, trace.labels, predictions),
        accuracy=float((predictions == trace.labels).mean()),
        mean_exit_layer=mean_exit,
        saved_layers=1.0 - mean_exit / trace.num_layers,
        layer_speedup=trace.num_layers / mean_exit,
        exits=np.bincount(index, minlength=trace.num_layers).tolist(),
        threshold=threshold,
        mean_return=None if rewards is None else float(rewards[rows, index].mean()),
    )


def evaluate_at(
    trace: Trace,
    scores: Floats,
    threshold: Threshold,
    *,
    metrics: tuple[str, ...] = ("accuracy",),
    rewards: Floats | None = None,
) -> Point:
    """The operating point of an agent's scores `[N, L]` at a threshold chosen on another split.

    Raises:
        CeeGymError: if it was chosen on this very split.
    """
    if threshold.chosen_on == trace.fingerprint:
        raise CeeGymError(
            f"the threshold {threshold.value:.4f} was chosen on this split "
            f"({trace.header['split']}): choose it on another one, since here it flatters"
        )
    return evaluate(
        trace,
        first_exit(scores > threshold.value),
        metrics=metrics,
        rewards=rewards,
        threshold=threshold.value,
    )


def accuracy_speed_curve(
    trace: Trace,
    scores: Floats,
    *,
    metrics: tuple[str, ...] = ("accuracy",),
    most_points: int = 200,
) -> list[Point]:
    """The operating points of an agent's scores `[N, L]` at all thresholds, fastest first.

    To look at, not to pick the best from: a point picked here flatters. At most `most_points`
    thresholds, at quantiles of the scores, and those that never leave early or always leave at
    once.
    """
    free = scores[:, :-1]
    grid = np.unique(np.quantile(free, np.linspace(0, 1, most_points - 1), method="lower"))
    thresholds = [-np.inf, *grid]
    points: dict[tuple[int, ...], Point] = {}
    for threshold in thresholds:
        point = evaluate(
            trace, first_exit(scores > threshold), metrics=metrics, threshold=float(threshold)
        )
        points.setdefault((round(point.mean_exit_layer * len(trace)), *point.exits), point)
    return sorted(points.values(), key=lambda point: point.mean_exit_layer)


def choose_threshold(trace: Trace, scores: Floats, *, most_points_lost: float) -> Threshold:
    """The threshold that saves most layers at a bounded loss of accuracy against the last layer.

    Args:
        trace: of the calibration split.
        scores: `[N, L]`, the agent's on that split.
        most_points_lost: in points, hundredths of accuracy; negative to ask for a gain.
    """
    full = float(trace.correct[:, -1].mean())
    good = [
        point
        for point in accuracy_speed_curve(trace, scores)
        if point.accuracy >= full - most_points_lost / 100 - 1e-12
    ]
    # Never leaving early is always good enough, unless a gain is asked for.
    best = max(good, key=lambda point: point.saved_layers, default=None)
    value = np.inf if best is None or best.threshold is None else best.threshold
    return Threshold(value=float(value), chosen_on=trace.fingerprint)


def fixed_layers(
    trace: Trace, *, metrics: tuple[str, ...] = ("accuracy",), rewards: Floats | None = None
) -> list[Point]:
    """Leaving every instance at layer 1, 2, ..., L; the last is full depth."""
    return [
        evaluate(trace, np.full(len(trace), layer), metrics=metrics, rewards=rewards)
        for layer in range(1, trace.num_layers + 1)
    ]


def hindsight(trace: Trace, rewards: Floats, *, metrics: tuple[str, ...] = ("accuracy",)) -> Point:
    """Leaving each instance where its reward is highest.

    It takes the label to know where: a bound, not a policy.
    """
    return evaluate(trace, rewards.argmax(axis=1) + 1, metrics=metrics, rewards=rewards)
