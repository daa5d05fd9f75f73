"""Tables of plain text that fit a terminal."""

import shutil
import textwrap
from collections.abc import Sequence

LEAST_FIRST = 12  # to which the first column may shrink


def aligned(cells: Sequence[Sequence[str]], width: int | None = None) -> str:
    """Rows of cells, the first the head, as a table of plain text.

    Where it would be too wide, the head is broken between words, and then the first column.

    Args:
        cells: as many in each row; the first column is text, the others are numbers.
        width: in characters; by default that of the terminal, and 80 where there is none.
    """
    width = width or _terminal_width()
    head, *rows = cells
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    gaps = 2 * (len(widths) - 1)
    if sum(widths) + gaps > width:
        for column in range(1, len(head)):
            whole = [*head[column].split(), *(row[column] for row in rows)]
            widths[column] = max(map(len, whole))
        rest = width - gaps - sum(widths[1:])
        widths[0] = min(widths[0], max(rest, LEAST_FIRST))
    lines = [line for row in cells for line in _broken(row, widths)]
    tall = len(_broken(head, widths))
    rule = "-" * max(map(len, lines))
    return "\n".join([*lines[:tall], rule, *lines[tall:]])


def _broken(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    """The lines of a row: text from its first line on, numbers on the last."""
    parts = [textwrap.wrap(cell, width) or [""] for cell, width in zip(row, widths, strict=True)]
    tall = max(map(len, parts))
    first, *others = parts
    columns = [
        [part.ljust(widths[0]) for part in first + [""] * (tall - len(first))],
        *(
            [part.rjust(width) for part in [""] * (tall - len(other)) + other]
            for other, width in zip(others, widths[1:], strict=True)
        ),
    ]
    return ["  ".join(line).rstrip() for line in zip(*columns, strict=True)]


def paragraph(text: str, indent: int = 0) -> str:
    """A text broken between words to fit the terminal, each line that far from the left."""
    space = " " * indent
    return textwrap.fill(
        text,
        _terminal_width(),
        initial_indent=space,
        subsequent_indent=space,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _terminal_width() -> int:
    return shutil.get_terminal_size((80, 24)).columns
