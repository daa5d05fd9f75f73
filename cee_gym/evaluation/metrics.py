"""The metrics of the tasks, by scikit-learn."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

_METRICS = {
    "accuracy": accuracy_score,
    "f1": f1_score,
    "matthews": matthews_corrcoef,
}


def score(
    metrics: Sequence[str],
    labels: npt.NDArray[np.integer],
    predictions: npt.NDArray[np.integer],
) -> dict[str, float]:
    """The metrics of `[N]` predictions against `[N]` labels, by name.

    Each is in [0, 1] (Matthews in [-1, 1]).
    """
    return {name: float(_METRICS[name](labels, predictions)) for name in metrics}
