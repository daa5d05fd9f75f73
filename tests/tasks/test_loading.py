"""How labelled text is read: GLUE's quirks, other formats, bad input, and real data."""

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from cee_gym.errors import DataError
from cee_gym.tasks import Task, get_task, load_splits

Write = Callable[..., str]
OPINION = Task("opinion", labels=("negative", "positive"), text="sentence")
ONE_ROW = '{"sentence": "fine", "label": 1}\n'


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes files, by name, into a data directory, and names the directory."""
    directory = tmp_path / "data"
    directory.mkdir()

    def write_files(**files: str | bytes) -> str:
        for name, content in files.items():
            file = directory / name.replace("__", ".")
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(directory)

    return write_files


def refusal(task: Task, data: str | None) -> str:
    """What is said of data that is refused: one line."""
    with pytest.raises(DataError) as caught:
        load_splits(task, data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rows(dataset: Dataset) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in dataset]


# GLUE's own tsv files


def test_quotation_marks_in_glue_are_text(write: Write) -> None:
    data = write(
        train__tsv='sentence\tlabel\n"so good\t1\nnot " so "\t0\n"all of it"\t1\n',
        dev__tsv="sentence\tlabel\n' fine\t1\n",
    )
    splits = load_splits(get_task("sst2"), data)
    assert splits["train"]["text"] == ['"so good', 'not " so "', '"all of it"']
    assert splits["dev"]["text"] == ["' fine"]


def test_quotation_marks_elsewhere_enclose_fields(write: Write) -> None:
    content = 'text\tlabel\r\n"one\ttwo, ""three"""\tdonate\r\nhi\thi\r\n'
    splits = load_splits(get_task("mcid"), write(train__tsv=content, dev__tsv=content))
    assert rows(splits["train"]) == [
        ("train/0", 'one\ttwo, "three"', 2),
        ("train/1", "hi", 3),
    ]


def test_cola_has_no_header(write: Write) -> None:
    data = write(
        train__tsv="gj04\t1\t\tOur friends won't buy this.\nr-67\t0\t*\tThey drank the pub.\n",
        dev__tsv="gj04\t1\t\tThe sailors rode the breeze.\n",
        test__tsv="index\tsentence\n0\tBill whistled past the house.\n",
    )
    splits = load_splits(get_task("cola"), data)
    assert rows(splits["train"]) == [
        ("train/0", "Our friends won't buy this.", 1),
        ("train/1", "They drank the pub.", 0),
    ]
    assert rows(splits["dev"]) == [("dev/0", "The sailors rode the breeze.", 1)]
    assert "test" not in splits


def test_cola_with_a_header_is_read_by_its_names(write: Write) -> None:
    content = "label\tsentence\n0\tThey drank the pub.\n"
    splits = load_splits(get_task("cola"), write(train__tsv=content, dev__tsv=content))
    assert rows(splits["train"]) == [("train/0", "They drank the pub.", 0)]


def test_mrpc_has_columns_of_its_own_and_a_byte_order_mark(write: Write) -> None:
    header = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    data = write(
        train__tsv=header + '1\t70\t71\tHe said " yes .\tYes , he said .\n',
        dev__tsv="\ufeff" + header + "0\t80\t81\tOne .\tTwo .\n",
        test__tsv="\ufeffindex\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t1\t2\tA\tB\n",
    )
    splits = load_splits(get_task("mrpc"), data)
    assert rows(splits["train"]) == [("train/0", 'He said " yes .', 1, "Yes , he said .")]
    assert rows(splits["dev"]) == [("dev/0", "One .", 0, "Two .")]
    assert splits["dev"].column_names == ["row_id", "text", "label", "pair"]
    assert "test" not in splits


def test_qqp_calls_its_label_is_duplicate(write: Write) -> None:
    content = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n9\t1\t2\tWhy?\tHow?\t1\n"
    splits = load_splits(get_task("qqp"), write(train__tsv=content, dev__tsv=content))
    assert rows(splits["dev"]) == [("dev/0", "Why?", 1, "How?")]


def test_of_mnli_the_matched_dev_split_is_taken(write: Write) -> None:
    header = "index\tgenre\tsentence1\tsentence2\tlabel1\tgold_label\n"
    data = write(
        train__tsv=header + "0\tfiction\tIt rains.\tIt is wet.\tneutral\tentailment\n",
        dev_matched__tsv=header + "0\tfiction\tIt rains.\tIt is dry.\tneutral\tcontradiction\n",
        dev_mismatched__tsv=header + "0\tletters\tA\tB\tneutral\tneutral\n",
    )
    splits = load_splits(get_task("mnli"), data)
    assert rows(splits["train"]) == [("train/0", "It rains.", 0, "It is wet.")]
    assert rows(splits["dev"]) == [("dev/0", "It rains.", 2, "It is dry.")]


def test_line_ends_of_windows_are_no_part_of_a_label(write: Write) -> None:
    content = "index\tsentence1\tsentence2\tlabel\r\n0\tA.\tB.\tnot_entailment\r\n"
    splits = load_splits(get_task("rte"), write(train__tsv=content, dev__tsv=content))
    assert rows(splits["train"]) == [("train/0", "A.", 1, "B.")]


@pytest.mark.parametrize(
    "test",
    [
        "sentence\tlabel\nfine\t-1\nbad\t-1\n",
        "sentence\tlabel\nfine\t\n",
        "index\tsentence\n0\tfine\n",
    ],
)
def test_a_test_split_with_hidden_labels_is_left_out(write: Write, test: str) -> None:
    content = "sentence\tlabel\nfine\t1\n"
    data = write(train__tsv=content, dev__tsv=content, test__tsv=test)
    assert load_splits(OPINION, data).keys() == {"train", "dev"}


@pytest.mark.parametrize("label", ["-1", "null"])
def test_hidden_labels_of_json_are_left_out_too(write: Write, label: str) -> None:
    test = f'{{"sentence": "a", "label": {label}}}\n'
    data = write(train__jsonl=ONE_ROW, dev__jsonl=ONE_ROW, test__jsonl=test)
    assert load_splits(OPINION, data).keys() == {"train", "dev"}


def test_a_test_split_with_labels_is_kept(write: Write) -> None:
    content = "sentence\tlabel\nfine\t1\n"
    data = write(train__tsv=content, dev__tsv=content, test__tsv=content)
    assert rows(load_splits(OPINION, data)["test"]) == [("test/0", "fine", 1)]


@pytest.mark.parametrize("split", ["train", "dev"])
def test_hidden_labels_in_other_splits_are_refused(write: Write, split: str) -> None:
    files = {"train__jsonl": ONE_ROW, "dev__jsonl": ONE_ROW}
    files[f"{split}__jsonl"] = '{"sentence": "a", "label": -1}\n'
    message = refusal(OPINION, write(**files))
    assert f"{split}.jsonl, row 0: label -1 is out of range" in message


# Formats


def as_tsv(records: list[dict[str, Any]]) -> bytes:
    header = "\t".join(records[0])
    return "\n".join([header, *("\t".join(map(str, r.values())) for r in records)]).encode()


def as_csv(records: list[dict[str, Any]]) -> bytes:
    lines = [",".join(f'"{value}"' for value in record.values()) for record in records]
    return "\r\n".join([",".join(records[0]), *lines]).encode()


def as_jsonl(records: list[dict[str, Any]]) -> bytes:
    return "\n".join(json.dumps(record) for record in records).encode()


def parquet_of(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def as_parquet(records: list[dict[str, Any]]) -> bytes:
    return parquet_of(pa.Table.from_pylist(records))


FORMATS = {"tsv": as_tsv, "csv": as_csv, "jsonl": as_jsonl, "parquet": as_parquet}


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("dev", ["dev", "validation"])
@pytest.mark.parametrize("labels", [("positive", "negative"), (1, 0), (1.0, 0.0)])
def test_every_format_gives_the_same_rows(
    write: Write, suffix: str, dev: str, labels: tuple[Any, Any]
) -> None:
    records = [
        {"id": 7, "sentence": "schön, ja", "label": labels[0]},
        {"id": 8, "sentence": "n/a", "label": labels[1]},
    ]
    content = FORMATS[suffix](records)
    data = write(**{f"train__{suffix}": content, f"{dev}__{suffix}": content})
    splits = load_splits(OPINION, data)
    assert rows(splits["train"]) == [("train/0", "schön, ja", 1), ("train/1", "n/a", 0)]
    assert rows(splits["dev"]) == [("dev/0", "schön, ja", 1), ("dev/1", "n/a", 0)]
    assert splits["dev"].features["label"] == Value("int64")


@pytest.mark.parametrize("text", ["007", "1e3", "True", "NA", "null", "", " ", "2024-01-01"])
@pytest.mark.parametrize("suffix", ["tsv", "csv"])
def test_text_stays_as_it_is_written(write: Write, suffix: str, text: str) -> None:
    separator = {"tsv": "\t", "csv": ","}[suffix]
    content = f"sentence{separator}label\n{text}{separator}1\n"
    data = write(**{f"train__{suffix}": content, f"dev__{suffix}": content})
    assert load_splits(OPINION, data)["train"]["text"] == [text]


def test_class_numbers_that_come_with_names_are_read_by_the_names(tmp_path: Path) -> None:
    features = Features(
        {"sentence": Value("string"), "label": ClassLabel(names=["positive", "negative"])}
    )
    theirs = Dataset.from_dict({"sentence": ["a", "b"], "label": [0, 1]}, features=features)
    for split in ("train", "dev"):
        theirs.to_parquet(tmp_path / f"{split}.parquet")
    assert load_splits(OPINION, str(tmp_path))["train"]["label"] == [1, 0]


def test_row_ids_name_the_row_of_the_source(write: Write) -> None:
    content = "sentence\tlabel\n" + "same\t0\n" * 5
    splits = load_splits(OPINION, write(train__tsv=content, dev__tsv=content))
    assert splits["train"]["row_id"] == [f"train/{row}" for row in range(5)]
    assert not set(splits["train"]["row_id"]) & set(splits["dev"]["row_id"])


def test_a_file_is_known_by_its_content_and_not_by_its_time(write: Write) -> None:
    data = write(train__jsonl=ONE_ROW, dev__jsonl=ONE_ROW)
    before = (Path(data) / "train.jsonl").stat()
    load_splits(OPINION, data)
    write(train__jsonl='{"sentence": "dull", "label": 0}\n')
    os.utime(Path(data) / "train.jsonl", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert rows(load_splits(OPINION, data)["train"]) == [("train/0", "dull", 0)]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_only_the_columns_that_the_task_needs_are_read(write: Write, suffix: str) -> None:
    records = [{"id": n, "sentence": "a", "label": 1} for n in range(11_000)]
    records[-1]["id"] = "eleven thousand"
    content = FORMATS[suffix](records)
    data = write(**{f"train__{suffix}": content, f"dev__{suffix}": content})
    assert len(load_splits(OPINION, data)["train"]) == 11_000


# Labels are read in one way in all splits


STARS = Task("stars", labels=("1", "2", "3", "4", "5"), text="sentence")


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ((1.0, 2.0, 3.0, 4.0, 5.0), [0, 1, 2, 3, 4]),
        ((0, 1, 2, 3, 4), [0, 1, 2, 3, 4]),
        ((0.0, 1.0, 4.0), [0, 1, 4]),
        ((1, 2, 3), [0, 1, 2]),
    ],
)
def test_names_that_are_numbers_are_told_from_class_numbers(
    write: Write, suffix: str, labels: tuple[float, ...], classes: list[int]
) -> None:
    content = FORMATS[suffix]([{"sentence": "a", "label": label} for label in labels])
    data = write(**{f"train__{suffix}": content, f"dev__{suffix}": content})
    assert load_splits(STARS, data)["train"]["label"] == classes


def test_labels_that_can_be_read_in_two_ways_are_refused(write: Write) -> None:
    content = "sentence,label\na,1.0\nb,2.0\nc,3.0\n"
    data = write(train__csv=content, dev__csv=content)
    message = refusal(STARS, data)
    assert f"{data}/train.csv, row 0: label '1.0' is '1' if read as a class name, " in message
    assert "'2' if read as a class number from 0 on" in message
    from_one = replace(STARS, first_number=1)
    assert load_splits(from_one, data)["train"]["label"] == [0, 1, 2]


def test_one_split_decides_for_the_others(write: Write) -> None:
    data = write(
        train__csv="sentence,label\na,1.0\nb,2.0\n", dev__csv="sentence,label\na,1.0\nb,0.0\n"
    )
    assert load_splits(STARS, data)["train"]["label"] == [1, 2]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    ("names", "classes"), [(("true", "false"), [0, 1]), (("no", "yes"), [1, 0])]
)
def test_booleans_are_the_same_in_every_format(
    write: Write, suffix: str, names: tuple[str, str], classes: list[int]
) -> None:
    content = FORMATS[suffix]([{"sentence": "a", "label": label} for label in (True, False)])
    data = write(**{f"train__{suffix}": content, f"dev__{suffix}": content})
    assert load_splits(Task("yes", names, "sentence"), data)["dev"]["label"] == classes


def test_names_in_one_split_and_numbers_in_another_are_refused(write: Write) -> None:
    data = write(train__jsonl=ONE_ROW, dev__jsonl='{"sentence": "a", "label": "negative"}\n')
    message = refusal(OPINION, data)
    assert "train.jsonl, row 0: label 1 is a class number from 0 on" in message
    assert "dev.jsonl, row 0: label 'negative' is not" in message


@pytest.mark.parametrize("last", [19, 20])
def test_stackoverflow_numbers_its_tags_from_1(write: Write, last: int) -> None:
    task = get_task("stackoverflow")
    content = "title\tlabel\n" + "".join(f"t\t{tag}\n" for tag in range(1, last + 1))
    splits = load_splits(task, write(train__tsv=content, dev__tsv=content))
    assert splits["train"]["label"] == list(range(last))
    by_zero = "title\tlabel\nt\t0\n"
    message = refusal(task, write(train__tsv=by_zero))
    assert "label 0 is out of range: stackoverflow has the classes 1 to 20" in message


def test_numbers_from_1_say_how_a_task_takes_them(write: Write) -> None:
    content = "sentence\tlabel\na\t1\nb\t2\n"
    data = write(train__tsv=content, dev__tsv=content)
    message = refusal(OPINION, data)
    assert "opinion has the classes 0 to 1. If they are numbered from 1, say so by" in message
    assert load_splits(replace(OPINION, first_number=1), data)["dev"]["label"] == [0, 1]


def test_class_numbers_with_other_names_than_the_tasks_are_refused(tmp_path: Path) -> None:
    features = Features({"sentence": Value("string"), "label": ClassLabel(names=["pos", "neg"])})
    theirs = Dataset.from_dict({"sentence": ["a", "b"], "label": [0, 1]}, features=features)
    for split in ("train", "dev"):
        theirs.to_parquet(tmp_path / f"{split}.parquet")
    message = refusal(OPINION, str(tmp_path))
    assert "row 0: label 'pos' is none of opinion's: negative, positive" in message


# What is refused


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("2", "label 2 is out of range: opinion has the classes 0 to 1"),
        ("-1", "label -1 is out of range"),
        ('"neutral"', "label 'neutral' is none of opinion's: negative, positive"),
        ('"Positive"', "label 'Positive' is none of opinion's: negative, positive"),
        ("null", "label None is none of opinion's"),
        ("0.5", "label 0.5 is not a class number: regression is not supported"),
        ("[1]", r"label [1] is none of opinion's"),
    ],
)
def test_a_label_that_does_not_fit_is_named_with_its_row(
    write: Write, label: str, message: str
) -> None:
    bad = f'{{"sentence": "a", "label": {label}}}\n'
    if label == "0.5":
        data = write(train__jsonl=bad, dev__jsonl=ONE_ROW)
        assert f"train.jsonl, row 0: {message}" in refusal(OPINION, data)
    else:
        data = write(train__jsonl=ONE_ROW, dev__jsonl=bad)
        assert f"dev.jsonl, row 0: {message}" in refusal(OPINION, data)


@pytest.mark.parametrize("score", ["2.5", "nan", "inf", "0.0001"])
def test_a_regression_task_is_refused(write: Write, score: str) -> None:
    content = f"sentence\tlabel\na\t1.0\nb\t{score}\n"
    message = refusal(OPINION, write(train__tsv=content, dev__tsv=content))
    assert f"train.tsv, row 1: label {score} is not a class number: regression is" in message


@pytest.mark.parametrize(
    ("header", "missing"),
    [
        ("sentence\tlabels", "label"),
        ("text\tlabel", "sentence"),
        ("text\tgold", "sentence, label"),
    ],
)
def test_missing_columns_are_named_beside_those_there_are(
    write: Write, header: str, missing: str
) -> None:
    content = f"{header}\na\t1\n"
    message = refusal(OPINION, write(train__tsv=content, dev__tsv=content))
    there = header.replace("\t", ", ")
    assert f"train.tsv: no column {missing}; it has {there}" in message


def test_a_missing_second_text_is_named(write: Write) -> None:
    content = "sentence1\tsentence\tlabel\na\tb\tentailment\n"
    message = refusal(get_task("rte"), write(train__tsv=content, dev__tsv=content))
    assert "no column sentence2; it has sentence1, sentence, label" in message


def test_a_missing_text_is_named_with_its_row(write: Write) -> None:
    bad = ONE_ROW + '{"sentence": null, "label": 1}\n'
    message = refusal(OPINION, write(train__jsonl=ONE_ROW, dev__jsonl=bad))
    assert "dev.jsonl, column sentence, row 1: the text is missing" in message


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_empty_file_is_named(write: Write, suffix: str) -> None:
    data = write(**{"train__jsonl": ONE_ROW, f"dev__{suffix}": b""})
    assert refusal(OPINION, data) == f"{data}/dev.{suffix} is empty"


@pytest.mark.parametrize(
    ("suffix", "content", "where"),
    [
        ("csv", b"sentence,label\na,1\nb,1,\n", "row 1 (line 3): the row has 3 instead of 2"),
        ("csv", b"sentence,label\nwell, well,1\n", "row 0 (line 2): the row has 3 instead of 2"),
        ("tsv", b"label\tsentence\n1\ta\n1\n", "row 1 (line 3): the row has 1 instead of 2"),
        ("tsv", b"sentence\tlabel\na\t1\t\n", "row 0 (line 2): the row has 3 instead of 2"),
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_row_that_does_not_fit_the_columns_is_refused(
    write: Write, suffix: str, content: bytes, where: str, split: str
) -> None:
    files = {"train__jsonl": ONE_ROW, "dev__jsonl": ONE_ROW, f"{split}__{suffix}": content}
    if split == "train":
        del files["train__jsonl"]
    message = refusal(OPINION, write(**files))
    assert f"/{split}.{suffix} cannot be read as {suffix}: {where} fields (" in message


def test_of_many_broken_rows_the_first_is_named_and_the_others_are_counted(write: Write) -> None:
    data = write(train__csv="sentence,label\na\nb,1\nc\nd\n", dev__jsonl=ONE_ROW)
    assert refusal(OPINION, data).endswith("fields (sentence, label); so are 2 more rows")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (b"bytes", "bytes"),
        (["a", "list"], "list"),
        ({"a": "dict"}, "dict"),
        (7, "int"),
        (date(2024, 1, 1), "date"),
    ],
)
def test_what_is_no_text_is_refused(write: Write, text: Any, kind: str) -> None:
    bad = as_parquet([{"sentence": text, "label": 1}])
    message = refusal(OPINION, write(train__jsonl=ONE_ROW, dev__parquet=bad))
    assert f"dev.parquet, column sentence, row 0: {text} is not a text but a {kind}" in message


def test_a_date_in_json_stays_text(write: Write) -> None:
    row = '{"sentence": "2024-01-01", "label": 1}\n'
    assert load_splits(OPINION, write(train__jsonl=row, dev__jsonl=row))["dev"]["text"] == [
        "2024-01-01"
    ]


def test_half_a_character_is_no_text(write: Write) -> None:
    bad = '{"sentence": "\\ud83d", "label": 1}\n'
    message = refusal(OPINION, write(train__jsonl=bad, dev__jsonl=ONE_ROW))
    assert "train.jsonl, column sentence, row 0: the text is not valid UTF-8" in message


def test_a_needed_column_that_is_there_twice_is_refused(write: Write) -> None:
    data = write(train__csv="sentence,label,label\na,1,0\n", dev__jsonl=ONE_ROW)
    assert "train.csv: there are two columns label: take one out" in refusal(OPINION, data)


NO_ROWS = pa.schema([("sentence", pa.string()), ("label", pa.int64())]).empty_table()


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        ("tsv", b"sentence\tlabel\n"),
        ("csv", b"sentence,label"),
        ("parquet", parquet_of(NO_ROWS)),
    ],
)
def test_an_empty_split_is_refused(write: Write, suffix: str, content: bytes) -> None:
    data = write(**{"train__jsonl": ONE_ROW, f"dev__{suffix}": content})
    message = refusal(OPINION, data)
    assert f"{data}/dev.{suffix}" in message
    assert "the split is empty" in message


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        ("tsv", b"\n\n"),
        ("tsv", b"sentence\tlabel\n\xff\xfe\t1\n"),
        ("csv", b'sentence,label\n"never closed,1\n'),
        ("csv", b"sentence,label\na,1\na,b,c,1\n"),
        ("jsonl", b"not json\n"),
        ("jsonl", b'{"sentence": "a", "lab'),
        ("parquet", b"PAR1 and nothing else"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(write: Write, suffix: str, content: bytes) -> None:
    data = write(**{f"train__{suffix}": content, "dev__jsonl": ONE_ROW})
    assert f"{data}/train.{suffix} cannot be read as {suffix}: " in refusal(OPINION, data)


@pytest.mark.parametrize("there", ["train", "dev"])
def test_a_missing_split_is_named(write: Write, there: str) -> None:
    (missing,) = {"train", "dev"} - {there}
    data = write(**{f"{there}__jsonl": ONE_ROW})
    message = refusal(OPINION, data)
    assert message.startswith(f"{data} has no {missing} split: a data directory holds train, dev")
    assert "tsv, csv, json, jsonl, parquet" in message


@pytest.mark.parametrize("other", ["validation.jsonl", "dev.tsv"])
def test_two_dev_splits_are_refused(write: Write, other: str) -> None:
    data = write(train__jsonl=ONE_ROW, dev__jsonl=ONE_ROW)
    (Path(data) / other).write_text(ONE_ROW)
    message = refusal(OPINION, data)
    assert "more than one dev split" in message
    assert f"{data}/{other}" in message
    assert f"{data}/dev.jsonl" in message


@pytest.mark.parametrize("data", ["/no/such/directory", "./nothing", "../nothing", "~/nothing"])
def test_a_directory_that_is_not_there(data: str) -> None:
    assert refusal(OPINION, data) == f"--data {data}: there is no such directory or file"


def test_a_file_in_place_of_a_directory(write: Write) -> None:
    file = write(train__jsonl=ONE_ROW) + "/train.jsonl"
    message = refusal(OPINION, file)
    assert message.startswith(f"--data {file} is a file: give the directory that it is in")


# The hub


THREE_WAYS_OUT = (
    "give --data DIR",
    "where the hub can be reached",
    "an id that is recorded here (cee-gym envs)",
)


@pytest.mark.parametrize(
    "error", [ConnectionError("no route\nto host"), OSError(), ValueError("no such configuration")]
)
@pytest.mark.parametrize("data", [None, "someone/rte"])
def test_a_hub_out_of_reach_names_three_ways_out(
    monkeypatch: pytest.MonkeyPatch, error: Exception, data: str | None
) -> None:
    def load(*_: Any) -> None:
        raise error

    monkeypatch.setattr("datasets.load_dataset", load)
    message = refusal(get_task("rte"), data)
    assert f"the hub's {data or 'nyu-mll/glue/rte'} cannot be loaded" in message
    assert (str(error).split("\n")[0] or type(error).__name__) in message
    for way in (*THREE_WAYS_OUT, "columns sentence1, sentence2, label"):
        assert way in message


def test_a_task_that_is_not_on_the_hub_names_three_ways_out() -> None:
    message = refusal(get_task("mcid"), None)
    assert message.startswith("task mcid has no official hub name")
    for way in (*THREE_WAYS_OUT, "columns text, label"):
        assert way in message


@pytest.mark.parametrize(
    ("data", "asked"), [(None, ("nyu-mll/glue", "mnli")), ("someone/mnli", ("someone/mnli", None))]
)
def test_splits_of_the_hub_are_found_by_its_names(
    monkeypatch: pytest.MonkeyPatch, data: str | None, asked: tuple[str, str | None]
) -> None:
    def split(label: int) -> Dataset:
        return Dataset.from_dict({"premise": ["a"], "hypothesis": ["b"], "label": [label]})

    def load(*source: str | None) -> DatasetDict:
        assert source == asked
        return DatasetDict(
            train=split(0),
            validation_matched=split(1),
            validation_mismatched=split(2),
            test_matched=split(-1),
            test=split(-1),
        )

    monkeypatch.setattr("datasets.load_dataset", load)
    splits = load_splits(get_task("mnli"), data)
    assert splits.keys() == {"train", "dev"}
    assert rows(splits["dev"]) == [("dev/0", "a", 1, "b")]


def test_a_hub_dataset_without_a_dev_split_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    train = Dataset.from_dict({"sentence": ["a"], "label": [0]})
    monkeypatch.setattr("datasets.load_dataset", lambda *_: DatasetDict(train=train))
    assert "the hub's someone/set has no dev split" in refusal(OPINION, "someone/set")


# Real data


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "balance"),
    [
        ("rte", {"train": {0: 1249, 1: 1241}, "dev": {0: 146, 1: 131}}),
        ("mrpc", {"train": {0: 1194, 1: 2474}, "dev": {0: 129, 1: 279}}),
        ("sst2", {"train": {0: 29780, 1: 37569}, "dev": {0: 428, 1: 444}}),
    ],
)
def test_glue_is_whole(shared: Path, name: str, balance: dict[str, dict[int, int]]) -> None:
    task = get_task(name)
    splits = load_splits(task, str(shared / "data" / name))
    assert {split: Counter(data["label"]) for split, data in splits.items()} == balance
    row_ids = [row_id for data in splits.values() for row_id in data["row_id"]]
    assert len(set(row_ids)) == len(row_ids)
    for data in splits.values():
        assert all(text.strip() for text in data["text"])
        assert ("pair" in data.column_names) == (task.pair is not None)


@pytest.mark.real_data
def test_mcid_is_whole(shared: Path) -> None:
    splits = load_splits(get_task("mcid"), str(shared / "data" / "mcid"))
    assert {split: len(data) for split, data in splits.items()} == {
        "train": 1220,
        "dev": 176,
        "test": 349,
    }
    for data in splits.values():
        assert set(data["label"]) == set(range(16))
        assert not any("\r" in text or '"' in text[:1] for text in data["text"])
    assert splits["dev"][0] == {
        "row_id": "dev/0",
        "text": "this is great how do i help you",
        "label": get_task("mcid").labels.index("donate"),
    }


def test_a_parquet_column_of_a_type_datasets_has_no_name_for_is_passed_over(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    other = pa.array([[("a", 1)], [("b", 2)]], type=pa.map_(pa.string(), pa.int32()))
    rows = pa.table({"sentence": ["good", "bad"], "label": [1, 0], "other": other})
    for split in ("train", "dev"):
        pq.write_table(rows, tmp_path / f"{split}.parquet")
    assert load_splits(get_task("sst2"), str(tmp_path))["train"]["label"][:] == [1, 0]
