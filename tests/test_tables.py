"""Tables of plain text that fit a terminal."""

import hypothesis
import hypothesis.strategies as st

from cee_gym.tables import aligned, paragraph

HEAD = ["policy", "leaves above", "accuracy", "saved layers"]
ROW = ["lost-1: at most 1 points lost on calibration", "0.3773", "0.817", "79.5%"]


def test_a_table_that_fits_is_one_line_a_row() -> None:
    lines = aligned([HEAD, ROW], 200).splitlines()
    assert len(lines) == 3
    assert lines[1] == "-" * max(len(lines[0]), len(lines[2]))
    assert lines[2].split()[-3:] == ROW[1:]


def test_one_that_does_not_is_broken_between_words() -> None:
    lines = aligned([HEAD, ROW], 50).splitlines()
    assert max(map(len, lines)) <= 50
    assert [line.split() for line in lines[:2]] == [
        ["policy", "leaves", "saved"],
        ["above", "accuracy", "layers"],
    ]
    assert lines[-1].split()[-3:] == ROW[1:]
    text = " ".join(line[:20].strip() for line in lines[3:])
    assert text.startswith("lost-1: at most 1")


NUMBER = st.from_regex(r"[0-9.]{1,6}", fullmatch=True)


@hypothesis.given(
    st.lists(
        st.tuples(
            st.text("ab ", max_size=60), *[st.from_regex(r"[0-9.]{1,6}", fullmatch=True)] * 3
        ),
        min_size=1,
        max_size=5,
    ),
    st.integers(45, 120),
)
def test_no_line_is_wider_than_asked_and_no_number_is_lost(rows, width) -> None:
    lines = aligned([HEAD, *map(list, rows)], width).splitlines()
    assert max(map(len, lines)) <= width
    shown = " ".join(lines).split()
    for row in rows:
        assert all(number in shown for number in row[1:])


def test_a_table_may_have_a_head_alone() -> None:
    assert aligned([HEAD], 30).splitlines()[0].startswith("policy")


def test_a_paragraph_stands_at_its_indent() -> None:
    lines = paragraph("a word and another " * 20, 4).splitlines()
    assert all(line.startswith("    ") for line in lines)
