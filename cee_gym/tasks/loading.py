"""Loads the splits of a task, from the hub or from a directory, into one form.

Every split is a `datasets.Dataset` with the columns `row_id` (str, `"SPLIT/ROW"`), `text` (str),
`pair` (str, where the task has one) and `label` (int, the class number).
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, load_dataset
from datasets.exceptions import DatasetNotFoundError

from cee_gym.errors import DataError, first_line
from cee_gym.tasks.base import Task

SPLITS = ("train", "dev", "test")
FORMATS = ("tsv", "csv", "jsonl", "parquet")
# What datasets says of a csv and of a parquet file that have columns and no rows.
_NO_ROWS = ("corresponds to no data", "BatchSize must be greater than 0")


def load_splits(task: Task, data: str | None = None) -> dict[str, Dataset]:
    """Loads `train`, `dev` and, where it has labels, `test`.

    Args:
        task: whose text.
        data: a directory with files named `train`, `dev` (or `validation`) and optionally `test`
            (tsv, csv, jsonl or parquet), or the name of a hub dataset; None takes the task's own
            source.

    Raises:
        DataError: if the data cannot be reached, or does not fit the task.
    """
    directory = None if data is None else Path(data).expanduser()
    if data is None and task.built_in is not None:
        raw = {split: Dataset.from_dict(dict(rows)) for split, rows in task.built_in().items()}
        where = f"built-in task {task.name}"
    elif directory is not None and directory.is_dir():
        raw, where = dict(_read_directory(task, directory)), str(data)
    elif directory is not None and data and (directory.exists() or data[0] in "./~"):
        raise DataError(f"--data {data}: there is no such directory")
    else:
        raw, where = _read_hub(task, data)
    for split in ("train", "dev"):
        if split not in raw:
            raise DataError(
                f"{where} has no {split} split: a data directory holds train, dev (or validation) "
                f"and optionally test, as {', '.join(FORMATS)}"
            )
    splits = {}
    for split, dataset in raw.items():
        normal = _normalise(task, dataset, split, where)
        if normal is not None:
            splits[split] = normal
    return splits


def _read_directory(task: Task, directory: Path) -> Iterator[tuple[str, Dataset]]:
    for split in SPLITS:
        stems = [split]
        if split == "dev":
            stems = ["dev", "validation"]
            if task.dev_split:
                stems += [task.dev_split, task.dev_split.replace("validation", "dev")]
        files = [directory / f"{stem}.{suffix}" for stem in stems for suffix in FORMATS]
        found = [file for file in files if file.exists()]
        if len(found) > 1:
            raise DataError(f"{directory} has more than one {split} split: {found[0]}, {found[1]}")
        if found:
            yield split, _read_file(task, found[0])


def _read_file(task: Task, file: Path) -> Dataset:
    options: dict[str, Any] = {}
    if file.suffix in (".tsv", ".csv"):
        # As text, for a parser that guesses types makes 7 of the text 007.
        columns = (task.text, task.pair, task.label, *task.other_names)
        options = {
            "encoding": "utf-8-sig",
            "keep_default_na": False,
            "na_filter": False,
            "converters": {column: str for column in columns if column},
        }
    if file.suffix == ".tsv":
        options["sep"] = "\t"
        if not task.quoted:
            options["quoting"] = csv.QUOTE_NONE
        if task.header and not _has_header(task, file):
            options["column_names"] = list(task.header)
    reader = {
        ".tsv": Dataset.from_csv,
        ".csv": Dataset.from_csv,
        ".jsonl": Dataset.from_json,
        ".parquet": Dataset.from_parquet,
    }[file.suffix]
    if file.stat().st_size == 0:
        raise DataError(f"{file} is empty")
    try:
        return reader(str(file), **options)
    except Exception as error:  # datasets wraps every parser's own kind of error in its own
        reason = first_line(error.__cause__ or error)
        if any(sign in reason for sign in _NO_ROWS):
            raise DataError(f"{file} has no rows: the split is empty") from error
        raise DataError(f"{file} cannot be read as {file.suffix[1:]}: {reason}") from error


def _has_header(task: Task, file: Path) -> bool:
    with file.open(encoding="utf-8-sig") as lines:
        return task.text in lines.readline().rstrip("\n").split("\t")


def _read_hub(task: Task, data: str | None) -> tuple[dict[str, Dataset], str]:
    source = (data, None) if data else task.hub
    ways_out = (
        "give --data DIR with train and dev files, or run this where the hub can be reached, or "
        f"use an id that is recorded here (cee-gym envs). A row of {task.name} has the columns "
        f"{', '.join(filter(None, (task.text, task.pair, task.label)))}"
    )
    if source is None:
        raise DataError(f"task {task.name} has no official hub name: {ways_out}")
    where = f"the hub's {'/'.join(filter(None, source))}"
    try:
        splits = load_dataset(*source)
    except (ConnectionError, OSError, DatasetNotFoundError, ValueError) as error:
        raise DataError(f"{where} cannot be loaded ({first_line(error)}): {ways_out}") from error
    names = {"train": ["train"], "test": ["test"], "dev": ["validation", "dev"]}
    if task.dev_split:
        names["dev"].insert(0, task.dev_split)
    found = {
        split: next((splits[name] for name in spelt if name in splits), None)
        for split, spelt in names.items()
    }
    return {split: rows for split, rows in found.items() if rows is not None}, where


def _normalise(task: Task, dataset: Dataset, split: str, where: str) -> Dataset | None:
    """One split in the common form, or None for a test split whose labels are hidden."""
    where = f"{where}, {split}"
    for theirs, ours in task.other_names.items():
        if theirs in dataset.column_names and ours not in dataset.column_names:
            dataset = dataset.rename_column(theirs, ours)
    wanted = [task.text, *([task.pair] if task.pair else []), task.label]
    if split == "test" and task.label not in dataset.column_names:
        return None
    if missing := [column for column in wanted if column not in dataset.column_names]:
        raise DataError(
            f"{where}: no column {', '.join(missing)}; it has {', '.join(dataset.column_names)}"
        )
    if len(dataset) == 0:
        raise DataError(f"{where}: the split is empty")
    raw = list(dataset[task.label])
    feature = dataset.features[task.label]
    if isinstance(feature, ClassLabel) and set(feature.names) <= set(task.labels):
        # Numbers in the source's own order of the classes, which need not be the task's.
        raw = [
            feature.names[number] if number in range(len(feature.names)) else number
            for number in raw
        ]
    if split == "test" and all(label in (-1, "-1", "", None) for label in raw):
        return None
    columns: dict[str, list[Any]] = {
        "row_id": [f"{split}/{row}" for row in range(len(dataset))],
        "text": _texts(dataset, task.text, where),
        "label": [
            _class_number(task, value, f"{where}, row {row}") for row, value in enumerate(raw)
        ],
    }
    if task.pair:
        columns["pair"] = _texts(dataset, task.pair, where)
    return Dataset.from_dict(columns)


def _texts(dataset: Dataset, column: str, where: str) -> list[str]:
    texts = list(dataset[column])
    for row, text in enumerate(texts):
        if text is None:
            raise DataError(f"{where}, row {row}: {column} is missing")
    return [str(text) for text in texts]


def _class_number(task: Task, value: Any, where: str) -> int:
    if str(value) in task.labels:
        return task.labels.index(str(value))
    try:
        number = float(value)
    except (TypeError, ValueError):
        known = ", ".join(task.labels)
        raise DataError(f"{where}: label {value!r} is none of {task.name}'s: {known}") from None
    if not number.is_integer():
        raise DataError(
            f"{where}: label {value} is not a class number: regression is not supported"
        )
    if not 0 <= number < len(task.labels):
        raise DataError(
            f"{where}: label {value} is out of range: {task.name} has the classes 0 to "
            f"{len(task.labels) - 1}"
        )
    return int(number)
