"""Policies at equal shares of saved layers, or at equal accuracy.

Two policies leave at different places, so their accuracies can be compared only where they save the
same share of layers. Between two operating points, each row takes either by a coin, which any
deployment could do too: so every policy has every speed, and none gains by saving less than asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cee_gym.policies.base import ExitPolicy
from cee_gym.policies.speeds import Speeds
from cee_gym.problem import Problem
from cee_gym.traces.trace import Trace

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.integer]


@dataclass(frozen=True, eq=False)
class MatchedCurve:
    """A policy at all of its operating points on one split, the slowest first.

    The first point runs everything to full depth, the last leaves everything at the first exit.

    Attributes:
        saved: the share of saved layers at each point, float64 `[P]`, rising.
        right: whether each row is right there, float64 `[P, N]`, 0 or 1.
    """

    saved: Floats
    right: Floats

    @property
    def accuracy(self) -> Floats:
        """At each point, `[P]`."""
        return self.right.mean(axis=1)

    def at(self, saved_layers: float | Sequence[float] | Floats) -> Floats:
        """How often each row is right where these shares of layers are saved.

        Args:
            saved_layers: `[S]`, each from 0 to the most that can be saved.

        Returns:
            `[S, N]`, each from 0 to 1.
        """
        wanted = np.atleast_1d(np.asarray(saved_layers, dtype=np.float64))
        place = np.searchsorted(self.saved, wanted, side="left").clip(1, len(self.saved) - 1)
        below, above = self.saved[place - 1], self.saved[place]
        share = ((wanted - below) / np.maximum(above - below, 1e-12)).clip(0, 1)[:, None]
        return (1 - share) * self.right[place - 1] + share * self.right[place]

    def saved_at(self, accuracy: float) -> float:
        """The largest share of layers that can be saved at an accuracy; NaN where there is none.

        Two neighbouring points are mixed where the accuracy lies between theirs.
        """
        reached = self.accuracy
        good = np.flatnonzero(reached >= accuracy)
        if not len(good):
            return float("nan")
        last = int(good[-1])
        if last == len(reached) - 1:
            return float(self.saved[-1])
        drop = reached[last] - reached[last + 1]
        share = (reached[last] - accuracy) / drop
        return float(self.saved[last] + share * (self.saved[last + 1] - self.saved[last]))

    @property
    def area(self) -> float:
        """The area under accuracy against saved layers, divided by the range of saved layers."""
        span = self.saved[-1] - self.saved[0]
        return float(np.trapezoid(self.accuracy, self.saved) / span) if span else float("nan")

    def hypervolume(self) -> float:
        """The area of (saved layers, accuracy) that some point is at least as good as.

        The reference point is (0, 0), as both count from 0 to 1 (Zitzler and Thiele 1999).
        """
        best = np.maximum.accumulate(self.accuracy[::-1])[::-1]  # at this speed or a faster one
        widths = np.diff(self.saved, prepend=0.0)
        return float((widths * best).sum())


def matched_curve(
    exits: Sequence[Ints], correct: npt.NDArray[np.bool_], depths: Ints | None = None
) -> MatchedCurve:
    """The curve through some operating points.

    Args:
        exits: for each point the exit of each row, integers `[N]` from 1.
        correct: whether each exit is right about each row, `[N, L]`.
        depths: the layer of each exit, rising, `[L]`; by default every layer has one.
    """
    rows, num_exits = np.arange(len(correct)), correct.shape[1]
    depths = np.arange(1, num_exits + 1) if depths is None else depths
    ends = [np.full(len(rows), exit) for exit in (num_exits, 1)]
    every = [ends[0], *exits, ends[1]]
    saved = np.array([1 - depths[of - 1].mean() / depths[-1] for of in every])
    right = np.array([correct[rows, of - 1] for of in every], dtype=np.float64)
    order = saved.argsort(kind="stable")
    return MatchedCurve(saved[order], right[order])


def policy_curve(policy: ExitPolicy, speeds: Speeds, problem: Problem) -> MatchedCurve:
    """A policy at the operating points that were measured elsewhere.

    Args:
        policy: any of its speeds.
        speeds: of the policy, as measured on the split that speeds are chosen on.
        problem: of the split to report on.
    """
    exits = []
    scores: dict[float | None, npt.NDArray[np.floating]] = {}
    for point in speeds.points:
        held = replace(policy, threshold=point.threshold, alpha=point.alpha)
        if point.alpha not in scores:
            scores[point.alpha] = held.scores_on(problem)
        exits.append(held.exit_layers(scores[point.alpha]))
    return matched_curve(exits, problem.trace.correct, problem.trace.depths)


def fixed_layer_curve(trace: Trace, chosen_on: Trace) -> MatchedCurve:
    """The fixed layers that are worth choosing.

    A layer is left out where, on the split to choose on, a lower one is at least as accurate.

    Args:
        trace: of the split to report on.
        chosen_on: of the split to choose on.
    """
    accuracy = chosen_on.correct.mean(axis=0)
    last = len(accuracy) - 1
    kept = [t for t in range(last) if (accuracy[t] > accuracy[:t]).all()] + [last]
    every = [np.full(len(trace), t + 1) for t in kept]
    return matched_curve(every, trace.correct, trace.depths)
