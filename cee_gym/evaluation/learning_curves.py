"""What TensorBoard's event files of a run hold."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

RETURN = "rollout/ep_rew_mean"


class LearningCurve(NamedTuple):
    """A scalar over the steps of a run.

    Attributes:
        steps: int64 `[n]`.
        values: float64 `[n]`.
    """

    steps: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]


def learning_curves(run: Path) -> dict[str, LearningCurve]:
    """Every scalar of a run by its tag; none where nothing was written.

    Args:
        run: its directory.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not any(run.glob("events.out.tfevents.*")):
        return {}
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    found = {}
    for tag in events.Tags()["scalars"]:
        scalars = events.Scalars(tag)
        found[tag] = LearningCurve(
            np.array([one.step for one in scalars], dtype=np.int64),
            np.array([one.value for one in scalars], dtype=np.float64),
        )
    return found
