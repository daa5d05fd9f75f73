"""The header of a trace: what was recorded, of which text, by which model, in which arrays."""

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from cee_gym.documents import read_document, write_document
from cee_gym.errors import TraceError

FORMAT = "cee-gym trace"
VERSION = 2
FILE = "header.json"
# Name -> the types and the axes of an array: N instances, L exits, states H wide, C classes.
ARRAYS: dict[str, tuple[tuple[str, ...], str]] = {
    "states": (("f2", "f4"), "NLH"),
    "loss": (("f4",), "NL"),
    "prediction": (("i4",), "NL"),
    "confidence": (("f4",), "NL"),
    "entropy": (("f4",), "NL"),
    "labels": (("i4",), "N"),
    "row_ids": (("U",), "N"),
    "logits": (("f4",), "NLC"),
    "gap": (("f4",), "NL"),
    "sequence": (("i8",), "N"),
    "position": (("i4",), "N"),
}
OPTIONAL = {"logits", "gap", "sequence", "position"}


@dataclass(frozen=True)
class ArrayEntry:
    """What a header says of one array.

    Attributes:
        dtype: as numpy writes it, such as `"<f4"`.
        shape: of the array.
        sha256: of its file.
    """

    dtype: str
    shape: tuple[int, ...]
    sha256: str


@dataclass(frozen=True, kw_only=True)
class TraceHeader:
    """Where a trace comes from. Equal headers are of the same recording.

    Attributes:
        task: the name of the task.
        split: `"train"`, `"calibration"`, `"dev"` or `"test"`.
        backbone: the name of the backbone.
        num_labels: C, how many answers there are.
        depths: the layer number, from 1, that each of the L exits stands at; rising.
        labels: the C class names; None where the answers are a vocabulary.
        target: what `correct` compares an exit's answer with: the `"label"`, or at `"full_depth"`
            the answer of the last exit.
        model: the fingerprint of the weights; None where they are not known.
        policy_data: how train was shared out between backbone and policy.
        seed: of the warm-up and that sharing.
        max_tokens: where texts were cut.
        text: a hash of the texts.
        versions: of Python and the libraries that recorded it.
        created: when it was published, in UTC, as ISO 8601 has it; empty before.
        fingerprint: names the content: equal for two traces if and only if all their arrays are
            equal; empty before it is published.
        arrays: what is recorded, by name; empty before it is published.

    Raises:
        TraceError: if a field is of the wrong kind, or fields contradict each other.
    """

    task: str
    split: str
    backbone: str
    num_labels: int
    depths: tuple[int, ...]
    labels: tuple[str, ...] | None = None
    target: Literal["label", "full_depth"] = "label"
    model: str | None = None
    policy_data: str | None = None
    seed: int | None = None
    max_tokens: int | None = None
    text: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    fingerprint: str = ""
    arrays: Mapping[str, ArrayEntry] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("task", "split", "backbone", "created", "fingerprint"):
            self._require(name, isinstance(getattr(self, name), str), "text")
        for name in ("model", "policy_data", "text"):
            self._require(name, isinstance(getattr(self, name), str | None), "text or null")
        for name in ("seed", "max_tokens"):
            self._require(name, isinstance(getattr(self, name), int | None), "a number or null")
        self._require("num_labels", _counts([self.num_labels]), "a whole number from 1 up")
        self._require(
            "depths",
            isinstance(self.depths, tuple) and _counts(self.depths) and _rises(self.depths),
            "a tuple of whole numbers from 1 up that rise",
        )
        self._require("target", self.target in ("label", "full_depth"), "'label' or 'full_depth'")
        if self.labels is not None:
            named = isinstance(self.labels, tuple) and len(self.labels) == self.num_labels
            self._require(
                "labels",
                named and all(isinstance(label, str) for label in self.labels),
                f"a tuple of {self.num_labels} names of classes, or null",
            )
        if self.arrays:
            self._check_arrays()

    def _require(self, name: str, holds: bool, what: str) -> None:
        if not holds:
            raise TraceError(f"{name} must be {what}, got {getattr(self, name)!r:.100}")

    def _check_arrays(self) -> None:
        if missing := ARRAYS.keys() - OPTIONAL - self.arrays.keys():
            raise TraceError(f"it has no {', '.join(sorted(missing))}")
        if unknown := self.arrays.keys() - ARRAYS.keys():
            raise TraceError(f"it has an unknown array {', '.join(sorted(unknown))}")
        if ("sequence" in self.arrays) != ("position" in self.arrays):
            raise TraceError("it has only one of sequence and position")
        states = self.arrays["states"].shape
        size, width = (states[0], states[2]) if len(states) == 3 else (0, 0)
        sizes = {"N": size, "L": len(self.depths), "H": width, "C": self.num_labels}
        for name, entry in self.arrays.items():
            dtypes, axes = ARRAYS[name]
            shape = tuple(sizes[axis] for axis in axes)
            if entry.shape != shape or 0 in shape or not entry.dtype[1:].startswith(dtypes):
                raise TraceError(
                    f"{name} must be {' or '.join(dtypes)} {list(shape)} where there are "
                    f"{size} instances, {len(self.depths)} exits and {self.num_labels} classes, "
                    f"got {entry.dtype} {list(entry.shape)}"
                )


def read_header(path: Path) -> TraceHeader:
    """Reads the header of a trace, of version 1 too.

    Args:
        path: the directory of the trace.

    Raises:
        TraceError: if there is no trace, or the header is damaged, foreign, of another version, or
            contradicts itself.
    """
    document = read_document(
        path / FILE,
        "trace",
        remedy="record it again, or install the cee-gym that wrote it",
        format=FORMAT,
        versions=(1, VERSION),
        error=TraceError,
    )
    try:
        labels, arrays = document["labels"], document["arrays"]
        if document.pop("version") == 1:  # every layer had an exit, and every answer a name
            document["num_labels"] = len(labels)
            document["depths"] = range(1, arrays["states"]["shape"][1] + 1)
        document |= {
            "depths": tuple(document["depths"]),
            "labels": None if labels is None else tuple(labels),
            "arrays": {
                name: ArrayEntry(**entry | {"shape": tuple(entry["shape"])})
                for name, entry in arrays.items()
            },
        }
        del document["format"]
        return TraceHeader(**document)
    except TraceError as error:
        reason = str(error)
    except KeyError as error:
        reason = f"it has no {error.args[0]}"
    except (AttributeError, IndexError, TypeError):
        reason = "it is incomplete, or holds what a header does not"
    raise TraceError(f"the trace at {path} is damaged: {FILE}: {reason}; record it again")


def write_header(path: Path, header: TraceHeader) -> None:
    """Writes the header of a trace whole or not at all.

    Args:
        path: the directory of the trace.
        header: what to write.
    """
    write_document(path / FILE, {"format": FORMAT, "version": VERSION, **asdict(header)})


def library_versions(libraries: Sequence[str]) -> dict[str, str]:
    """The versions of Python and of some libraries, as `TraceHeader.versions` has them."""
    return {"python": platform.python_version(), **{name: version(name) for name in libraries}}


def fingerprint_of(arrays: Mapping[str, ArrayEntry]) -> str:
    """Names the content of some arrays, 16 hexadecimal digits."""
    entries = {name: asdict(entry) for name, entry in arrays.items()}
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()[:16]


def _counts(values: Any) -> bool:
    return len(values) > 0 and all(type(value) is int and value >= 1 for value in values)


def _rises(values: tuple[int, ...]) -> bool:
    return all(low < high for low, high in pairwise(values))
