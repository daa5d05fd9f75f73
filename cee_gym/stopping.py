"""Optimal stopping by regression, in numpy: backwards over the layers, or once from a threshold.

Backwards (Longstaff and Schwartz 2001): with the policy from layer t+1 on known, the reward it
realises for each instance is known too, so at layer t

    y_i = R_it - R_i,tau(i)      tau(i): where the policy from t+1 on leaves instance i

is regressed on the state, and the policy leaves where the prediction is positive. The label is
unknown when the policy decides, so the reward of leaving now has to be predicted as well, and the
difference is: L-1 ridge regressions, no step size, no sampling.

From a threshold: tau is where the best threshold on the confidence would next leave, and one ridge
regression serves all layers. The policy that leaves where the prediction is positive is one step
of policy iteration (Howard 1960; rollout, Bertsekas 2013) from that threshold: with the exact
advantage it is at least as good, and a regression over all layers at once has few weights to get
wrong.

A ridge regression follows from sums over the rows, so states are read by rows, some at a time, and
may be more than fit into memory.
"""

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from cee_gym.intervals import parts_of
from cee_gym.recorded_observations import MOST_BYTES_IN_MEMORY
from cee_gym.returns import best_threshold, first_exit

Floats = npt.NDArray[np.floating]
PENALTIES = np.logspace(-1, 5, 13)
_BYTES_AT_A_TIME = 32 * 2**20


class StatesByRows:
    """States that are read when they are asked for, as an array `[N, L, D]` is indexed.

    `states[rows]` is `[B, L, D]` and `states[rows, layer]` is `[B, D]`; rows are a slice, and the
    layer counts from 0.

    Args:
        shape: N, L and D.
        read: gives the states of a slice of rows: of all layers, or of the one that is given.
    """

    def __init__(
        self, shape: tuple[int, int, int], read: Callable[[slice, int | None], Floats]
    ) -> None:
        self.shape = shape
        self._read = read

    def __getitem__(self, key: slice | tuple[slice, int]) -> Floats:
        rows, layer = key if isinstance(key, tuple) else (key, None)
        return self._read(rows, layer)


States = Floats | StatesByRows


class Regression(NamedTuple):
    """A linear function `x @ weight + bias`.

    Attributes:
        weight: float64 `[D]`.
        bias: the value at 0.
        penalty: of the squares of the weights.
    """

    weight: Floats
    bias: float
    penalty: float


class Stopping(NamedTuple):
    """A rule for each layer: to leave where `state @ weight + bias` is positive.

    Attributes:
        weight: float64 `[L, D]`.
        bias: float64 `[L]`; at the last layer, which is left anyway, 1.
        exits: where the instances it was learned from leave, int64 `[N]` from 1, each by the
            regressions fitted to the other folds.
    """

    weight: npt.NDArray[np.float64]
    bias: npt.NDArray[np.float64]
    exits: npt.NDArray[np.int64]

    def exits_of(self, states: States) -> npt.NDArray[np.int64]:
        """Where other instances leave, int64 `[N]` from 1, given their states `[N, L, D]`."""
        num_instances, num_layers, width = states.shape
        advantage = [
            np.einsum("nld,ld->nl", states[rows], self.weight) + self.bias
            for rows in _slices(num_instances, num_layers * width)
        ]
        return first_exit(np.concatenate(advantage) > 0)


def regress_backwards(
    states: States,
    rewards: Floats,
    folds: int,
    seed: int,
    progress_bar: bool = False,
    groups: npt.NDArray[np.integer] | None = None,
) -> Stopping:
    """Learns where to leave.

    Args:
        states: of N instances, `[N, L, D]`; one layer at a time is held in memory where it takes up
            to 1 GB as float32, and is read three times where it takes more.
        rewards: of leaving at each layer, `[N, L]`.
        folds: in learning no instance judges itself: what decides where it leaves is fitted to the
            other folds. With 1 it does, and gains what can only be known afterwards.
        seed: of the folds.
        progress_bar: show progress.
        groups: integers `[N]`; instances of one group are in one fold.

    Returns:
        Weights and biases, fitted to all, of the advantage of leaving in units of its deviation.
    """
    num_instances, num_layers, width = states.shape
    parts = parts_of(num_instances, folds, seed, groups) if folds > 1 else [np.arange(0)]
    fold = np.zeros(num_instances, dtype=np.int64)
    for number, part in enumerate(parts):
        fold[part] = number
    layers = range(num_layers - 2, -1, -1)
    if progress_bar:
        from cee_gym.progress import show_progress

        layers = show_progress(layers, desc="regress")
    weight, bias = np.zeros((num_layers, width)), np.zeros(num_layers)
    bias[-1] = 1.0
    exits = np.full(num_instances, num_layers)
    slices = _slices(num_instances, width)
    for layer in layers:
        read = _reader(states, layer)
        y = rewards[:, layer] - rewards[np.arange(num_instances), exits - 1]
        origin = read(slices[0]).mean(axis=0, dtype=np.float64)
        of_fold = [Sums.none(width) for _ in parts]
        for rows in slices:
            x = read(rows) - origin
            for number in range(len(parts)):
                own = fold[rows] == number
                of_fold[number] += Sums.of(x[own], y[rows][own])
        deviation = _total(of_fold).deviation() + 1e-6
        of_fold = [sums.scaled(deviation) for sums in of_fold]
        everything = _total(of_fold)
        unit = y.std() + 1e-12
        whole = ridge_by_leaving_one_out(
            everything, (((read(rows) - origin) / deviation, y[rows]) for rows in slices)
        )
        weight[layer] = whole.weight / deviation / unit
        bias[layer] = whole.bias / unit - weight[layer] @ origin
        fitted = [whole]
        if folds > 1:
            fitted = [ridge(everything - own, whole.penalty) for own in of_fold]
        weights = np.stack([of.weight for of in fitted], axis=1)
        biases = np.array([of.bias for of in fitted])
        for rows in slices:
            predicted = ((read(rows) - origin) / deviation) @ weights + biases
            own = predicted[np.arange(len(predicted)), fold[rows]]
            exits[rows] = np.where(own > 0, layer + 1, exits[rows])
    return Stopping(weight, bias, exits)


def improve_on_threshold(
    states: Floats | Sequence[States], scores: Floats, rewards: Floats
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Learns where leaving is better than what the best threshold on a score does from there on.

    All layers share the weights; each has its own bias.

    Args:
        states: of N instances at P prices, `[P, N, L, D]`, or P times `[N, L, D]`; they are read
            twice.
        scores: what the threshold is on, `[N, L]`.
        rewards: of leaving at each layer, `[P, N, L]`; each price has its own threshold.

    Returns:
        Weights float64 `[L, D]` and biases `[L]` of the advantage of leaving in units of its
        deviation; at the last layer, which is left anyway, 0 and 1.
    """
    num_prices, (num_instances, num_layers, width) = len(states), states[0].shape
    scores = scores.astype(np.float64)  # as thresholds are
    advantage = np.empty((num_prices, num_instances, num_layers - 1))
    for price, of in enumerate(rewards):
        leave = scores > best_threshold(scores, of)
        following = np.full(num_instances, num_layers - 1)
        for layer in range(num_layers - 2, -1, -1):
            advantage[price, :, layer] = of[:, layer] - of[np.arange(num_instances), following]
            following = np.where(leave[:, layer], layer, following)
    slices = _slices(num_instances, num_prices * num_layers * (width + num_layers))
    origin = states[0][slices[0]].mean(axis=(0, 1), dtype=np.float64)
    deviation = np.ones(width)  # until it is known

    def read(rows: slice) -> tuple[Floats, Floats]:
        """The states of all prices and layers but the last, one-hot layers, and the advantage."""
        y = advantage[:, rows]
        x = np.zeros((*y.shape, width + num_layers - 2))
        for price, of in enumerate(states):
            x[price, ..., :width] = (of[rows][:, :-1] - origin) / deviation
        x[..., width:] = np.eye(num_layers - 1)[:, 1:]
        return x.reshape(y.size, -1), y.ravel()

    sums = _total(Sums.of(*read(rows)) for rows in slices)
    deviation = sums.deviation()[:width] + 1e-6
    sums = sums.scaled(np.concatenate([deviation, np.ones(num_layers - 2)]))
    fitted = ridge_by_leaving_one_out(sums, map(read, slices))
    unit = advantage.std() + 1e-12
    weight, bias = np.zeros((num_layers, width)), np.ones(num_layers)
    weight[:-1] = fitted.weight[:width] / deviation / unit
    bias[:-1] = fitted.bias / unit - weight[0] @ origin
    bias[1:-1] += fitted.weight[width:] / unit
    return weight, bias


def _slices(num_rows: int, width: int) -> list[slice]:
    """Rows of so many float64 that are worked on at a time."""
    step = max(1, _BYTES_AT_A_TIME // (8 * width))
    return [slice(start, min(start + step, num_rows)) for start in range(0, num_rows, step)]


def _reader(states: States, layer: int) -> Callable[[slice], Floats]:
    """What gives the states of one layer; they are held where they are not too large for memory."""
    num_instances, _, width = states.shape
    if isinstance(states, np.ndarray):
        return states[:, layer].__getitem__
    if 4 * num_instances * width > MOST_BYTES_IN_MEMORY:
        return lambda rows: states[rows, layer]
    held = np.empty((num_instances, width), dtype=np.float32)
    for rows in _slices(num_instances, width):
        held[rows] = states[rows, layer]
    return held.__getitem__


@dataclass(frozen=True)
class Sums:
    """Sums over rows, from which every ridge regression on them follows.

    Means that are large beside deviations would drown in rounding: take the rows from about there.

    Attributes:
        count: of the rows.
        x: float64 `[D]`.
        xx: of the outer products, float64 `[D, D]`.
        y: of what is regressed.
        xy: float64 `[D]`.
    """

    count: int
    x: npt.NDArray[np.float64]
    xx: npt.NDArray[np.float64]
    y: float
    xy: npt.NDArray[np.float64]

    @classmethod
    def of(cls, x: Floats, y: Floats) -> Self:
        """Those of `[N, D]` and `[N]`."""
        return cls(len(x), x.sum(axis=0), x.T @ x, float(y.sum()), x.T @ y)

    @classmethod
    def none(cls, width: int) -> Self:
        """Those of no rows."""
        return cls.of(np.zeros((0, width)), np.zeros(0))

    def __add__(self, other: Self) -> Self:
        return self._with(other, np.add)

    def __sub__(self, other: Self) -> Self:
        return self._with(other, np.subtract)

    def _with(self, other: Self, combine: Callable[..., Any]) -> Self:
        mine, theirs = vars(self).values(), vars(other).values()
        return type(self)(*(combine(a, b) for a, b in zip(mine, theirs, strict=True)))

    def scaled(self, by: npt.NDArray[np.float64]) -> Self:
        """Those of x divided by `[D]`."""
        return type(self)(self.count, self.x / by, self.xx / np.outer(by, by), self.y, self.xy / by)

    def centred(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Of x and y without their means: the outer products `[D, D]`, and x times y `[D]`."""
        mean = self.x / self.count
        return self.xx - np.outer(self.x, mean), self.xy - self.y * mean

    def deviation(self) -> npt.NDArray[np.float64]:
        """The deviation of each column, `[D]`."""
        variance = self.xx.diagonal() / self.count - (self.x / self.count) ** 2
        return np.sqrt(variance.clip(0))

    def regression(self, weight: Floats, penalty: float) -> Regression:
        """With these weights and the intercept that fits best."""
        return Regression(weight, float(self.y - self.x @ weight) / self.count, penalty)


def _total(sums: Iterable[Sums]) -> Sums:
    return reduce(operator.add, sums)


def ridge(sums: Sums, penalty: float) -> Regression:
    """Ridge regression of y on x, with an intercept that is not penalised."""
    gram, along = sums.centred()
    gram.flat[:: len(gram) + 1] += penalty
    return sums.regression(np.linalg.solve(gram, along), penalty)


def ridge_by_leaving_one_out(sums: Sums, rows: Iterable[tuple[Floats, Floats]]) -> Regression:
    """Ridge regression whose penalty predicts best each instance from all others.

    Of `PENALTIES`; in closed form, as an instance moves its own prediction by its leverage (Golub,
    Heath and Wahba 1979). It is scikit-learn's `RidgeCV`.

    Args:
        sums: over all rows.
        rows: all of them, x `[B, D]` and y `[B]`, some at a time.
    """
    gram, along = sums.centred()
    squares, directions = np.linalg.eigh(gram)
    along = directions.T @ along
    shrunk = 1 / (squares.clip(0)[:, None] + PENALTIES)
    errors = np.zeros(len(PENALTIES))
    for x, y in rows:
        scores = (x - sums.x / sums.count) @ directions
        fitted = scores @ (along[:, None] * shrunk)
        wanted = y - sums.y / sums.count
        leverage = 1 / sums.count + scores**2 @ shrunk
        errors += (((wanted[:, None] - fitted) / (1 - leverage)) ** 2).sum(axis=0)
    best = int(errors.argmin())
    return sums.regression(directions @ (along * shrunk[:, best]), float(PENALTIES[best]))
