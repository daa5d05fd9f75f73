"""Recordings: the traces of one benchmark, split by split, and where they are found.

A recording is a directory with one trace per split (`train`, `calibration`, `dev`, perhaps `test`)
and a `recording.json`. A few are shipped in the package; the others are made by `cee-gym build` and
live in `home()`.
"""

import os
from pathlib import Path

from cee_gym.documents import read_document, refused_if_damaged
from cee_gym.errors import TraceError
from cee_gym.tasks import Task, get_task
from cee_gym.tasks.base import OWN
from cee_gym.traces.header import FILE
from cee_gym.traces.trace import Trace, open_trace

SPLITS = ("train", "calibration", "dev", "test")
RECORDING = "recording.json"
_SHIPPED = Path(__file__).parents[1] / "shipped"


class MissingRecordingError(TraceError):
    """A benchmark is not recorded on this machine; the message names the command that does it."""


def home() -> Path:
    """The folder of the user's own recordings: `$CEE_GYM_HOME`, or `~/.cache/cee_gym`."""
    return Path(os.environ.get("CEE_GYM_HOME") or "~/.cache/cee_gym").expanduser()


def find_recording(id: str) -> Path:
    """The directory of a benchmark's recording: the shipped one, or else the user's own.

    Args:
        id: a registered id, such as `"EarlyExit-BERT-RTE"`; MODULE: may stand before it.

    Raises:
        MissingRecordingError: if it is recorded in neither place.
    """
    name = id.rpartition(":")[2]
    places = [_SHIPPED / name, home() / name]
    for place in places:
        if recorded_splits(place):
            return place
    raise MissingRecordingError(
        f"{name} is not recorded here (looked in {places[0]} and {places[1]}): record it with "
        f"`{build_command(id)}`, or give trace=PATH"
    )


def build_command(id: str) -> str:
    """The command that records a benchmark."""
    if shipped_backbone(id) is not None:
        return f"cee-gym build {id}"
    if "LLaMA" in id:
        return f"cee-gym build {id} --backbone DIR_OR_HUB_NAME_OR_GGUF --data DIR_OR_FILE"
    return f"cee-gym build {id} --backbone google-bert/bert-base-uncased --data DIR_OR_HUB_NAME"


def shipped_backbone(id: str) -> Path | None:
    """The weights that come with the package for a benchmark, if any do."""
    path = _SHIPPED / id / "backbone"
    return path if path.is_dir() else None


def local(recording: str | os.PathLike[str]) -> Path:
    """The directory of a recording, or of a single trace, on this machine.

    Args:
        recording: its path, perhaps with `~`; or the address of one elsewhere, which is fetched
            once, see `cee_gym.traces.remote`.

    Raises:
        TraceError: if it cannot be fetched.
    """
    if is_address(recording):
        from cee_gym.traces.remote import fetched

        return fetched(str(recording))
    return Path(recording).expanduser()


def where(recording: str | os.PathLike[str]) -> str:
    """Where a recording is, to be found again from any directory: an address, or a whole path."""
    return str(recording) if is_address(recording) else str(local(recording).resolve())


def recorded_splits(recording: str | os.PathLike[str]) -> list[str]:
    """The splits of which a recording has a trace, in the order of `SPLITS`; see `local`."""
    path = local(recording)
    return [split for split in SPLITS if (path / split / FILE).is_file()]


def recorded_task(trace: Trace) -> Task:
    """The task that a recording is of.

    Args:
        trace: one of its splits.

    Raises:
        CeeGymError: if it is not available, or is written down in a `recording.json` that is
            missing or damaged.
    """
    if trace.header.task != OWN:
        return get_task(trace.header.task)
    file, remedy = trace.path.parent / RECORDING, "record it again"
    document = read_document(file, "description of a recording", remedy=remedy)
    with refused_if_damaged(str(file), remedy):
        return Task.from_json(document["task"])


def is_address(path: str | os.PathLike[str]) -> bool:
    """Whether something is an address such as `hf://datasets/OWNER/NAME`, and no path.

    >>> [is_address(path) for path in ("hf://datasets/a/b", "runs/a", Path("/a"), "file:///a")]
    [True, False, False, True]
    """
    return isinstance(path, str) and "://" in path


def open_split(path: str | os.PathLike[str], split: str) -> Trace:
    """Opens one split of a recording; one that is open already is not opened twice.

    Args:
        path: of a recording or a single trace, or the address of one; see `local`.
        split: the wanted split. A single trace must be of this split.

    Raises:
        TraceError: if there is no such split, naming those there are, or its trace is damaged.
    """
    path = local(path)
    if (path / FILE).is_file():
        trace = open_trace(path)
        if trace.header.split != split:
            raise TraceError(
                f"the trace at {path} is of split {trace.header.split!r}, not {split!r}: "
                f"give split={trace.header.split!r}, or another trace"
            )
        return trace
    splits = recorded_splits(path)
    if not splits:
        raise TraceError(f"there is neither a recording nor a trace at {path}")
    if split not in splits:
        raise TraceError(
            f"the recording at {path} has no split {split!r}; it has {', '.join(splits)}"
        )
    return open_trace(path / split)
