"""What is measured of a policy: one row of the table for each of its operating points."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from cee_gym.evaluation.curve import Point, evaluate, fixed_layers, hindsight
from cee_gym.evaluation.flops import Flops
from cee_gym.evaluation.matched import MatchedCurve, policy_curve
from cee_gym.headroom import headroom
from cee_gym.policies.base import ExitPolicy
from cee_gym.policies.speeds import measure_speeds
from cee_gym.problem import Problem
from cee_gym.traces.trace import Trace

Row = dict[str, Any]


def overthinking(trace: Trace) -> Row:
    """How often depth hurts, and how often it helps.

    `overthinking` is the share of rows about which some earlier exit is right and the last one
    wrong (Kaya et al. 2019), `underthinking` that of rows about which some earlier exit is wrong
    and the last one right.
    """
    earlier, last = trace.correct[:, :-1], trace.correct[:, -1]
    return {
        "overthinking": float((earlier.any(axis=1) & ~last).mean()),
        "underthinking": float((~earlier.all(axis=1) & last).mean()),
    }


def of_point(point: Point, trace: Trace, exits: npt.NDArray[np.integer]) -> Row:
    """The measures of one operating point.

    `helped` is the share of rows that leave right where the last exit is wrong, `harmed` that of
    rows that leave wrong where the last exit is right.
    """
    right = trace.correct[np.arange(len(trace)), exits - 1]
    return {
        **{f"metric_{name}": value for name, value in point.metrics.items()},
        "accuracy": point.accuracy,
        "mean_exit_layer": point.mean_exit_layer,
        "saved_layers": point.saved_layers,
        "layer_speedup": point.layer_speedup,
        "mean_return": point.mean_return,
        "points_lost": point.points_lost,
        "points_lost_error": point.points_lost_error,
        "leaving": [count / len(trace) for count in point.exits],
        "helped": float((right & ~trace.correct[:, -1]).mean()),
        "harmed": float((~right & trace.correct[:, -1]).mean()),
    }


def of_curve(curve: MatchedCurve, trace: Trace) -> Row:
    """The measures of a policy at all of its speeds.

    `saved_at_0` and `saved_at_1` are the largest shares of layers that can be saved at the accuracy
    of full depth, and at one point below it.
    """
    full = float(trace.correct[:, -1].mean())
    return {
        "area": curve.area,
        "hypervolume": curve.hypervolume(),
        "saved_at_0": curve.saved_at(full),
        "saved_at_1": curve.saved_at(full - 0.01),
        **overthinking(trace),
    }


def of_policy(
    policy: ExitPolicy,
    chosen_on: Problem,
    reported: Problem,
    *,
    metrics: tuple[str, ...],
    saved_layers: tuple[float, ...],
    flops: Flops | None,
    clocked: tuple[float, float] | None,
) -> Iterator[Row]:
    """A policy at its own speed, and at equal shares of saved layers.

    The points `saved-S` mix two neighbouring operating points, see `cee_gym.evaluation.matched`.

    Args:
        policy: that was learned.
        chosen_on: of the split that speeds are chosen on.
        reported: of the split to report on.
        metrics: of the task.
        saved_layers: at which accuracies are compared.
        flops: of the model, where its weights are at hand.
        clocked: seconds a text at full depth and of the policy, where they were measured.
    """
    policy = policy.at_some_price()
    alpha = policy.price_on(reported)
    trace = reported.trace
    curve = policy_curve(policy, measure_speeds(policy, chosen_on), reported)
    whole = of_curve(curve, trace)
    rewards = reported.rewards(alpha)
    exits = policy.exit_layers(policy.scores_on(reported, alpha))
    point = evaluate(trace, exits, metrics=metrics, rewards=rewards, threshold=policy.threshold)
    row = {"point": "own", "alpha": alpha, **of_point(point, trace, exits), **whole}
    if flops is not None:
        spent = flops.up_to(policy)[exits - 1].mean()
        row |= {"flops": float(spent), "flops_speedup": flops.full_depth / float(spent)}
    if clocked is not None:
        full, early = clocked
        row |= {"milliseconds": 1000 * early, "wall_clock_speedup": full / early}
    yield row
    for share, right in zip(saved_layers, curve.at(saved_layers), strict=True):
        if share <= curve.saved[-1]:
            yield {
                "point": f"saved-{share:g}",
                "alpha": alpha,
                "accuracy": float(right.mean()),
                "saved_layers": share,
                "mean_exit_layer": (1 - share) * int(trace.depths[-1]),
                "layer_speedup": 1 / (1 - share),
                **whole,
            }


def of_baselines(train: Problem, reported: Problem, *, metrics: tuple[str, ...]) -> Iterator[Row]:
    """Full depth, every fixed exit, the attainable bound, hindsight.

    Args:
        train: of the split that policies learn on.
        reported: of the split to report on.
        metrics: of the task.
    """
    trace, alpha = reported.trace, sum(reported.alpha) / 2
    rewards = reported.rewards(alpha)
    for number, point in enumerate(fixed_layers(trace, metrics=metrics, rewards=rewards), start=1):
        exits = np.full(len(trace), number)
        name = "full depth" if number == trace.num_layers else f"fixed exit {number}"
        row = {"agent": name, "point": "own", "alpha": alpha, **of_point(point, trace, exits)}
        yield row | (overthinking(trace) if number == trace.num_layers else {})
    bound = headroom(reported, train, alpha=alpha).bound
    yield {
        "agent": "attainable bound",
        "point": "own",
        "alpha": alpha,
        "accuracy": bound.accuracy,
        "saved_layers": bound.saved_layers,
        "mean_return": bound.mean_return,
    }
    best = hindsight(trace, rewards, metrics=metrics)
    exits = rewards.argmax(axis=1) + 1
    yield {"agent": "hindsight", "point": "own", "alpha": alpha, **of_point(best, trace, exits)}
