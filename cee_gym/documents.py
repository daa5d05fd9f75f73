"""JSON documents that cee-gym owns: written whole or not at all, read or refused in one line."""

import json
import os
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

    It is written beside its place, flushed to the disk, and then renamed.

    Args:
        path: its folder must exist.
        document: JSON-able, without NaN and infinity.
    """
    path = Path(path)
    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    unfinished = path.with_name(f".{path.name}.partial")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def readable_as_others(path: Path) -> None:
    """Gives a file the permissions of any new one: safetensors lets nobody but its owner read."""
    path.chmod(0o666 & ~_UMASK)


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
