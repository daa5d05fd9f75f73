"""How hard an instance is, and the weight of its cost that follows.

A module of your own adds a weight:

    @register_hardness("mean_correct")
    def mean_correct(exits):
        return exits.correct.mean(axis=1)
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from cee_gym.registry import Registry

# From what the exits read, arrays [N, L], to the weight of each instance's cost, [N].
Weight = Callable[[Any], npt.ArrayLike]
HARDNESS: Registry[Weight] = Registry("hardness")


def register_hardness(name: str) -> Callable[[Weight], Weight]:
    """Makes a function a weight of the cost that `Reward` knows by name."""

    def register(weight: Weight) -> Weight:
        HARDNESS.add(name, weight)
        return weight

    return register


def memorized_layer(correct: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """The smallest layer from which every classifier up to the last one is right.

    ConsistentEE, section 3.3. Where the last classifier is wrong the instance is never memorized,
    and the layer is L.

    Args:
        correct: bool `[N, L]`, whether the classifier at each layer is right about each instance.

    Returns:
        int64 `[N]`, layers counted from 1.

    Raises:
        ValueError: if `correct` is not two-dimensional or has no layers.

    >>> memorized_layer([[0, 1, 1], [1, 0, 1], [1, 1, 0], [1, 1, 1]])
    array([2, 3, 3, 1])
    """
    table: npt.NDArray[Any] = np.asarray(correct)
    if table.ndim != 2 or table.shape[1] == 0:
        raise ValueError(f"correct must have shape [N, L] with L >= 1, got {table.shape}")
    num_layers = table.shape[1]
    wrong_from_the_end = ~table[:, ::-1].astype(bool)
    right_at_the_end = np.where(
        wrong_from_the_end.any(axis=1), wrong_from_the_end.argmax(axis=1), num_layers
    )
    return np.minimum(num_layers - right_at_the_end + 1, num_layers).astype(np.int64)


@register_hardness("memorized_layer")
def _memorized_layer(exits: Any) -> npt.NDArray[np.float64]:
    """`1 - m/L` (ConsistentEE, equation 5)."""
    return 1.0 - memorized_layer(exits.correct) / exits.correct.shape[1]


@register_hardness("last_layer_loss")
def _last_layer_loss(exits: Any) -> npt.NDArray[np.float64]:
    return np.exp(-exits.loss[:, -1].astype(np.float64))
