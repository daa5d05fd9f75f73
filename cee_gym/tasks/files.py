"""The rows of text files, each with its line: for training and prediction alike.

A row that cannot be read is a `DataError` that says why, in its place.
"""

import csv
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from cee_gym.errors import DataError, first_line

# The number of its last line, and the fields by name or what is wrong.
Row = tuple[int, dict[str, Any] | DataError]
_MARK = b"\xef\xbb\xbf"  # the byte order mark


def read_jsonl(lines: Iterable[bytes]) -> Iterator[Row]:
    """The rows of a file with a JSON object in each line; blank lines are passed over.

    Args:
        lines: of the file, in UTF-8.
    """
    for number, line in enumerate(without_mark(lines), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode(), parse_constant=_refuse, parse_float=_finite)
        except UnicodeDecodeError:
            yield number, DataError("the line is not valid UTF-8")
        except (ValueError, RecursionError) as error:
            yield number, DataError(f"the line is not JSON ({first_line(error)})")
        else:
            yield number, row if isinstance(row, dict) else DataError("not a JSON object")


def read_json(content: bytes) -> Iterator[Row]:
    """The rows of a file that is one list of JSON objects, or has an object in each line.

    Args:
        content: of the file, in UTF-8.

    Raises:
        DataError: if a list is damaged, or holds something else.
    """
    if not content.removeprefix(_MARK).lstrip().startswith(b"["):
        yield from read_jsonl(content.splitlines(keepends=True))
        return
    try:
        rows = json.loads(content.decode("utf-8-sig"), parse_constant=_refuse, parse_float=_finite)
    except UnicodeDecodeError:
        raise DataError("it is not valid UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"it is not JSON ({first_line(error)})") from None
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(f"entry {number} of the list is not a JSON object")
        yield number, row


def read_table(
    lines: Iterable[bytes],
    *,
    separator: str = ",",
    quoted: bool = True,
    columns: Sequence[str] | None = None,
) -> tuple[list[str], Iterator[Row]]:
    """The columns and the rows of a table, whose fields all stay text; blank lines are passed over.

    Args:
        lines: of the file, in UTF-8.
        separator: between two fields.
        quoted: whether quotation marks enclose fields.
        columns: where the first line does not name them.

    Raises:
        DataError: if the first line does not name the columns.
    """
    # So that a field with a broken character costs its row only, and not all that follow.
    decoded = (line.decode("utf-8", "surrogateescape") for line in without_mark(lines))
    reader = csv.reader(
        decoded,
        delimiter=separator,
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
        strict=True,
    )
    if columns is None:
        try:
            columns = next(filter(None, reader), None)
        except csv.Error as error:
            raise DataError(f"the first line is not a table's ({error})") from None
        if columns is None:
            raise DataError("no line names the columns")
    return list(columns), _table_rows(reader, list(columns))


def _table_rows(reader: Any, columns: list[str]) -> Iterator[Row]:
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield reader.line_num, DataError(f"the row is not a table's ({error})")
            continue
        if not fields:
            continue
        if len(fields) != len(columns):
            row: dict[str, Any] | DataError = DataError(
                f"the row has {len(fields)} instead of {len(columns)} fields ({', '.join(columns)})"
            )
        elif not _is_text(fields):
            row = DataError("the row is not valid UTF-8")
        else:
            row = dict(zip(columns, fields, strict=True))
        yield reader.line_num, row


def without_mark(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The lines without a byte order mark."""
    for number, line in enumerate(lines):
        yield line.removeprefix(_MARK) if number == 0 else line


def _is_text(fields: Sequence[str]) -> bool:
    try:
        "".join(fields).encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def _finite(number: str) -> float:
    """Refuses 1e999, which Python reads as infinity and could not write again."""
    found = float(number)
    if math.isinf(found):
        raise ValueError(f"{number} is too large a number")
    return found
