"""Everything a recorded environment shows and pays, as tables over all instances and layers."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

from cee_gym.errors import CeeGymError
from cee_gym.hardness import memorized_layer
from cee_gym.observation import Layout, layout_of, width_of, write
from cee_gym.reward import Reward, alpha_range
from cee_gym.traces.recordings import find_recording, open_split
from cee_gym.traces.trace import Trace

MOST_BYTES_IN_MEMORY = 4 * 2**30
_BYTES_AT_A_TIME = 64 * 2**20
# A table lives as long as an environment uses it, so that a thousand scalar environments share one.
_tables: WeakValueDictionary[tuple[Any, ...], "ExitTable"] = WeakValueDictionary()


@dataclass(frozen=True, eq=False)
class ExitTable:
    """A (Trace, Reward) pair, laid out to be looked up. All arrays are read-only.

    Attributes:
        trace: what it was computed from.
        observations: float32 `[N, L, D]`, the observation of each state. Where alpha is observed,
            its column holds the lowest, and an episode puts its own there.
        quality: float32 `[N, L]`, what leaving achieves.
        price: float32 `[N, L]`, what it costs, in units of alpha.
        memorized_layer: int64 `[N]`, from 1.
        correct: bool `[N, L]`, whether the layer's classifier is right.
        prediction: int64 `[N, L]`, the class it gives.
        alpha: the lowest and highest price of one layer; equal where it is fixed.
        layout: the columns of each part of an observation.
        deterministic: False where the prices were measured; see `cee_gym.Reward`.
    """

    trace: Trace
    observations: npt.NDArray[np.float32]
    quality: npt.NDArray[np.float32]
    price: npt.NDArray[np.float32]
    memorized_layer: npt.NDArray[np.int64]
    correct: npt.NDArray[np.bool_]
    prediction: npt.NDArray[np.int64]
    alpha: tuple[float, float]
    layout: Layout
    deterministic: bool

    def rewards(self, alpha: float | npt.ArrayLike) -> npt.NDArray[np.float64]:
        """The reward of leaving at each layer, float64 `[N, L]`.

        Args:
            alpha: the price of one layer: a number, or one per instance `[N]`.
        """
        price = np.asarray(alpha, dtype=np.float64).reshape(-1, 1) * self.price
        return self.quality.astype(np.float64) - price

    def observe(
        self, rows: npt.NDArray[np.integer[Any]] | slice, alpha: float | npt.ArrayLike
    ) -> npt.NDArray[np.float32]:
        """A copy of some instances' observations, float32 `[B, L, D]`, at a price of one layer.

        Args:
            rows: of the instances.
            alpha: a number, or one per instance `[B]`; written where the episodes draw their own.
        """
        observations = np.array(self.observations[rows])
        if self.alpha_column is not None:
            observations[:, :, self.alpha_column] = np.asarray(alpha).reshape(-1, 1)
        return observations

    @property
    def alpha_column(self) -> int | None:
        """The column of an observation that each episode sets to its alpha, if there is one."""
        return int(self.layout["alpha"].start) if "alpha" in self.layout else None


def open_table(
    recording: str | None,
    trace: Trace | str | os.PathLike[str] | None,
    split: str,
    alpha: float | Sequence[float],
    hardness: Any,
    quality: Any,
    cost: Any,
    observe: Sequence[str],
) -> ExitTable:
    """The table for the arguments of a recorded environment; equal arguments give the same table.

    Raises:
        CeeGymError: if there is no such trace, or an argument does not fit.
    """
    if trace is None:
        if recording is None:
            raise CeeGymError("EarlyExit needs a trace: give trace=PATH, or make a benchmark's id")
        trace = find_recording(recording)
    if not isinstance(trace, Trace):
        trace = open_split(trace, split)
    low_high = alpha_range(alpha)
    reward = Reward(quality=quality, hardness=hardness, cost=cost)
    costs = reward.layer_cost(trace.num_layers).tobytes()
    key = (
        *(trace, quality, _key(hardness), costs, reward.deterministic),
        *(tuple(observe), low_high),
    )
    table = _tables.get(key)
    if table is None:
        table = _tables[key] = _build(trace, reward, observe, low_high)
    return table


def _key(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    return np.asarray(value, dtype=np.float64).tobytes()


def _build(
    trace: Trace, reward: Reward, observe: Sequence[str], alpha: tuple[float, float]
) -> ExitTable:
    layout = layout_of(observe, trace.num_layers, trace.width, trace.num_labels)
    if "probs" in layout and trace.logits is None:
        raise CeeGymError(
            f"observe names 'probs', but the trace at {trace.path} holds no logits, as it has "
            f"{trace.num_labels} classes: leave 'probs' out"
        )
    quality, price = reward.tables(trace)
    table = ExitTable(
        trace=trace,
        observations=_observations(trace, layout, alpha[0]),
        quality=quality,
        price=price,
        memorized_layer=memorized_layer(trace.correct),
        correct=trace.correct,
        prediction=trace.prediction.astype(np.int64),
        alpha=alpha,
        layout=layout,
        deterministic=reward.deterministic,
    )
    for array in vars(table).values():
        if isinstance(array, np.ndarray):
            array.setflags(write=False)
    return table


def _observations(trace: Trace, layout: Layout, alpha: float) -> npt.NDArray[np.float32]:
    out = _empty((len(trace), trace.num_layers, width_of(layout)))
    one_hot = np.eye(trace.num_layers)
    at_a_time = max(1, _BYTES_AT_A_TIME // out[0].nbytes)
    for start in range(0, len(trace), at_a_time):
        rows = slice(start, start + at_a_time)
        write(
            out[rows],
            layout,
            hidden=trace.states[rows],
            layer=one_hot,
            logits=None if trace.logits is None else trace.logits[rows],
            entropy=trace.entropy[rows],
            confidence=trace.confidence[rows],
            num_labels=trace.num_labels,
            alpha=alpha,
        )
    return out


def _empty(shape: tuple[int, int, int]) -> npt.NDArray[np.float32]:
    """Memory for a table; a file without a name where it is too large for memory."""
    size = int(np.prod(shape)) * 4
    if size <= MOST_BYTES_IN_MEMORY:
        return np.empty(shape, dtype=np.float32)
    try:
        with tempfile.TemporaryFile() as file:
            # Writing to a sparse file on a full disk kills the process; reserving blocks raises.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            return np.asarray(np.memmap(file, dtype=np.float32, mode="w+", shape=shape))
    except OSError as error:
        raise CeeGymError(
            f"the observations need {size / 2**30:.1f} GiB and {tempfile.gettempdir()} has no room "
            f"for them ({error}): set TMPDIR to a larger disk"
        ) from None
