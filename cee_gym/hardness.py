"""How hard an instance is: the layer from which a model stays right about it."""

from typing import Any

import numpy as np
import numpy.typing as npt


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
