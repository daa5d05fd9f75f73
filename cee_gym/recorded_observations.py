"""The observations of all states of a trace, by rows."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

from cee_gym.errors import CeeGymError
from cee_gym.observation import (
    PARTS,
    Floats,
    Seen,
    Sizes,
    layout_of,
    observe_into,
    observe_last,
    width_of,
)
from cee_gym.traces.trace import Trace

MOST_BYTES_IN_MEMORY = 2**30
_BYTES_AT_A_TIME = 64 * 2**20


class RecordedObservations:
    """The observations of all states of a trace, by rows.

    They are held in memory where they fit, and computed from the trace at each call where not. The
    column of alpha, which each episode has its own of, is 0 in them.

    Args:
        trace: of N instances and L exits.
        observe: names of parts.

    Raises:
        CeeGymError: if a part is unknown, made of what the trace does not hold, or of exits that it
            does not say it reads.

    Attributes:
        layout: the columns of each part.
    """

    def __init__(self, trace: Trace, observe: Sequence[str]) -> None:
        self._trace = trace
        self.layout = layout_of(observe, Sizes(trace.num_layers, trace.width, trace.num_labels))
        self._shape = (len(trace), trace.num_layers, width_of(self.layout))
        self._shown = {name: where for name, where in self.layout.items() if name != "alpha"}
        self._check_parts()

    def __getitem__(self, rows: npt.NDArray[np.integer[Any]] | slice) -> Floats:
        """Those of some instances, float32 `[B, L, D]`; to be read only."""
        return self._compute(rows) if self.table is None else self.table[rows]

    def of_layer(self, rows: npt.NDArray[np.integer[Any]] | slice, layer: int) -> Floats:
        """Those of some instances at one layer, float32 `[B, D]`; to be read only.

        Args:
            rows: B of the instances.
            layer: from 1; no state of another layer is read unless a part reads it.
        """
        if self.table is not None:
            return self.table[rows, layer - 1]
        out = np.zeros((len(self._trace.labels[rows]), self._shape[2]), dtype=np.float32)
        for name, where in self._shown.items():
            first = 0 if PARTS.get(name).path else layer - 1
            out[:, where] = observe_last([name], self._seen(rows, slice(first, layer)))
        return out

    def at(
        self, instances: npt.NDArray[np.integer[Any]], layers: npt.NDArray[np.integer[Any]]
    ) -> Floats:
        """Fresh observations of B states, float32 `[B, D]`.

        Args:
            instances: integers `[B]`.
            layers: integers `[B]`, from 1.
        """
        if self.table is None:
            return self._compute(instances)[np.arange(len(instances)), layers - 1]
        _, num_layers, width = self._shape
        states = instances * num_layers + (layers - 1)
        return self.table.reshape(-1, width).take(states, axis=0)

    @cached_property
    def table(self) -> Floats | None:
        """All of them, float32 `[N, L, D]`, read-only; None where that is too large for memory."""
        if int(np.prod(self._shape)) * 4 > MOST_BYTES_IN_MEMORY:
            return None
        table = np.empty(self._shape, dtype=np.float32)
        at_a_time = max(1, _BYTES_AT_A_TIME // table[0].nbytes)
        for start in range(0, len(table), at_a_time):
            rows = slice(start, start + at_a_time)
            self._fill(table[rows], rows)
        table.setflags(write=False)
        return table

    def _compute(self, rows: npt.NDArray[np.integer[Any]] | slice) -> Floats:
        out = np.empty((len(self._trace.labels[rows]), *self._shape[1:]), dtype=np.float32)
        self._fill(out, rows)
        return out

    def _fill(self, out: Floats, rows: npt.NDArray[np.integer[Any]] | slice) -> None:
        observe_into(out, self._shown, self._seen(rows, slice(None)))
        if "alpha" in self.layout:
            out[..., self.layout["alpha"]] = 0.0

    def _seen(self, rows: npt.NDArray[np.integer[Any]] | slice, exits: slice) -> Seen:
        trace = self._trace
        first, end, _ = exits.indices(trace.num_layers)
        return Seen(
            np,
            Sizes(trace.num_layers, trace.width, trace.num_labels),
            (first + 1, end),
            None,
            np.asarray(trace.states[rows][:, exits], dtype=np.float32),
            None if trace.logits is None else trace.logits[rows][:, exits],
            confidence=trace.confidence[rows][:, exits].clip(0.0, 1.0),  # other tools may round it
            entropy=trace.entropy[rows][:, exits],
            prediction=trace.prediction[rows][:, exits],
            gap=None if trace.gap is None else trace.gap[rows][:, exits],
        )

    def _check_parts(self) -> None:
        """Shows some states as a running model would, which has not run the exits after them."""
        rows, end = slice(0, 8), (self._shape[1] + 1) // 2
        everything = self._compute(rows)[:, end - 1]
        for name, where in self._shown.items():
            path = PARTS.get(name).path
            seen = self._seen(rows, slice(0 if path else end - 1, end))
            if not np.allclose(everything[:, where], observe_last([name], seen), atol=1e-4):
                raise CeeGymError(
                    f"part {name!r} of an observation reads exits after the present one: it is "
                    "to read those up to it"
                    if path
                    else f"part {name!r} of an observation reads other exits than the present one: "
                    "register it with path=True, and let it read none after that"
                )


# They live as long as a problem uses them, so that all prices and rewards share one.
_recorded: WeakValueDictionary[tuple[Any, ...], RecordedObservations] = WeakValueDictionary()


def recorded_observations(trace: Trace, observe: Sequence[str]) -> RecordedObservations:
    """The observations of a trace; equal arguments give the same object."""
    # The part itself too, as a name may be given to another function.
    key = (trace, *((name, PARTS.get(name)) for name in observe))
    found = _recorded.get(key)
    if found is None:
        found = _recorded[key] = RecordedObservations(trace, observe)
    return found
