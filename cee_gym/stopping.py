"""Optimal stopping by regression backwards (Longstaff and Schwartz 2001), in numpy.

With the policy from layer t+1 on known, the reward it realises for each instance is known too, so
at layer t

    y_i = R_it - R_i,tau(i)      tau(i): where the policy from t+1 on leaves instance i

is regressed on the state, and the policy leaves where the prediction is positive. The label is
unknown when the policy decides, so the reward of leaving now has to be predicted as well, and the
difference is: L-1 ridge regressions, no step size, no sampling.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cee_gym.returns import first_exit

Floats = npt.NDArray[np.floating]
PENALTIES = np.logspace(-1, 5, 13)


class Regression(NamedTuple):
    """A linear function `x @ weight + bias`.

    Attributes:
        weight: float64 `[D]`.
        bias: the value at 0.
        penalty: of the squares of the weights.
    """

    weight: npt.NDArray[np.float64]
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

    def exits_of(self, states: Floats) -> npt.NDArray[np.int64]:
        """Where other instances leave, int64 `[N]` from 1, given their states `[N, L, D]`."""
        return first_exit(np.einsum("nld,ld->nl", states, self.weight) + self.bias > 0)


def regress_backwards(
    states: Floats, rewards: Floats, folds: int, seed: int, progress_bar: bool = False
) -> Stopping:
    """Learns where to leave.

    Args:
        states: of N instances, `[N, L, D]`.
        rewards: of leaving at each layer, `[N, L]`.
        folds: in learning no instance judges itself: what decides where it leaves is fitted to the
            other folds. With 1 it does, and gains what can only be known afterwards.
        seed: of the folds.
        progress_bar: show progress.

    Returns:
        Weights and biases, fitted to all, of the advantage of leaving in units of its deviation.
    """
    num_instances, num_layers, width = states.shape
    order = np.random.default_rng(seed).permutation(num_instances)
    parts = np.array_split(order, min(folds, num_instances)) if folds > 1 else []
    layers = range(num_layers - 2, -1, -1)
    if progress_bar:
        from tqdm import tqdm

        layers = tqdm(layers, desc="regress")
    weight, bias = np.zeros((num_layers, width)), np.zeros(num_layers)
    bias[-1] = 1.0
    rows = np.arange(num_instances)
    exits = np.full(num_instances, num_layers)
    for layer in layers:
        x = states[:, layer].astype(np.float64)
        mean, deviation = x.mean(axis=0), x.std(axis=0) + 1e-6
        x = (x - mean) / deviation
        y = rewards[:, layer] - rewards[rows, exits - 1]
        unit = y.std() + 1e-12
        whole = ridge_by_leaving_one_out(x, y)
        weight[layer] = whole.weight / deviation / unit
        bias[layer] = whole.bias / unit - weight[layer] @ mean
        predicted = x @ whole.weight + whole.bias
        for own in parts:
            others = np.delete(rows, own)
            fitted = ridge(x[others], y[others], whole.penalty)
            predicted[own] = x[own] @ fitted.weight + fitted.bias
        exits[predicted > 0] = layer + 1
    return Stopping(weight, bias, exits)


def ridge(x: Floats, y: Floats, penalty: float) -> Regression:
    """Ridge regression of `[N]` on `[N, D]`, with an intercept that is not penalised."""
    mean = x.mean(axis=0)
    centred = x - mean
    gram = centred.T @ centred
    gram.flat[:: len(gram) + 1] += penalty
    weight = np.linalg.solve(gram, centred.T @ (y - y.mean()))
    return Regression(weight, float(y.mean() - mean @ weight), penalty)


def ridge_by_leaving_one_out(x: Floats, y: Floats) -> Regression:
    """Ridge regression whose penalty predicts best each instance from all others.

    Of `PENALTIES`; in closed form, as an instance moves its own prediction by its leverage (Golub,
    Heath and Wahba 1979). It is scikit-learn's `RidgeCV`.

    Args:
        x: `[N, D]`.
        y: `[N]`.
    """
    mean = x.mean(axis=0)
    centred, wanted = x - mean, y - y.mean()
    squares, directions = np.linalg.eigh(centred.T @ centred)
    scores = centred @ directions
    along = scores.T @ wanted
    shrunk = 1 / (squares.clip(0)[:, None] + PENALTIES)
    fitted = scores @ (along[:, None] * shrunk)
    leverage = 1 / len(x) + scores**2 @ shrunk
    errors = (((wanted[:, None] - fitted) / (1 - leverage)) ** 2).mean(axis=0)
    best = int(errors.argmin())
    weight = directions @ (along * shrunk[:, best])
    return Regression(weight, float(y.mean() - mean @ weight), float(PENALTIES[best]))
