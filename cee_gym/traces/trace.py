"""A trace: what a multi-exit model did on one split, on disk and memory-mapped.

A trace is a directory of plain `.npy` arrays and one `header.json`. Nothing in it is pickled. It is
written into `NAME.partial` and renamed when complete, so a trace that exists is whole; a writer
that was killed goes on
where it was.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from cee_gym.errors import TraceError

FORMAT = "cee-gym trace"
VERSION = 1
MOST_LABELS_WITH_LOGITS = 256
REQUIRED = {"states", "loss", "prediction", "confidence", "entropy", "labels", "row_ids"}

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Trace:
    """One split, seen by one model. N instances, L layers, states H wide, C classes.

    Attributes:
        states: float16 or float32 `[N, L, H]`, the pooled hidden state of each layer.
        loss: float32 `[N, L]`, cross-entropy of each layer's classifier, in nats.
        prediction: int32 `[N, L]`, the class each layer's classifier gives.
        confidence: float32 `[N, L]`, the probability it gives that class.
        entropy: float32 `[N, L]`, the entropy of its probabilities, in nats.
        labels: int32 `[N]`.
        row_ids: str `[N]`, `"SPLIT/ROW"` of the source the instance came from.
        logits: float32 `[N, L, C]`, or None where there are more than 256 classes.
        header: task, split, backbone, seed, versions and the fingerprint.
        path: the directory it was opened from.
    """

    states: Array
    loss: npt.NDArray[np.float32]
    prediction: npt.NDArray[np.int32]
    confidence: npt.NDArray[np.float32]
    entropy: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int32]
    row_ids: npt.NDArray[np.str_]
    logits: npt.NDArray[np.float32] | None
    header: Mapping[str, Any]
    path: Path

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Opens a trace; states stay on disk until they are read.

        Raises:
            TraceError: if there is no trace, it is damaged or truncated, or of another version.
        """
        path = Path(path)
        header = _read_header(path)
        arrays: dict[str, Array] = {}
        for name, expected in header["arrays"].items():
            file = path / f"{name}.npy"
            try:
                array = np.load(file, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise TraceError(
                    f"the trace at {path} is damaged: {file.name} cannot be read ({error}); "
                    "record it again"
                ) from None
            if list(array.shape) != expected["shape"] or array.dtype.str != expected["dtype"]:
                raise TraceError(
                    f"the trace at {path} is damaged: {file.name} holds {array.dtype.str} "
                    f"{list(array.shape)}, its header says {expected['dtype']} "
                    f"{expected['shape']}; record it again"
                )
            # Only states can be larger than memory; the rest is read once, so that views of it are
            # plain arrays.
            arrays[name] = array if name == "states" else np.array(array)
        if missing := REQUIRED - arrays.keys():
            raise TraceError(f"the trace at {path} has no {', '.join(sorted(missing))}")
        arrays.setdefault("logits", None)  # type: ignore[arg-type]
        return cls(**arrays, header=header, path=path)

    def __len__(self) -> int:
        return int(self.states.shape[0])

    @property
    def num_layers(self) -> int:
        """L."""
        return int(self.states.shape[1])

    @property
    def width(self) -> int:
        """H."""
        return int(self.states.shape[2])

    @property
    def num_labels(self) -> int:
        """C."""
        return len(self.header["labels"])

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """Whether each layer's classifier is right, bool `[N, L]`."""
        return self.prediction == self.labels[:, None]

    @property
    def probabilities(self) -> npt.NDArray[np.float32]:
        """Class probabilities of each layer, float32 `[N, L, C]`.

        Raises:
            TraceError: if the trace holds no logits.
        """
        if self.logits is None:
            raise TraceError(
                f"the trace at {self.path} holds no logits: it has {self.num_labels} classes, "
                f"and they are kept up to {MOST_LABELS_WITH_LOGITS}"
            )
        return np.exp(log_softmax(self.logits))

    @property
    def fingerprint(self) -> str:
        """Names the content: equal for two traces if and only if all their arrays are equal."""
        return str(self.header["fingerprint"])

    def verify(self) -> None:
        """Reads every file and compares it with the checksum in the header.

        Raises:
            TraceError: if a file has changed since it was recorded.
        """
        for name, expected in self.header["arrays"].items():
            try:
                found = _sha256(self.path / f"{name}.npy")
            except OSError as error:
                raise TraceError(f"the trace at {self.path} is damaged: {error}") from None
            if found != expected["sha256"]:
                raise TraceError(
                    f"the trace at {self.path} is damaged: {name}.npy does not match its checksum; "
                    "record it again"
                )


@dataclass(frozen=True)
class Readout:
    """What a classifier says, `[..., C]` logits read against `[...]` labels.

    See `Trace` for the meanings.
    """

    loss: npt.NDArray[np.float32]
    prediction: npt.NDArray[np.int32]
    confidence: npt.NDArray[np.float32]
    entropy: npt.NDArray[np.float32]


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Logarithms of the class probabilities, float32 `[..., C]`."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(
        shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)), dtype=np.float32
    )


def read_out(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.integer]) -> Readout:
    """Loss, prediction, confidence and entropy of class logits.

    Args:
        logits: float32 `[..., C]`.
        labels: integers `[...]`.
    """
    log_p = log_softmax(logits)
    picked = np.take_along_axis(log_p, labels[..., None].astype(np.int64), axis=-1)[..., 0]
    return Readout(
        loss=-picked,
        prediction=logits.argmax(axis=-1).astype(np.int32),
        confidence=np.exp(log_p.max(axis=-1)),
        entropy=-(np.exp(log_p) * log_p).sum(axis=-1),
    )


@dataclass
class TraceWriter:
    """Writes a trace straight to disk, rows in any order, and publishes it when all are there.

    A writer for a directory whose `.partial` holds the same description goes on with it: `missing`
    names the rows still to write. A partial trace with another description is of another recording
    and is begun anew.

    Args:
        path: where the trace is to be; must not exist.
        row_ids: `"SPLIT/ROW"` of each of the N instances.
        labels: integers `[N]`.
        shape: L and H.
        dtype: float16 or float32, of the states.
        description: task, split, `labels` (the C class names), backbone and whatever else
            identifies the recording; JSON-able. It becomes part of the header.

    Raises:
        TraceError: if the trace exists, or the disk has no room for it.
    """

    path: Path
    row_ids: npt.NDArray[np.str_]
    labels: npt.NDArray[np.integer]
    shape: tuple[int, int]
    dtype: str
    description: Mapping[str, Any]
    _arrays: dict[str, Array] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if self.dtype not in ("float16", "float32"):
            raise TraceError(f"states are float16 or float32, not {self.dtype}")
        if len(self.row_ids) == 0:
            raise TraceError(f"there is nothing to record at {self.path}: the split is empty")
        classes = len(self.description["labels"])
        if not ((self.labels >= 0) & (self.labels < classes)).all():
            raise TraceError(f"labels of {self.path} must be 0 to {classes - 1}")
        if self.path.exists():
            raise TraceError(f"{self.path} exists already: remove it to record it again")
        self._partial = self.path.with_name(self.path.name + ".partial")
        plan = {
            "format": FORMAT,
            "version": VERSION,
            **self.description,
            "rows": hashlib.sha256(
                "\n".join(map("{} {}".format, self.row_ids, self.labels)).encode()
            ).hexdigest(),
            "states": [len(self.row_ids), *self.shape, self.dtype],
        }
        plan_file = self._partial / "plan.json"
        resumes = _read_plan(plan_file) == json.loads(json.dumps(plan))
        try:
            if not resumes:
                shutil.rmtree(self._partial, ignore_errors=True)
                self._partial.mkdir(parents=True)
            for name, (dtype, shape) in self._layout().items():
                self._arrays[name] = _map(
                    self._partial / f"{name}.npy", dtype, shape, new=not resumes
                )
            if not resumes:
                self._arrays["labels"][:] = self.labels
                self._arrays["row_ids"][:] = self.row_ids
                plan_file.write_text(json.dumps(plan))
        except (OSError, ValueError) as error:
            raise _write_error(self.path, error) from None

    def _layout(self) -> dict[str, tuple[Any, tuple[int, ...]]]:
        n, (num_layers, width) = len(self.row_ids), self.shape
        classes = len(self.description["labels"])
        per_layer = (n, num_layers)
        layout: dict[str, tuple[Any, tuple[int, ...]]] = {
            "states": (np.dtype(self.dtype), (*per_layer, width)),
            "loss": (np.float32, per_layer),
            "prediction": (np.int32, per_layer),
            "confidence": (np.float32, per_layer),
            "entropy": (np.float32, per_layer),
            "labels": (np.int32, (n,)),
            "row_ids": (self.row_ids.dtype, (n,)),
            "written": (np.bool_, (n,)),
        }
        if classes <= MOST_LABELS_WITH_LOGITS:
            layout["logits"] = (np.float32, (*per_layer, classes))
        return layout

    @property
    def missing(self) -> npt.NDArray[np.int64]:
        """Positions of the rows that are still to be written."""
        return np.flatnonzero(~self._arrays["written"])

    def write(
        self,
        rows: npt.NDArray[np.integer],
        states: npt.NDArray[np.floating],
        logits: npt.NDArray[np.float32],
    ) -> None:
        """Writes some rows.

        Args:
            rows: integers `[B]`, their positions.
            states: `[B, L, H]`.
            logits: float32 `[B, L, C]`.

        Raises:
            TraceError: if a state or logit is not a finite number, or float16 cannot hold it.
        """
        self._refuse(rows, np.isfinite(states), "a state is not a finite number")
        self._refuse(rows, np.isfinite(logits), "a logit is not a finite number")
        with np.errstate(over="ignore"):
            stored = states.astype(self.dtype)
        self._refuse(
            rows,
            np.isfinite(stored),
            "float16 cannot hold a state (above 65504): record with float32 states",
        )
        labels = np.broadcast_to(self._arrays["labels"][rows][:, None], logits.shape[:2])
        readout = read_out(logits, labels)
        self._arrays["states"][rows] = stored
        self._arrays["loss"][rows] = readout.loss
        self._arrays["prediction"][rows] = readout.prediction
        self._arrays["confidence"][rows] = readout.confidence
        self._arrays["entropy"][rows] = readout.entropy
        if "logits" in self._arrays:
            self._arrays["logits"][rows] = logits
        self._arrays["written"][rows] = True

    def _refuse(self, rows: npt.NDArray[np.integer], finite: Array, what: str) -> None:
        good = finite.all(axis=2)
        if not good.all():
            row, layer = np.argwhere(~good)[0]
            raise TraceError(f"{what}: row {self.row_ids[rows[row]]}, layer {layer + 1}")

    def publish(self) -> Trace:
        """Completes the header and renames the directory to its final name.

        Raises:
            TraceError: if rows are missing or the disk is full.
        """
        if len(self.missing):
            raise TraceError(f"{len(self.missing)} rows of {self.path} are not written yet")
        names = [name for name in self._arrays if name != "written"]
        try:
            arrays = {}
            for name in names:
                array = self._arrays[name]
                array.flush()  # type: ignore[attr-defined]
                arrays[name] = {
                    "dtype": array.dtype.str,
                    "shape": list(array.shape),
                    "sha256": _sha256(self._partial / f"{name}.npy"),
                }
            self._arrays.clear()
            header = {
                "format": FORMAT,
                "version": VERSION,
                "fingerprint": hashlib.sha256(
                    json.dumps(arrays, sort_keys=True).encode()
                ).hexdigest()[:16],
                **self.description,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "arrays": arrays,
            }
            (self._partial / "header.json").write_text(json.dumps(header, indent=1) + "\n")
            self._partial.rename(self.path)
            # Only now: until it is published they are what a killed writer goes on with.
            (self.path / "written.npy").unlink()
            (self.path / "plan.json").unlink()
        except OSError as error:
            raise _write_error(self.path, error) from None
        return Trace.open(self.path)


def _map(file: Path, dtype: Any, shape: tuple[int, ...], new: bool) -> Array:
    if not new:
        np.load(file, mmap_mode="r")  # refuses a truncated file; "r+" would fill it up with zeros
        return np.lib.format.open_memmap(file, mode="r+")
    array = np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=shape)
    # A sparse file on a full disk kills the process at the first write; reserving the blocks raises
    # instead.
    if hasattr(os, "posix_fallocate"):
        with file.open("r+b") as handle:
            os.posix_fallocate(handle.fileno(), 0, file.stat().st_size)
    return array


def _read_plan(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):  # there is none, or its writer was killed while writing it
        return None


def _write_error(path: Path, error: OSError | ValueError) -> TraceError:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return TraceError(
            f"the disk is full: {path} was not recorded; make room and give the same command again"
        )
    return TraceError(f"{path} cannot be written: {error}")


def _read_header(path: Path) -> dict[str, Any]:
    try:
        header = json.loads((path / "header.json").read_text())
    except FileNotFoundError:
        raise TraceError(f"there is no trace at {path}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise TraceError(f"the trace at {path} is damaged: header.json: {error}") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise TraceError(f"{path} is not a cee-gym trace")
    if header.get("version") != VERSION:
        raise TraceError(
            f"the trace at {path} is of version {header.get('version')}, this cee-gym reads "
            f"version {VERSION}: record it again, or install the cee-gym that wrote it"
        )
    whole = all(key in header for key in ("arrays", "labels", "fingerprint", "task", "split"))
    if not whole or not _describes_arrays(header["arrays"]):
        raise TraceError(f"the trace at {path} is damaged: header.json is incomplete")
    return header


def _describes_arrays(arrays: Any) -> bool:
    known = {"logits", *REQUIRED}
    return (
        isinstance(arrays, dict)
        and arrays.keys() <= known
        and all(
            isinstance(array, dict) and {"dtype", "shape", "sha256"} <= array.keys()
            for array in arrays.values()
        )
    )


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
