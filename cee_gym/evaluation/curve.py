"""Accuracy against saved layers, for a policy at every threshold.

A policy gives each state a score in [0, 1]; a threshold turns scores into exits. The threshold is
chosen on one split and reported on another: a policy remembers where, and `evaluate_policy` refuses
to report there.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cee_gym.errors import CeeGymError
from cee_gym.intervals import error_of_mean
from cee_gym.metrics import score
from cee_gym.policies.base import ExitPolicy
from cee_gym.policies.speeds import AT_ONCE, NEVER
from cee_gym.problem import Problem
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
        mean_exit_layer: from 1; where only some layers have exits, of the layers they stand at.
        saved_layers: one minus `mean_exit_layer` divided by the depth of the last exit.
        layer_speedup: that depth divided by `mean_exit_layer`; counts layers, not seconds.
        exits: how many left at each exit, `[L]`.
        threshold: a state with a score above it is left; None where exits were not made by scores.
        mean_return: the mean reward, where rewards were given.
        points_lost: accuracy of full depth minus this one, in points.
        points_lost_error: the standard error of that difference, row by row (text by text where
            instances are tokens).
    """

    metrics: dict[str, float]
    accuracy: float
    mean_exit_layer: float
    saved_layers: float
    layer_speedup: float
    exits: list[int]
    threshold: float | None = None
    mean_return: float | None = None
    points_lost: float = 0.0
    points_lost_error: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """As plain types."""
        return asdict(self)


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
        exit_layers: integers `[N]` from 1, the number of the exit.
        metrics: of the task.
        rewards: `[N, L]`, to report the mean return.
        threshold: recorded in the result.
    """
    rows, index = np.arange(len(trace)), exit_layers - 1
    predictions = trace.prediction[rows, index]
    depths = trace.depths
    mean_exit = float(depths[index].mean())
    lost = 100.0 * (trace.correct[:, -1].astype(float) - trace.correct[rows, index])
    return Point(
        metrics=score(metrics, trace.labels, predictions),
        accuracy=float(trace.correct[rows, index].mean()),
        mean_exit_layer=mean_exit,
        saved_layers=1.0 - mean_exit / int(depths[-1]),
        layer_speedup=int(depths[-1]) / mean_exit,
        exits=np.bincount(index, minlength=trace.num_layers).tolist(),
        threshold=threshold,
        mean_return=None if rewards is None else float(rewards[rows, index].mean()),
        points_lost=float(lost.mean()),
        points_lost_error=error_of_mean(lost, trace.sequence),
    )


def evaluate_policy(
    policy: ExitPolicy,
    problem: Problem,
    *,
    metrics: tuple[str, ...] = ("accuracy",),
    alpha: float | None = None,
    scores: Floats | None = None,
) -> Point:
    """What an exit policy comes to, at its speed, on a problem it was not chosen on.

    Args:
        policy: at one speed.
        problem: of the split to report on.
        metrics: of the task.
        alpha: the price of one layer in the mean return; by default the problem's lowest.
        scores: `[N, L]`, of the policy on this problem, where they are known already.

    Raises:
        CeeGymError: if the policy does not fit, or its speed was chosen on this very split.
    """
    check_not_chosen_on(policy.chosen_on, problem.trace)
    if scores is None:
        scores = policy.scores_on(problem)
    return evaluate(
        problem.trace,
        policy.exit_layers(scores),
        metrics=metrics,
        rewards=problem.rewards(problem.alpha[0] if alpha is None else alpha),
        threshold=policy.threshold,
    )


def check_not_chosen_on(chosen_on: str, trace: Trace) -> None:
    """Refuses to report where a speed was chosen.

    Args:
        chosen_on: the fingerprint of the trace it was chosen on; empty where it was given.
        trace: to report on.

    Raises:
        CeeGymError: if that is the same.
    """
    if chosen_on == trace.fingerprint:
        raise CeeGymError(
            f"the speed was chosen on this split ({trace.header.split}): report on another one, "
            "since here it flatters"
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
    thresholds = [AT_ONCE, *grid.tolist(), NEVER]
    points: dict[tuple[int, ...], Point] = {}
    for threshold in thresholds:
        point = evaluate(
            trace, first_exit(scores > np.float32(threshold)), metrics=metrics, threshold=threshold
        )
        points.setdefault((round(point.mean_exit_layer * len(trace)), *point.exits), point)
    return sorted(points.values(), key=lambda point: point.mean_exit_layer)


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
