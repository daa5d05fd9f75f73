"""Headroom: what there is to gain by learning when to leave.

Between the best fixed layer, which anything must beat, and hindsight, which knows the label and
which nothing reaches, stand the best threshold on the recorded confidence, what Longstaff-Schwartz
learns from the observations, and a bound on what any policy of its kind could.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cee_gym.errors import CeeGymError
from cee_gym.intervals import error_of_mean, parts_of
from cee_gym.problem import Problem, shared_problem
from cee_gym.returns import best_threshold, first_exit
from cee_gym.stopping import StatesByRows, regress_backwards
from cee_gym.traces.recordings import open_split, recorded_splits

FOLDS = 5
_SEED = 0  # of the folds
Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]


class Earned(NamedTuple):
    """What a policy comes to on the rows that are reported.

    Attributes:
        mean_return: of the rows.
        error: the standard error of that mean.
        accuracy: a share.
        saved_layers: `1 - mean(exit_layer)/L`.
    """

    mean_return: float
    error: float
    accuracy: float
    saved_layers: float


class Gain(NamedTuple):
    """What one policy earns over another on the same rows.

    Attributes:
        mean: of the differences.
        error: the standard error of that mean: paired, as what is hard for one is for the other.
    """

    mean: float
    error: float


@dataclass(frozen=True)
class Headroom:
    """What policies earn; see `headroom`.

    Attributes:
        split: that is reported.
        rows: how many it has.
        alpha: the price of one layer.
        chosen_on: the split on which layer and threshold were chosen and Longstaff-Schwartz
            learned; the reported one itself where that was cross-fitted.
        full_depth: of the last layer.
        fixed_layer: of the layer that is best where it was chosen.
        threshold: of the threshold on the confidence that is best where it was chosen.
        learned: of Longstaff-Schwartz.
        bound: of Longstaff-Schwartz that has seen the reported rows.
        hindsight: of the best layer of each row, which takes its label to know.
        over_fixed_layer: what is learned over the fixed layer.
        over_threshold: what is learned over the threshold.
    """

    split: str
    rows: int
    alpha: float
    chosen_on: str
    full_depth: Earned
    fixed_layer: Earned
    threshold: Earned
    learned: Earned
    bound: Earned
    hindsight: Earned
    over_fixed_layer: Gain
    over_threshold: Gain

    def __str__(self) -> str:
        how = "cross-fitted" if self.chosen_on == self.split else f"chosen on {self.chosen_on}"
        lines = [
            f"{self.split}: {self.rows} rows, alpha {self.alpha:g}, {how}",
            f"{'':24}{'return':>9}{'error':>9}{'accuracy':>10}{'saved layers':>14}",
        ]
        for name, earned in vars(self).items():
            if isinstance(earned, Earned):
                lines.append(
                    f"{name.replace('_', ' '):24}{earned.mean_return:9.4f}{earned.error:9.4f}"
                    f"{earned.accuracy:10.3f}{earned.saved_layers:14.1%}"
                )
        for name, gain in (
            ("learned - fixed layer", self.over_fixed_layer),
            ("learned - threshold", self.over_threshold),
        ):
            lines.append(f"{name:24}{gain.mean:9.4f}{gain.error:9.4f}")
        return "\n".join(lines)


def headroom(
    reported_on: Problem, chosen_on: Problem | None = None, *, alpha: float | None = None
) -> Headroom:
    """What fixed layers, a threshold, a learned policy and hindsight earn.

    Nothing is chosen on the rows it is reported on, but for the `bound`: Longstaff-Schwartz fitted
    to the reported rows too, each of which helps to judge itself. What is learned from other rows
    earns too little, what has seen the rows too much: the best rule on the observations lies
    between `learned` and `bound`, and more rows bring the two together (Mak, Morton and Wood 1999).
    The bound is an estimate, not a proof: it has an error, rules that are not linear in the
    observations can do better, and where the rows are too few to show any difference between
    instances it is no more than a fixed layer.

    Args:
        reported_on: of N rows.
        chosen_on: the problem of other rows, to choose and learn on; without one, five folds of
            the reported rows take turns.
        alpha: the price of one layer; by default that of the problem.

    Raises:
        CeeGymError: if the problem has a range of prices and none is given, there are fewer than
            two rows to learn from, or the problems are not of the same observations.
    """
    low, high = reported_on.alpha
    if alpha is None and low != high:
        raise CeeGymError(
            f"headroom is that of one price, and alpha is drawn from {low:g} to {high:g}: give "
            f"alpha, such as alpha={high:g}"
        )
    alpha = low if alpha is None else alpha
    problems = [reported_on] if chosen_on is None else [chosen_on, reported_on]
    if len(problems[0]) < 2:
        raise CeeGymError(
            f"headroom is measured on other rows than it is learned from, and split "
            f"{problems[0].trace.header.split} has {len(problems[0])}: record more"
        )
    if problems[0].layout != reported_on.layout:
        raise CeeGymError("headroom: the two problems show different observations")
    rewards = np.concatenate([problem.rewards(alpha) for problem in problems])
    states = _states(problems, alpha)
    confidence = np.concatenate(
        [problem.trace.confidence for problem in problems], dtype=np.float64
    )
    own = slice(len(rewards) - len(reported_on), None)

    fixed = np.empty(len(rewards), dtype=np.int64)
    threshold = fixed.copy()
    sequence = reported_on.trace.sequence
    before = None if chosen_on is None else len(chosen_on)
    for others, part in _parts(len(reported_on), before, sequence):
        fixed[part] = rewards[others].mean(axis=0).argmax() + 1
        best = best_threshold(confidence[others], rewards[others])
        threshold[part] = first_exit(confidence[part].astype(np.float64) > best)
    if chosen_on is None:
        learned = regress_backwards(states, rewards, FOLDS, _SEED, groups=sequence).exits
    else:
        theirs, paid = _states([chosen_on], alpha), chosen_on.rewards(alpha)
        groups = chosen_on.trace.sequence
        fitted = regress_backwards(theirs, paid, FOLDS, _SEED, groups=groups)
        learned = fitted.exits_of(states)
    bound = regress_backwards(states, rewards, 1, _SEED).exits

    depths = reported_on.trace.depths

    def gain(a: Ints, b: Ints) -> Gain:
        return Gain(*_mean(_at(rewards[own], a[own]) - _at(rewards[own], b[own]), sequence))

    def earned(exits: Ints) -> Earned:
        return Earned(
            *_mean(_at(rewards[own], exits[own]), sequence),
            float(_at(reported_on.correct, exits[own]).mean()),
            1 - float(depths[exits[own] - 1].mean()) / int(depths[-1]),
        )

    return Headroom(
        split=reported_on.trace.header.split,
        rows=len(reported_on),
        alpha=float(alpha),
        chosen_on=problems[0].trace.header.split,
        full_depth=earned(np.full(len(rewards), reported_on.num_layers)),
        fixed_layer=earned(fixed),
        threshold=earned(threshold),
        learned=earned(learned),
        bound=earned(bound),
        hindsight=earned(rewards.argmax(axis=1) + 1),
        over_fixed_layer=gain(learned, fixed),
        over_threshold=gain(learned, threshold),
    )


def headroom_of(problem: Problem, alpha: float | None = None) -> Headroom:
    """The headroom on a split of a recording, learned on its train split.

    On train itself, where there is no train split, and where each row was given a weight of its
    own, it is cross-fitted.

    Args:
        problem: of the split.
        alpha: see `headroom`.

    Raises:
        CeeGymError: see `headroom`.
    """
    trace, reward = problem.trace, problem.reward
    recording = trace.path.parent
    weighted = isinstance(reward.hardness, np.ndarray)
    if trace.header.split == "train" or weighted or "train" not in recorded_splits(recording):
        return headroom(problem, alpha=alpha)
    train = shared_problem(
        open_split(recording, "train"), reward, tuple(problem.layout), problem.alpha
    )
    return headroom(problem, train, alpha=alpha)


def _states(problems: Sequence[Problem], alpha: float) -> StatesByRows:
    """What is observed of the rows of one problem after another."""
    first = np.cumsum([0, *map(len, problems)])

    def read(rows: slice, layer: int | None) -> Floats:
        number = None if layer is None else layer + 1
        found = []
        for before, problem in zip(first, problems, strict=False):
            own = slice(max(0, rows.start - before), max(0, rows.stop - before))
            found.append(problem.observe(own, alpha, number))
        return np.concatenate(found) if len(found) > 1 else found[0]

    width = max(where.stop for where in problems[0].layout.values())
    return StatesByRows((int(first[-1]), problems[0].num_layers, width), read)


def _parts(rows: int, others: int | None, sequence: Ints | None) -> Iterator[tuple[Any, Any]]:
    """Rows to choose on, and rows to report on; `others` stand before them, where there are any."""
    if others is not None:
        yield slice(0, others), slice(others, None)
        return
    for part in parts_of(rows, FOLDS, _SEED, sequence):
        yield np.delete(np.arange(rows), part), part


def _at(table: npt.NDArray[Any], exits: Ints) -> npt.NDArray[np.float64]:
    return table[np.arange(len(exits)), exits - 1].astype(np.float64)


def _mean(values: npt.NDArray[np.float64], sequence: Ints | None) -> tuple[float, float]:
    """The mean, and its standard error, where rows are drawn, or the texts they are tokens of."""
    if sequence is None:
        return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)
    return float(values.mean()), error_of_mean(values, sequence)
