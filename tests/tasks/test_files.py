"""Rows of files: each whole, or why it cannot be read."""

import pytest

from cee_gym.errors import DataError
from cee_gym.tasks.files import read_json, read_jsonl, read_table


def lines(content: bytes) -> list[bytes]:
    return content.splitlines(keepends=True)


def test_a_table_is_text_and_knows_its_lines() -> None:
    content = b'\xef\xbb\xbfid,text\r\n007,"one\r\ntwo"\r\n\r\n8,"a ""b"""\r\n'
    columns, rows = read_table(lines(content))
    assert columns == ["id", "text"]
    assert list(rows) == [
        (3, {"id": "007", "text": "one\r\ntwo"}),
        (5, {"id": "8", "text": 'a "b"'}),
    ]


def test_quotation_marks_may_be_text() -> None:
    _, rows = read_table(lines(b'"a\t1\n'), separator="\t", quoted=False, columns=["text", "n"])
    assert list(rows) == [(1, {"text": '"a', "n": "1"})]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (b"a\n", "the row has 1 instead of 2 fields (text, n)"),
        (b"a,1,\n", "the row has 3 instead of 2 fields (text, n)"),
        (b"\xff,1\n", "the row is not valid UTF-8"),
        (b'"a"b,1\n', "the row is not a table's"),
    ],
)
def test_a_bad_row_of_a_table_costs_only_itself(row: bytes, why: str) -> None:
    _, rows = read_table([b"text,n\n", row, b"b,2\n"])
    (line, error), good = rows
    assert line == 2
    assert isinstance(error, DataError)
    assert str(error).startswith(why)
    assert good == (3, {"text": "b", "n": "2"})


def test_a_quotation_that_never_ends_is_an_error() -> None:
    _, rows = read_table(lines(b'text,n\n"a,1\nb,2\n'))
    ((_, error),) = rows
    assert "unexpected end of data" in str(error)


def test_a_table_needs_a_line_with_its_columns() -> None:
    with pytest.raises(DataError, match="no line names the columns"):
        read_table([b"\n"])


def test_json_lines_know_their_numbers_and_blank_ones_are_passed_over() -> None:
    rows = list(
        read_jsonl([b'\xef\xbb\xbf{"n": 1}\n', b" \n", b"[]\n", b'{"n": NaN}\n', b"\xff\n"])
    )
    assert rows[0] == (1, {"n": 1})
    assert [(line, str(error)) for line, error in rows[1:]] == [
        (3, "not a JSON object"),
        (4, "the line is not JSON (NaN is no number of JSON)"),
        (5, "the line is not valid UTF-8"),
    ]


@pytest.mark.parametrize(
    "content", [b'[{"a": 1},\n\n {"a": 2}]', b'\xef\xbb\xbf [{"a": 1}, {"a": 2}]\n']
)
def test_json_may_be_one_list(content) -> None:
    assert list(read_json(content)) == [(1, {"a": 1}), (2, {"a": 2})]


def test_json_may_be_lines() -> None:
    content = b'{"a": 1}\r\n\r\n{"a": 2}\r\n'
    assert list(read_json(content)) == [(1, {"a": 1}), (3, {"a": 2})]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b'[{"a": 1}, 2]', "entry 2 of the list is not a JSON object"),
        (b'[{"a": 1}', "it is not JSON"),
        (b'[{"a": NaN}]', "NaN is no number of JSON"),
        (b'[{"a": "\xff"}]', "it is not valid UTF-8"),
    ],
)
def test_a_damaged_list_is_refused(content, why) -> None:
    with pytest.raises(DataError, match=why):
        list(read_json(content))
