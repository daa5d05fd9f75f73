"""What a policy earns, in closed form.

With backbone and classifiers fixed, early exit is an optimal stopping problem with L stages: a
policy that leaves layer t with probability p_t leaves there after all with probability `p_t *
prod_{s<t} (1 - p_s)`, and
p_L = 1 because the last exit is forced. Everything else follows by a weighted sum.
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]


def exit_distribution(exit_probabilities: Floats) -> npt.NDArray[np.float64]:
    """The probability of leaving at each layer, float64 `[N, L]`; rows sum to 1.

    Args:
        exit_probabilities: `[N, L]`, the probability of leaving layer t once there. Column L is not
            read.

    >>> exit_distribution(np.array([[0.5, 0.5, 0.0]]))
    array([[0.5 , 0.25, 0.25]])
    """
    p = np.array(exit_probabilities, dtype=np.float64)
    p[:, -1] = 1.0
    reach = np.cumprod(1.0 - p, axis=1)
    p[:, 1:] *= reach[:, :-1]
    return p


def expected_return(exit_probabilities: Floats, reward: Floats) -> npt.NDArray[np.float64]:
    """The expected return of each instance, float64 `[N]`, given its rewards `[N, L]`."""
    return np.einsum("nl,nl->n", exit_distribution(exit_probabilities), reward, dtype=np.float64)


def hindsight_return(reward: Floats) -> npt.NDArray[np.float64]:
    """The best return of each instance, float64 `[N]`, for one who knows its label.

    An upper bound: no policy that must decide without the label is promised to attain it.
    """
    return reward.max(axis=1).astype(np.float64)


def first_exit(leave: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """The exit layer of each instance, int64 `[N]` from 1, given bool `[N, L]` decisions.

    At L it is forced.

    >>> first_exit(np.array([[False, True, True], [False, False, False]]))
    array([2, 3])
    """
    num_layers = leave.shape[1]
    return np.where(leave.any(axis=1), leave.argmax(axis=1) + 1, num_layers)


def best_threshold(scores: Floats, rewards: Floats) -> float:
    """The threshold above which to leave that earns most, of all there are.

    As it rises past the highest score of an instance so far, that goes on from there, and its
    return changes by the step to the next reward: one sum over the sorted scores tells all.

    Args:
        scores: `[N, L]`.
        rewards: of leaving at each layer, `[N, L]`.

    >>> best_threshold(np.array([[0.6, 0.9], [0.8, 0.9]]), np.array([[0.0, 1.0], [1.0, 0.0]]))
    0.7
    """
    highest = np.maximum.accumulate(scores[:, :-1], axis=1).astype(np.float64).ravel()
    if not highest.size:
        return 0.0
    order = highest.argsort()
    highest, steps = highest[order], np.diff(rewards, axis=1).ravel()[order]
    returns = np.concatenate([[0.0], steps.cumsum()])
    # A threshold lies between scores that differ, below all of them, or above.
    differ = np.flatnonzero(np.diff(highest)) + 1
    places = np.concatenate([[0], differ, [len(highest)]])
    best = int(places[returns[places].argmax()])
    if best == 0:
        return float(highest[0]) - 1
    if best == len(highest):
        return float(highest[-1])
    return float(highest[best - 1] + highest[best]) / 2
