"""What leaving comes to class by class: precision, recall, F1, and the confusion matrix."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from cee_gym.traces.trace import Trace

Ints = npt.NDArray[np.integer]


def by_class(trace: Trace, exit_layers: Mapping[str, Ints]) -> dict[str, Any] | None:
    """Scikit-learn's report by class of leaving each instance at given layers.

    Args:
        trace: of the split to report on.
        exit_layers: integers `[N]` from 1, by the name of what leaves there.

    Returns:
        JSON-able: `names` and `rows`, how many instances have that label, of the C classes; and by
        each name given their `precision`, `recall` and `f1`, 0 where they are undefined, and
        `confusion`, counts `[C][C]`, a row for each label and a column for each prediction. None
        where the answers of the trace have no names, or are not compared with a label.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    names = trace.header.labels
    if names is None or trace.header.target != "label":
        return None
    labels, classes = trace.labels, np.arange(len(names))
    found: dict[str, Any] = {
        "names": list(names),
        "rows": np.bincount(labels, minlength=len(names)).tolist(),
    }
    for name, layers in exit_layers.items():
        predictions = trace.prediction[np.arange(len(trace)), layers - 1]
        figures = precision_recall_fscore_support(
            labels, predictions, labels=classes, zero_division=0.0
        )
        found[name] = {
            **{key: figures[at].tolist() for at, key in enumerate(("precision", "recall", "f1"))},
            "confusion": confusion_matrix(labels, predictions, labels=classes).tolist(),
        }
    return found
