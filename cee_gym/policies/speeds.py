"""The one way to choose a speed, for every policy alike.

A policy has many operating points: one for every threshold and, if it was learned for a range of
prices, for every price. `measure_speeds` measures them on a split, usually calibration; a `Speed`
says what is wanted: a threshold, a price, a share of saved layers, points that may be lost, or the
name of a point that was kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from cee_gym.errors import CeeGymError, check_number, did_you_mean
from cee_gym.policies.base import ExitPolicy
from cee_gym.policies.score import Floats
from cee_gym.problem import Problem
from cee_gym.returns import first_exit

_PRICES = 33
_THRESHOLDS = 199
NEVER, AT_ONCE = 1.0, -1.0  # scores are in [0, 1]: thresholds that no score passes, and that all do


class OperatingPoint(NamedTuple):
    """A threshold and a price, and what they come to on the split they were measured on.

    Attributes:
        threshold: on the score.
        alpha: the price the policy is held at; None for one that was learned for one price.
        saved_layers: `1 - mean(exit_layer)/L`.
        points_lost: hundredths of accuracy, against the last exit.
    """

    threshold: float
    alpha: float | None
    saved_layers: float
    points_lost: float


@dataclass(frozen=True)
class Speeds:
    """The operating points of a policy, the slowest first.

    Attributes:
        points: what can be chosen.
        chosen_on: the fingerprint of the trace they were measured on.
        split: of that trace.
    """

    points: tuple[OperatingPoint, ...]
    chosen_on: str
    split: str

    def to_json(self) -> dict[str, Any]:
        """As plain types."""
        return {
            "split": self.split,
            "trace": self.chosen_on,
            "points": [list(point) for point in self.points],
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Speeds":
        """What `to_json` gave."""
        points = tuple(
            OperatingPoint(
                float(threshold),
                None if alpha is None else float(alpha),
                float(saved_layers),
                float(points_lost),
            )
            for threshold, alpha, saved_layers, points_lost in found["points"]
        )
        return cls(points, str(found["trace"]), str(found["split"]))


def measure_speeds(policy: ExitPolicy, problem: Problem) -> Speeds:
    """Measures the operating points of a policy.

    Thresholds are about quantiles of its scores. A policy that was learned for a range of prices is
    measured at prices all over the range and 1/2; above 1/2 at the lowest, where it may leave early
    all the same, and below 1/2 at the highest.

    Args:
        policy: its own threshold and price do not matter.
        problem: of the split to measure on, with the observations the policy reads.

    Raises:
        CeeGymError: if the policy does not fit the problem.
    """
    correct = problem.correct
    full = float(correct[:, -1].mean())
    rows = np.arange(len(problem))
    depths = problem.trace.depths

    def point(scores: Floats, threshold: float, alpha: float | None) -> OperatingPoint:
        exits = first_exit(scores > np.float32(threshold))
        return OperatingPoint(
            threshold,
            alpha,
            1 - float(depths[exits - 1].mean()) / int(depths[-1]),
            100 * (full - float(correct[rows, exits - 1].mean())),
        )

    points = []
    if policy.has_every_price:
        low, high = policy.alpha_range
        for alpha in np.linspace(low, high, _PRICES).tolist():
            scores = replace(policy, alpha=alpha).scores_on(problem)
            thresholds = [0.5]
            if alpha == low:
                thresholds = [t for t in _thresholds(scores) if t > 0.5] + [0.5]
            elif alpha == high:
                thresholds = [0.5] + [t for t in _thresholds(scores) if t < 0.5]
            points += [point(scores, threshold, alpha) for threshold in thresholds]
    else:
        scores = policy.scores_on(problem)
        points = [point(scores, threshold, None) for threshold in _thresholds(scores)]
    trace = problem.trace
    points.sort(key=lambda one: one.saved_layers)
    return Speeds(tuple(points), trace.fingerprint, trace.header.split)


def _thresholds(scores: Floats) -> list[float]:
    """Thresholds worth trying, the highest first.

    They are halfway between scores: on one, how it is rounded would decide who leaves.
    """
    free = scores[:, :-1] if scores.shape[1] > 1 else scores
    grid = np.unique(np.quantile(free, np.linspace(0, 1, _THRESHOLDS), method="lower"))
    ordered = np.unique(free).astype(np.float64)
    above = ordered[np.searchsorted(ordered, grid[:-1], side="right")]
    return [NEVER, *((grid[:-1] + above) / 2)[::-1].tolist(), AT_ONCE]


@dataclass(frozen=True)
class Speed:
    """What speed is wanted: at most one of these.

    Attributes:
        at: the name of a point that `cee-gym evaluate` kept.
        threshold: on the score of the policy, 0 to 1.
        alpha: the price of one layer, for a policy that was learned for a range of prices.
        saved_layers: at least this share of the layers saved, `1 - mean(exit_layer)/L`.
        points_lost: at most so many hundredths of accuracy lost against the last exit.

    Raises:
        CeeGymError: if more than one is given, or one is out of range.
    """

    at: str | None = None
    threshold: float | None = None
    alpha: float | None = None
    saved_layers: float | None = None
    points_lost: float | None = None

    def __post_init__(self) -> None:
        given = self.given
        if len(given) > 1:
            raise CeeGymError(f"{' and '.join(given)} each choose a speed: give only one of them")
        if self.threshold is not None:
            check_number("threshold", self.threshold, 0, 1)
        if self.saved_layers is not None:
            check_number("saved_layers", self.saved_layers, 0, 1)
        if self.points_lost is not None:
            check_number("points_lost", self.points_lost, -100, 100)

    @property
    def given(self) -> dict[str, Any]:
        """What is wanted, by name; empty for the policy's own speed."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @property
    def needs_speeds(self) -> bool:
        """Whether it can only be chosen among measured operating points."""
        return self.saved_layers is not None or self.points_lost is not None

    def choose(
        self,
        policy: ExitPolicy,
        speeds: Speeds | None = None,
        kept: Mapping[str, ExitPolicy] | None = None,
    ) -> ExitPolicy:
        """The policy at this speed.

        Args:
            policy: at its own speed.
            speeds: its measured operating points, for a share of layers or points lost.
            kept: the policy at the points that were kept, by name.

        Raises:
            CeeGymError: if the speed is not available; says which are.
        """
        if self.at is not None:
            known = dict(kept or {})
            if not known:
                raise CeeGymError(
                    f"there is no point {self.at!r}: none was kept with this policy (cee-gym "
                    "evaluate keeps them with a run)"
                )
            if self.at not in known:
                raise CeeGymError(f"no point {self.at!r}: {did_you_mean(self.at, list(known))}")
            return known[self.at]
        if self.alpha is not None or self.threshold is not None:
            alpha = self.alpha
            if alpha is None and policy.has_every_price and policy.alpha is None:
                alpha = sum(policy.alpha_range) / 2  # where evaluation holds it too
            return policy.at(alpha=alpha, threshold=self.threshold)
        if not self.needs_speeds:
            return policy
        if speeds is None:
            raise CeeGymError(
                "nobody has measured how many layers this policy saves at which threshold: give a "
                "threshold instead, or load the run it comes from"
            )
        found = self._chosen(policy.name, speeds.points)
        return replace(
            policy, threshold=found.threshold, alpha=found.alpha, chosen_on=speeds.chosen_on
        )

    def _chosen(self, name: str, points: Sequence[OperatingPoint]) -> OperatingPoint:
        if self.saved_layers is not None:
            for point in points:
                if point.saved_layers >= self.saved_layers - 1e-12:
                    return point
            raise CeeGymError(
                f"this {name} policy saves {points[-1].saved_layers:.1%} of the layers at most, "
                f"not {self.saved_layers:.1%}: ask for less"
            )
        assert self.points_lost is not None
        good = [point for point in points if point.points_lost <= self.points_lost + 1e-9]
        if not good:
            least = min(point.points_lost for point in points)
            raise CeeGymError(
                f"this {name} policy loses {least:.2f} points at least, not {self.points_lost:g}: "
                "allow more"
            )
        return good[-1]
