"""Your own text: its classes are read, it is written down, and one file is shared out."""

import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from cee_gym.errors import CeeGymError, DataError
from cee_gym.tasks import Task, get_task, load_splits, own_task, register_task
from cee_gym.tasks.base import OWN


def write(file: Path, labels: list, texts: list | None = None) -> None:
    rows = zip(texts or [f"text {n}" for n in range(len(labels))], labels, strict=True)
    lines = [json.dumps({"said": text, "mood": label}) for text, label in rows]
    file.write_text("\n".join(lines) + "\n")


def task_of(folder: Path, labels: list) -> Task:
    write(folder / "train.jsonl", labels)
    write(folder / "dev.jsonl", labels)
    return own_task(str(folder), text="said", label="mood")


def refusal(*args: str, **kwargs: str) -> str:
    with pytest.raises(DataError) as caught:
        load_splits(own_task(*args, **kwargs), args[0])
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["so so", "bad", "good", "bad"], ("bad", "good", "so so")),
        ([10, 3, 10, 4], ("3", "4", "10")),
        (["10", "3", "10", "-4"], ("-4", "3", "10")),
        (["10", "3", "10", "b"], ("10", "3", "b")),
        ([True, False, True], ("false", "true")),
        ([1, 0, 1], ("0", "1")),
    ],
)
def test_classes_are_those_of_train_in_order(tmp_path, labels, classes) -> None:
    task = task_of(tmp_path, labels)
    assert task.labels == classes
    names = [str(label).lower() for label in labels]
    for split in load_splits(task, str(tmp_path)).values():
        assert [task.labels[number] for number in split["label"]] == names


def test_a_task_of_ones_own_reports_accuracy_and_macro_f1(tmp_path) -> None:
    assert task_of(tmp_path, [3, 4, 4]).metrics == ("accuracy", "macro_f1")


@pytest.mark.parametrize("columns", [("said", None, "mood"), ("said", "heard", "mood")])
def test_a_task_is_written_down_and_made_again(tmp_path, columns) -> None:
    text, pair, label = columns
    rows = [dict.fromkeys(filter(None, (text, pair)), "words") | {label: n % 2} for n in range(4)]
    for split in ("train", "dev"):
        (tmp_path / f"{split}.json").write_text(json.dumps(rows))
    task = own_task(str(tmp_path), text=text, pair=pair, label=label)
    assert Task.from_json(json.loads(json.dumps(task.to_json()))) == task
    assert task.to_json()["labels"] == ["0", "1"]
    assert get_task("rte").to_json() == "rte"
    assert Task.from_json("rte") is get_task("rte")


def test_its_name_is_nobody_elses() -> None:
    with pytest.raises(CeeGymError, match="'own-data' is taken"):
        register_task(Task(OWN, labels=("a", "b"), text="text"))


def test_classes_are_never_read_as_their_numbers(tmp_path) -> None:
    write(tmp_path / "train.jsonl", [3, 4, 5] * 2)
    write(tmp_path / "dev.jsonl", [3, 2])
    said = refusal(str(tmp_path), text="said", label="mood")
    assert said == f"{tmp_path}/dev.jsonl, row 1: label 2 is none of train's: 3, 4, 5"
    write(tmp_path / "train.jsonl", ["a", "b", "a"])
    write(tmp_path / "dev.jsonl", ["1"])
    said = refusal(str(tmp_path), text="said", label="mood")
    assert said == f"{tmp_path}/dev.jsonl, row 0: label '1' is none of train's: a, b"


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["a", "b", "", "a"], "train.jsonl, column mood, row 2: the label is missing"),
        (["a", "b", None, "a"], "train.jsonl, column mood, row 2: the label is missing"),
        (["a", "b", "  ", "a"], "train.jsonl, column mood, row 2: the label is missing"),
        ([1, 2.5, 1], "train.jsonl, column mood, row 1: 2.5 is a decimal number, and regression"),
        ([1.0, 2.0, 1.0], "train.jsonl, column mood, row 0: 1.0 is a decimal number"),
        (["2.0", "3.5", "2.0"], "train.jsonl, column mood: 2.0 is a decimal number"),
        (["a", ["b"], "a"], "train.jsonl, column mood, row 1: ['b'] is no class"),
        (["a"] * 3, "train.jsonl, column mood: all 3 rows are of one class, 'a'"),
        (["a", "b", "c"], "train.jsonl, column mood: no two of the 3 rows are of the same class"),
    ],
)
def test_labels_that_are_no_classes(tmp_path, labels, said) -> None:
    write(tmp_path / "train.jsonl", labels)
    write(tmp_path / "dev.jsonl", ["a"])
    assert refusal(str(tmp_path), text="said", label="mood").startswith(f"{tmp_path}/{said}")


def test_columns_that_there_are_not(tmp_path) -> None:
    write(tmp_path / "train.jsonl", ["a", "b", "a"])
    write(tmp_path / "dev.jsonl", ["a"])
    said = refusal(str(tmp_path), text="said", label="moods")
    assert said == f"{tmp_path}/train.jsonl: no column moods; it has said, mood"
    said = refusal(str(tmp_path), text="mood", label="mood")
    assert said.endswith("a column of its own, got text 'mood', label 'mood'")
    said = refusal(str(tmp_path), text="said", label="mood", pair="said")
    assert said.endswith("a column of its own, got text 'said', pair 'said', label 'mood'")
    write(tmp_path / "dev.jsonl", ["a"], texts=[3])
    said = refusal(str(tmp_path), text="said", label="mood")
    assert said == f"{tmp_path}/dev.jsonl, column said, row 0: 3 is not a text but a int"


def test_test_without_labels_is_left_out(tmp_path) -> None:
    task = task_of(tmp_path, ["a", "b", "a"])
    (tmp_path / "test.jsonl").write_text('{"said": "x"}\n')
    assert list(load_splits(task, str(tmp_path))) == ["train", "dev"]
    write(tmp_path / "test.jsonl", ["b"])
    assert load_splits(task, str(tmp_path))["test"]["label"] == [1]


@pytest.mark.parametrize("suffix", ["tsv", "csv", "json", "jsonl", "parquet"])
def test_one_file_is_shared_out_by_class_the_same_way_every_time(tmp_path, suffix) -> None:
    names = ["often"] * 60 + ["seldom"] * 39 + ["once"]
    texts = [f"text {n}" for n in range(100)]
    file = tmp_path / f"all.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table({"said": texts, "mood": names}), file)
    elif suffix == "json":
        rows = [{"said": t, "mood": n} for t, n in zip(texts, names, strict=True)]
        file.write_text(json.dumps(rows))
    elif suffix == "jsonl":
        write(file, names, texts)
    else:
        tab = "\t" if suffix == "tsv" else ","
        lines = [f"{t}{tab}{n}" for t, n in zip(texts, names, strict=True)]
        file.write_bytes("\r\n".join([f"said{tab}mood", *lines, ""]).encode())
    task = own_task(str(file), text="said", label="mood")
    assert task.labels == ("often", "once", "seldom")
    splits = load_splits(task, str(file))
    assert sorted([*splits["train"]["text"], *splits["dev"]["text"]]) == sorted(texts)
    assert Counter(splits["dev"]["label"]) == {0: 12, 2: 8}
    assert Counter(splits["train"]["label"]) == {0: 48, 1: 1, 2: 31}
    for split, data in splits.items():  # a row is named by its place in the file
        assert data["row_id"] == [f"{split}/{text.split()[1]}" for text in data["text"]]
    again = load_splits(task, str(file))
    assert again["dev"].to_dict() == splits["dev"].to_dict()
    assert splits["dev"]["text"] != [f"text {n}" for n in range(4, 100, 5)]


def test_files_that_do_not_serve(tmp_path) -> None:
    file = tmp_path / "all.jsonl"
    write(file, ["a", "b", "a"])
    said = refusal(str(file), text="said", label="mood")
    assert said.startswith(f"{file}: 3 rows are too few to share out into train and dev")
    said = refusal(str(tmp_path), text="said", label="mood")
    assert said.endswith("; or give the one file itself")
    said = refusal(str(tmp_path / "al.jsonl"), text="said", label="mood")
    assert said == f"--data {tmp_path}/al.jsonl: there is no such directory or file"
    said = refusal("al.jsonl", text="said", label="mood")
    assert said == "--data al.jsonl: there is no such directory or file"
    (tmp_path / "all.xlsx").write_text("said\n")
    said = refusal(str(tmp_path / "all.xlsx"), text="said", label="mood")
    assert said.endswith("Let its name end with .tsv, .csv, .json, .jsonl, .parquet")
    (tmp_path / "all.json").write_text('[{"said": "a", "mood": "b"}, 3]')
    said = refusal(str(tmp_path / "all.json"), text="said", label="mood")
    assert "cannot be read as json: entry 2 of the list is not a JSON object" in said


def test_a_hub_dataset_with_named_classes(monkeypatch) -> None:
    features = Features({"said": Value("string"), "mood": ClassLabel(names=["good", "bad"])})
    split = Dataset.from_dict({"said": ["x", "y", "z"], "mood": [0, 1, 1]}, features=features)
    found = DatasetDict({"train": split, "validation": split})
    monkeypatch.setattr("datasets.load_dataset", lambda *name: found)
    task = own_task("somebody/moods", text="said", label="mood")
    assert task.labels == ("bad", "good")
    assert load_splits(task, "somebody/moods")["dev"]["label"] == [1, 0, 0]
