"""A trace: what a multi-exit model did on one split, on disk and memory-mapped.

A trace is a directory of plain `.npy` arrays and one `header.json`. Nothing in it is pickled.
"""

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tokenize import TokenError
from typing import Any, Self
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

from cee_gym.errors import TraceError, first_line
from cee_gym.traces.header import TraceHeader, fingerprint_of, read_header
from cee_gym.traces.readout import MOST_LABELS_WITH_LOGITS, Readout, softmax

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
    """One split, seen by one model. N instances, L exits, states H wide, C classes.

    An instance is a text, or a token of a text. A trace never changes: its arrays are read-only, a
    copy of it is the trace itself, and a pickle holds only where it is and its fingerprint.

    Attributes:
        header: where it comes from.
        path: the directory it was opened from.
        states: float16 or float32 `[N, L, H]`, what a policy sees of each layer with an exit.
        loss: float32 `[N, L]`, the cross-entropy of each exit against the label, in nats.
        prediction: int32 `[N, L]`, the class each exit gives.
        confidence: float32 `[N, L]`, the probability it gives that class.
        entropy: float32 `[N, L]`, the entropy of its probabilities, in nats.
        labels: int32 `[N]`, from 0 to C - 1.
        row_ids: str `[N]`, `"SPLIT/ROW"` of the source the instance came from.
        logits: float32 `[N, L, C]`, or None where there are more than 256 classes.
        gap: float32 `[N, L]`, the difference of the two largest probabilities, or None up to 256
            classes, where the logits tell it.
        sequence: int64 `[N]`, the text that the instance is a token of; None where it is a text.
        position: int32 `[N]`, its place in that text, from 0; None where it is a text.
    """

    header: TraceHeader
    path: Path
    states: Array
    loss: Floats
    prediction: npt.NDArray[np.int32]
    confidence: Floats
    entropy: Floats
    labels: npt.NDArray[np.int32]
    row_ids: npt.NDArray[np.str_]
    logits: Floats | None = None
    gap: Floats | None = None
    sequence: npt.NDArray[np.int64] | None = None
    position: npt.NDArray[np.int32] | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Opens a trace; states stay on disk until they are read.

        Args:
            path: its directory.

        Raises:
            TraceError: if there is no trace, it is damaged, truncated or of another version, or its
                header contradicts its arrays.
        """
        path = Path(path)
        header = read_header(path)
        if not header.arrays:
            raise TraceError(
                f"the trace at {path} is unfinished: give the command that records it again"
            )
        arrays: dict[str, Any] = {}
        for name, entry in header.arrays.items():
            file = path / f"{name}.npy"
            try:
                array = np.load(file, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError, TokenError) as error:
                raise TraceError(
                    f"the trace at {path} is damaged: {file.name} cannot be read "
                    f"({first_line(error)}); record it again"
                ) from None
            if array.shape != entry.shape or array.dtype.str != entry.dtype:
                raise TraceError(
                    f"the trace at {path} is damaged: {file.name} holds {array.dtype.str} "
                    f"{list(array.shape)}, its header says {entry.dtype} {list(entry.shape)}; "
                    "record it again"
                )
            # Only states can be larger than memory; the rest is read once, so that views of it are
            # plain arrays.
            arrays[name] = array if name == "states" else np.array(array)
            arrays[name].setflags(write=False)
        trace = cls(header=header, path=path, **arrays)
        trace._check_values()
        return trace

    def _check_values(self) -> None:
        for name in ("labels", "prediction"):
            values = getattr(self, name)
            if values.min() < 0 or values.max() >= self.num_labels:
                raise TraceError(
                    f"the trace at {self.path} is damaged: {name} must be 0 to "
                    f"{self.num_labels - 1}, as its header has {self.num_labels} classes, but are "
                    f"{values.min()} to {values.max()}; record it again"
                )
        for name in ("loss", "confidence", "entropy", "logits", "gap"):
            values = getattr(self, name)
            if values is not None and not np.isfinite(values).all():
                raise TraceError(
                    f"the trace at {self.path} is damaged: {name} holds what is not a finite "
                    "number; record it again"
                )

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_again, (self.path.absolute(), self.fingerprint)

    def __len__(self) -> int:
        return int(self.states.shape[0])

    @property
    def num_layers(self) -> int:
        """L, how many layers have an exit."""
        return int(self.states.shape[1])

    @cached_property
    def depths(self) -> npt.NDArray[np.int64]:
        """The layer that each exit stands at, int64 `[L]`, from 1."""
        return np.asarray(self.header.depths)

    @property
    def width(self) -> int:
        """H."""
        return int(self.states.shape[2])

    @property
    def num_labels(self) -> int:
        """C."""
        return self.header.num_labels

    @property
    def fingerprint(self) -> str:
        """Names the content: equal for two traces if and only if all their arrays are equal."""
        return self.header.fingerprint

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """Whether each exit gives the label, or where that is the target, the last exit's answer.

        Bool `[N, L]`.
        """
        if self.header.target == "full_depth":
            return self.prediction == self.prediction[:, -1:]
        return self.prediction == self.labels[:, None]

    @property
    def probabilities(self) -> Floats:
        """Class probabilities of each exit, float32 `[N, L, C]`.

        Raises:
            TraceError: if the trace holds no logits.
        """
        if self.logits is None:
            raise TraceError(
                f"the trace at {self.path} holds no logits: it has {self.num_labels} classes, "
                f"and they are kept up to {MOST_LABELS_WITH_LOGITS}"
            )
        return softmax(self.logits)

    def readout(self, rows: npt.NDArray[np.integer[Any]] | slice) -> Readout:
        """What the exits answer on some rows, in numpy.

        Args:
            rows: integers `[B]`, or a slice of B rows.

        Returns:
            A readout of `[B, L]`; `correct` is that of the trace.
        """
        return Readout(
            loss=self.loss[rows],
            prediction=self.prediction[rows],
            correct=self.correct[rows],
            confidence=self.confidence[rows],
            entropy=self.entropy[rows],
            logits=None if self.logits is None else self.logits[rows],
            gap=None if self.gap is None else self.gap[rows],
        )

    def verify(self) -> None:
        """Reads every file and compares it with the checksum in the header.

        Raises:
            TraceError: if a file, or the fingerprint, is not what was recorded.
        """
        for name, entry in self.header.arrays.items():
            try:
                found = file_hash(self.path / f"{name}.npy")
            except OSError as error:
                raise TraceError(f"the trace at {self.path} is damaged: {error}") from None
            if found != entry.sha256:
                raise TraceError(
                    f"the trace at {self.path} is damaged: {name}.npy does not match its checksum; "
                    "record it again"
                )
        if fingerprint_of(self.header.arrays) != self.fingerprint:
            raise TraceError(
                f"the trace at {self.path} is damaged: its fingerprint {self.fingerprint} is not "
                "that of its arrays; record it again"
            )


# A trace stays open as long as someone uses it, so that a thousand environments share one.
_opened: WeakValueDictionary[Path, Trace] = WeakValueDictionary()


def open_trace(path: str | os.PathLike[str]) -> Trace:
    """Opens a single trace; one that is open already is not opened twice.

    Raises:
        TraceError: if there is none, or it is damaged.
    """
    path = Path(path).expanduser().resolve()
    trace = _opened.get(path)
    if trace is None or trace.header != read_header(path):  # it may have been recorded anew
        trace = _opened[path] = Trace.open(path)
    return trace


def file_hash(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _open_again(path: Path, fingerprint: str) -> Trace:
    """What a pickled trace is read by."""
    trace = open_trace(path)
    if trace.fingerprint != fingerprint:
        raise TraceError(
            f"the trace at {path} has been recorded anew: it is {trace.fingerprint}, what was "
            f"pickled was {fingerprint}; put that one back, or make what was pickled again"
        )
    return trace
