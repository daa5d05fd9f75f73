"""Files that cee-gym owns: written whole or not at all; JSON is read, or refused in one line."""

import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cee_gym.errors import CeeGymError, first_line

# What new files may be, as the process was started: there is no way only to look at it.
_UMASK = os.umask(0)
os.umask(_UMASK)
ILL_TYPED = (KeyError, TypeError, AttributeError, ValueError, OverflowError)


def write_document(path: str | os.PathLike[str], document: Mapping[str, Any]) -> None:
    """Writes a JSON object so that a crash, of the power too, leaves the old file or the new one.

    Args:
        path: its folder must exist.
        document: JSON-able, without NaN and infinity.
    """
    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    with written_whole(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


@contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a file to write in a block, which takes the place of `path` when the block ends.

    It is written beside its place, flushed to the disk, and then renamed: a crash, of the power
    too, leaves the old file or the new one, and so does an error in the block. What a killed
    command leaves beside it, the next one writes over.

    Args:
        path: its folder must exist.
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.partial")
    try:
        yield unfinished
        _finish(unfinished)
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


@contextmanager
def written_into(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a folder to write files into, each of which is then whole in `folder`, or not there.

    For what other libraries write, which write over the files that are there. Files of other names
    stay. After an error in the block nothing has changed.

    Args:
        folder: made where there is none.
    """
    folder = Path(folder)
    unfinished = folder / ".partial"
    shutil.rmtree(unfinished, ignore_errors=True)  # a killed command left it
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        files = [file for file in sorted(unfinished.rglob("*")) if file.is_file()]
        for file in files:
            _finish(file)
        for file in files:
            place = folder / file.relative_to(unfinished)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, place)
            _sync_folder(place.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def publish(unfinished: Path, finished: Path) -> None:
    """Gives a folder its final name, once all that is in it is on the disk.

    Args:
        unfinished: complete.
        finished: does not exist; its folder does.
    """
    for path in unfinished.rglob("*"):
        if path.is_file() and not path.is_symlink():
            _finish(path)
        elif path.is_dir():
            _sync_folder(path)
    _sync_folder(unfinished)
    unfinished.rename(finished)
    _sync_folder(finished.parent)


def _finish(file: Path) -> None:
    """Flushes a file to the disk, and gives it the permissions of any new one.

    safetensors lets nobody but its owner read.
    """
    file.chmod(0o666 & ~_UMASK)
    with file.open("r+b") as opened:
        os.fsync(opened.fileno())


def read_document(
    path: str | os.PathLike[str],
    what: str,
    *,
    remedy: str,
    format: str | None = None,
    versions: Collection[int] | None = None,
    error: type[CeeGymError] = CeeGymError,
) -> dict[str, Any]:
    """Reads a JSON object that `write_document` wrote.

    Args:
        path: of the file.
        what: it is, for messages: `"profile"`.
        remedy: what to do where it is damaged or of another version: `"profile again"`.
        format: the value its `format` must have; None where it has none.
        versions: those of its `version` that can be read; None where it has none.
        error: the kind of error to raise.

    Raises:
        CeeGymError: of the given kind, if there is none, or it is damaged, foreign or of another
            version.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise error(f"there is no {what} at {path}") from None
    except OSError as failure:
        raise error(f"the {what} at {path} cannot be read ({failure.strerror})") from None
    except (ValueError, RecursionError) as failure:
        raise error(f"the {what} at {path} is damaged ({first_line(failure)}): {remedy}") from None
    if not isinstance(document, dict):
        raise error(f"the {what} at {path} is damaged (it is no JSON object): {remedy}")
    if format is not None and document.get("format") != format:
        raise error(f"{path} is not a {format}")
    if versions is not None and document.get("version") not in list(versions):
        raise error(
            f"the {what} at {path} is of version {document.get('version')}, this cee-gym reads "
            f"version {', '.join(map(str, sorted(versions)))}: {remedy}"
        )
    return document


@contextmanager
def refused_if_damaged(
    what: str, remedy: str, kinds: tuple[type[Exception], ...] = ILL_TYPED
) -> Iterator[None]:
    """Tells in one line that something read does not hold what it should.

    Args:
        what: it is and where, for the message: `"the agent at DIRECTORY"`.
        remedy: what to do: `"train it again"`.
        kinds: of errors that damage brings about; by default those of a missing or ill-typed value.

    Raises:
        CeeGymError: in place of an error of these kinds; one of its own passes as it is.
    """
    try:
        yield
    except CeeGymError:
        raise
    except kinds as failure:
        raise CeeGymError(f"{what} is damaged ({first_line(failure)}): {remedy}") from failure


def _sync_folder(folder: Path) -> None:
    """Makes a renaming outlive a loss of power, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError:  # some network file systems cannot
        pass
    finally:
        os.close(handle)
