"""Prompts and answers from files."""

import json
from pathlib import Path

import pytest

from cee_gym.errors import DataError
from cee_gym.tasks.prompted import Example, PromptedTask, get_prompted, load_examples

ROWS = [{"instruction": f"say {n}", "input": "", "output": f"{n}"} for n in range(20)]


def test_one_file_is_shared_out_the_same_way_each_time(tmp_path: Path) -> None:
    (tmp_path / "all.json").write_text(json.dumps(ROWS))
    first, again = (load_examples(get_prompted("dolly"), str(tmp_path)) for _ in range(2))
    assert first == again
    assert len(first["dev"]) == 4
    assert len({e.row_id for split in first.values() for e in split}) == 20
    assert Example("train/3", "say 3", "3") in [*first["train"], *first["dev"]]


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_a_directory_with_both_splits(tmp_path: Path, suffix: str) -> None:
    for split in ("train", "validation"):
        text = "\n".join(map(json.dumps, ROWS[:3]))
        if suffix == "csv":
            text = "instruction,input,output\nsay 1,,1\nsay 2,,2\n"
        (tmp_path / f"{split}.{suffix}").write_text(text)
    found = load_examples(get_prompted("alpaca"), str(tmp_path))
    assert set(found) == {"train", "dev"}
    assert found["dev"][0].row_id == "dev/0"


def test_more_input_is_part_of_the_prompt() -> None:
    task = get_prompted("alpaca")
    assert task.prompt({"instruction": "a", "input": "b"}) == "a\n\nb"
    assert task.prompt({"instruction": "a", "input": ""}) == "a"


def test_the_built_in_stories_need_no_data() -> None:
    found = load_examples(get_prompted("stories"))
    assert (len(found["train"]), len(found["dev"])) == (800, 200)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"instruction": "a"}], "row 0"),
        ([{"instruction": "a", "output": 3}], "must be texts"),
        ([{"instruction": "a", "output": " "}], "no rows with an answer"),
        ([ROWS[0]], "too few"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, rows: list, message: str) -> None:
    file = tmp_path / "all.json"
    file.write_text(json.dumps(rows))
    with pytest.raises(DataError, match=message):
        load_examples(get_prompted("dolly"), str(file))


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such"):
        load_examples(get_prompted("dolly"), str(tmp_path / "none"))
    with pytest.raises(DataError, match="must hold"):
        load_examples(get_prompted("dolly"), str(tmp_path))
    with pytest.raises(DataError, match="no source"):
        load_examples(PromptedTask("own", prompt=str, answer="a"))
    (tmp_path / "all.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        load_examples(get_prompted("dolly"), str(tmp_path))
