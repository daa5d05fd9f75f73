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
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cee_gym.intervals import parts_of
from cee_gym.returns import best_threshold, first_exit

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
    states: Floats,
    rewards: Floats,
    folds: int,
    seed: int,
    progress_bar: bool = False,
    groups: npt.NDArray[np.integer] | None = None,
) -> Stopping:
    """Learns where to leave.

    Args:
        states: of N instances, `[N, L, D]`.
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
    parts = parts_of(num_instances, folds, seed, groups) if folds > 1 else []
    layers = range(num_layers - 2, -1, -1)
    if progress_bar:
        from cee_gym.progress import show_progress

        layers = show_progress(layers, desc="regress")
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


def improve_on_threshold(
    states: Floats, scores: Floats, rewards: Floats
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Learns where leaving is better than what the best threshold on a score does from there on.

    All layers share the weights; each has its own bias.

    Args:
        states: of N instances at P prices, `[P, N, L, D]`.
        scores: what the threshold is on, `[N, L]`.
        rewards: of leaving at each layer, `[P, N, L]`; each price has its own threshold.

    Returns:
        Weights float64 `[L, D]` and biases `[L]` of the advantage of leaving in units of its
        deviation; at the last layer, which is left anyway, 0 and 1.
    """
    num_prices, num_instances, num_layers, width = states.shape
    scores = scores.astype(np.float64)  # as thresholds are
    advantage = np.empty((num_prices, num_instances, num_layers - 1))
    for price, of in enumerate(rewards):
        leave = scores > best_threshold(scores, of)
        following = np.full(num_instances, num_layers - 1)
        for layer in range(num_layers - 2, -1, -1):
            advantage[price, :, layer] = of[:, layer] - of[np.arange(num_instances), following]
            following = np.where(leave[:, layer], layer, following)
    x = states[:, :, :-1].astype(np.float64).reshape(-1, width)
    mean, deviation = x.mean(axis=0), x.std(axis=0) + 1e-6
    own = np.tile(np.eye(num_layers - 1)[:, 1:], (num_prices * num_instances, 1))
    y = advantage.ravel()
    fitted = ridge_by_leaving_one_out(np.hstack([(x - mean) / deviation, own]), y)
    unit = y.std() + 1e-12
    weight, bias = np.zeros((num_layers, width)), np.ones(num_layers)
    weight[:-1] = fitted.weight[:width] / deviation / unit
    bias[:-1] = fitted.bias / unit - weight[0] @ mean
    bias[1:-1] += fitted.weight[width:] / unit
    return weight, bias


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
