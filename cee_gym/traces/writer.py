"""Writing a trace: into `NAME.partial`, which is renamed to `NAME` when it is complete.

So a trace that exists is whole, and a recording that was killed goes on where it was. What
`NAME.partial` is of stands in its header, which names no arrays until they are complete.
"""

import errno
import os
import shutil
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cee_gym import processes
from cee_gym.documents import publish
from cee_gym.errors import TraceError, first_line
from cee_gym.traces.header import (
    ARRAYS,
    ArrayEntry,
    TraceHeader,
    fingerprint_of,
    read_header,
    write_header,
)
from cee_gym.traces.readout import MOST_LABELS_WITH_LOGITS, Readout
from cee_gym.traces.trace import Trace, file_hash

Array = npt.NDArray[Any]


@dataclass(kw_only=True)
class TraceWriter:
    """Writes a trace straight to disk, rows in any order, and publishes it when all are there.

    A writer for a directory whose `.partial` is of the same recording goes on with it: `missing`
    names the rows still to write. One of another recording is begun anew.

    Args:
        path: where the trace is to be; must not exist.
        header: where it comes from; the writer adds what is known at the end.
        row_ids: str `[N]`, `"SPLIT/ROW"` of each of the N instances.
        labels: integers `[N]`, from 0 to C - 1.
        width: H, of the states.
        dtype: of the states, float16 or float32.
        sequence: integers `[N]`, the text that each instance is a token of; None for texts.
        position: integers `[N]`, its place in that text; None for texts.

    Raises:
        TraceError: if the trace exists, a label is out of range, or the disk has no room for it.
    """

    path: Path
    header: TraceHeader
    row_ids: npt.NDArray[np.str_]
    labels: npt.NDArray[np.integer]
    width: int
    dtype: str
    sequence: npt.NDArray[np.integer] | None = None
    position: npt.NDArray[np.integer] | None = None
    _given: dict[str, Array] = field(default_factory=dict, init=False)
    _arrays: dict[str, Array] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if self.dtype not in ("float16", "float32"):
            raise TraceError(f"states are float16 or float32, not {self.dtype}")
        if len(self.row_ids) == 0:
            raise TraceError(f"there is nothing to record at {self.path}: the split is empty")
        if (self.sequence is None) != (self.position is None):
            raise TraceError("tokens need both sequence and position, texts neither")
        classes = self.header.num_labels
        if not ((self.labels >= 0) & (self.labels < classes)).all():
            raise TraceError(f"labels of {self.path} must be 0 to {classes - 1}")
        if self.path.exists():
            raise TraceError(f"{self.path} exists already: remove it to record it again")
        self._partial = self.path.with_name(f"{self.path.name}.partial")
        self._given["row_ids"] = np.asarray(self.row_ids)
        for name in ("labels", "sequence", "position"):
            if (values := getattr(self, name)) is not None:
                self._given[name] = np.asarray(values, dtype=ARRAYS[name][0][0])
        try:
            if not self._resume():
                self._begin()
        except (OSError, ValueError) as error:
            raise _write_error(self.path, error) from None

    def _layout(self) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
        """Type and shape of every array, and of `written`, which says what rows are there."""
        classes = self.header.num_labels
        sizes = {
            "N": len(self.row_ids),
            "L": len(self.header.depths),
            "H": self.width,
            "C": classes,
        }
        unused = {"sequence", "position"} - self._given.keys()
        unused.add("gap" if classes <= MOST_LABELS_WITH_LOGITS else "logits")
        types: dict[str, Any] = {"states": self.dtype, "row_ids": self._given["row_ids"].dtype}
        layout = {
            name: (np.dtype(types.get(name, dtypes[0])), tuple(sizes[axis] for axis in axes))
            for name, (dtypes, axes) in ARRAYS.items()
            if name not in unused
        }
        return {**layout, "written": (np.dtype(bool), (sizes["N"],))}

    def _resume(self) -> bool:
        """Goes on with an unfinished trace, if there is one and it is of the same recording."""
        try:
            before = read_header(self._partial)
        except TraceError:  # there is none, or its writer was killed before it had begun
            return False
        if replace(before, created="", fingerprint="", arrays={}) != self.header:
            return False
        arrays: dict[str, Array] = {}
        for name, (dtype, shape) in self._layout().items():
            if name == "written" and before.arrays:  # complete; it may be removed already
                arrays[name] = np.ones(shape, dtype)
                continue
            file = self._partial / f"{name}.npy"
            if not file.exists():
                return False
            np.load(file, mmap_mode="r")  # refuses a truncated file; "r+" fills it up with zeros
            arrays[name] = np.lib.format.open_memmap(file, mode="r+")
            if (arrays[name].dtype, arrays[name].shape) != (dtype, shape):
                return False
        if not all(np.array_equal(arrays[name], given) for name, given in self._given.items()):
            return False
        self._arrays = arrays
        return True

    def _begin(self) -> None:
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(parents=True)
        for name, (dtype, shape) in self._layout().items():
            self._arrays[name] = _create(self._partial / f"{name}.npy", dtype, shape)
        for name, given in self._given.items():
            self._arrays[name][:] = given
        write_header(self._partial, self.header)

    @property
    def missing(self) -> npt.NDArray[np.int64]:
        """Positions of the rows that are still to be written, int64."""
        return np.flatnonzero(~self._arrays["written"])

    def write(
        self, rows: npt.NDArray[np.integer], states: npt.NDArray[np.floating], readout: Readout
    ) -> None:
        """Writes some rows.

        Args:
            rows: integers `[B]`, their positions.
            states: `[B, L, H]`.
            readout: of `[B, L]`, in numpy, read against the labels of these rows.

        Raises:
            TraceError: if a state or what an exit answers is not a finite number, float16 cannot
                hold a state, or the readout is not one of these rows, exits and classes.
        """
        recorded = self._arrays.keys() - self._given.keys() - {"written"}
        values = {name: getattr(readout, name) for name in recorded - {"states"}}
        values["states"] = states
        for name in sorted(values, reverse=True):  # states first: what is wrong there is the cause
            shape = (len(rows), *self._arrays[name].shape[1:])
            if np.shape(values[name]) != shape:
                raise TraceError(
                    f"{name} of {self.path} must be {list(shape)}, got "
                    f"{'none' if values[name] is None else list(np.shape(values[name]))}"
                )
            self._refuse(rows, np.isfinite(values[name]), f"{name}: not a finite number")
        with np.errstate(over="ignore"):
            values["states"] = states.astype(self.dtype)
        self._refuse(
            rows,
            np.isfinite(values["states"]),
            "float16 cannot hold a state (above 65504), record with float32 states",
        )
        classes, prediction = self.header.num_labels, readout.prediction
        self._refuse(
            rows,
            (prediction >= 0) & (prediction < classes),
            f"a prediction is not 0 to {classes - 1}",
        )
        self._refuse(
            rows,
            readout.correct == (prediction == self._given["labels"][rows][:, None]),
            "what was read out was compared with another label",
        )
        for name in values:
            self._arrays[name][rows] = values[name]
        self._arrays["written"][rows] = True

    def _refuse(self, rows: npt.NDArray[np.integer], good: Array, what: str) -> None:
        if not good.all():
            row, exit = np.argwhere(~good)[0][:2]
            layer = self.header.depths[exit]
            raise TraceError(f"{what}: row {self.row_ids[rows[row]]}, layer {layer}")

    def publish(self) -> Trace:
        """Completes the header and renames the directory to its final name.

        Raises:
            TraceError: if rows are missing or the disk is full.
        """
        if len(self.missing):
            raise TraceError(f"{len(self.missing)} rows of {self.path} are not written yet")
        entries = {}
        try:
            for name, array in self._arrays.items():
                if isinstance(array, np.memmap) and name != "written":
                    array.flush()
                    file = self._partial / f"{name}.npy"
                    entries[name] = ArrayEntry(array.dtype.str, array.shape, file_hash(file))
            self._arrays.clear()
            complete = replace(
                self.header,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                fingerprint=fingerprint_of(entries),
                arrays=entries,
            )
            write_header(self._partial, complete)
            # Only now: until the header is complete it says where a killed recording goes on.
            (self._partial / "written.npy").unlink(missing_ok=True)
            publish(self._partial, self.path)
        except OSError as error:
            raise _write_error(self.path, error) from None
        return Trace.open(self.path)


def finish_trace(writer: TraceWriter | None) -> None:
    """Publishes what the main process has written, while the others, without a writer, wait."""
    if writer is not None:
        writer.publish()
    processes.agree(None)


def _create(file: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    array: Array = np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=shape)
    # A sparse file on a full disk kills the process at the first write; reserving the blocks raises
    # instead.
    if hasattr(os, "posix_fallocate"):
        with file.open("r+b") as handle:
            os.posix_fallocate(handle.fileno(), 0, file.stat().st_size)
    return array


def _write_error(path: Path, error: OSError | ValueError) -> TraceError:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return TraceError(
            f"the disk is full: {path} was not recorded; make room and give the same command again"
        )
    return TraceError(
        f"{path} cannot be written ({first_line(error)}): give another place, or remove what is "
        f"unfinished there ({path.name}.partial)"
    )
