"""Loads the splits of a task, from the hub or from a directory, into one form.

Every split is a `datasets.Dataset` with the columns `row_id` (str, `"SPLIT/ROW"`), `text` (str),
`pair` (str, where the task has one) and `label` (int, the class number).

Nothing is guessed and no row is left out. Of a file only the columns that the task needs are used,
but each row of a table must have as many fields as there are columns. A few rows of GLUE's own
`QQP/train.tsv` have fewer: take them out, or take QQP from the hub. Files are read anew each time,
so that a file that changed gives its new text whatever its time says.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cee_gym.errors import DataError, first_line
from cee_gym.tasks.base import Task
from cee_gym.tasks.files import Row, read_json, read_jsonl, read_table
from cee_gym.tasks.labels import LabelColumn

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = ("train", "dev", "test")
FORMATS = ("tsv", "csv", "json", "jsonl", "parquet")
DEV_EVERY = 5  # of the rows of a single file, one in so many is dev


class _Split(NamedTuple):
    """What is read of a split: where from, and each of the task's columns."""

    where: str
    columns: dict[str, list[Any]]


def load_splits(task: Task, data: str | None = None) -> dict[str, "Dataset"]:
    """Loads `train`, `dev` and, where it has labels, `test`.

    Args:
        task: whose text.
        data: a directory with files named `train`, `dev` (or `validation`) and optionally `test`
            (tsv, csv, json, jsonl or parquet), or the name of a hub dataset; None takes the task's
            own source. For your own text it may be a single file too, which is shared out into
            train and dev by class, the same way every time; a `row_id` counts the file's rows.

    Raises:
        DataError: if the data cannot be reached, or does not fit the task.
    """
    from datasets import Dataset

    splits = read_splits(task, data)
    numbers = () if task.first_number is None else (task.first_number,)
    labels = LabelColumn(task.labels, numbers, "train" if task.is_own else task.name)
    labelled = {split: read for split, read in splits.items() if read is not None}
    if "test" in labelled and all(map(labels.is_none, labelled["test"].columns[task.label])):
        del labelled["test"]
    for read in labelled.values():
        for row, label in enumerate(read.columns[task.label]):
            labels.add(label, f"{read.where}, row {row}")
    class_of = labels.reader()
    loaded: dict[str, dict[str, list[Any]]] = {}
    for split, (place, columns) in labelled.items():
        loaded[split] = {
            "row_id": [f"{split}/{row}" for row in range(len(columns[task.label]))],
            "text": _texts(columns[task.text], f"{place}, column {task.text}"),
            "label": [class_of(label) for label in columns[task.label]],
        }
        if task.pair:
            loaded[split]["pair"] = _texts(columns[task.pair], f"{place}, column {task.pair}")
    if "dev" not in loaded:
        loaded = _share_out(loaded["train"], labelled["train"].where)
    return {split: Dataset.from_dict(columns) for split, columns in loaded.items()}


def _share_out(columns: dict[str, list[Any]], where: str) -> dict[str, dict[str, list[Any]]]:
    """The splits train and dev of the rows of one file.

    Of the rows in random order, sorted by class, one in `DEV_EVERY` is dev. The first of a class
    always is train, so that train has every class.
    """
    labels = np.array(columns["label"])
    order = np.random.default_rng(0).permutation(len(labels))
    order = order[labels[order].argsort(kind="stable")]
    first = np.diff(labels[order], prepend=-1) != 0
    dev = (np.arange(1, len(order) + 1) % DEV_EVERY == 0) & ~first
    if not dev.any():
        raise DataError(
            f"{where}: {len(order)} rows are too few to share out into train and dev: give more, "
            "or a directory with both"
        )
    splits = {}
    for split, rows in (("train", np.sort(order[~dev])), ("dev", np.sort(order[dev]))):
        splits[split] = {name: [values[row] for row in rows] for name, values in columns.items()}
        splits[split]["row_id"] = [f"{split}/{row}" for row in rows]
    return splits


def read_splits(task: Task, data: str | None = None) -> dict[str, "_Split | None"]:
    """Reads the columns that a task needs, as they are written; see `load_splits`.

    Args:
        task: whose columns; its classes do not matter.
        data: a directory, a single file, the name of a hub dataset, or None.

    Returns:
        `train`, `dev`, and where there is one `test`; None for it where it has no labels. Of a
        single file all rows are `train`, and it is all there is.

    Raises:
        DataError: if the data cannot be reached, or has not the columns.
    """
    path = None if data is None else Path(data).expanduser()
    splits: dict[str, _Split | None]
    if data is None and task.built_in is not None:
        where = f"built-in task {task.name}"
        splits = {
            split: _split(task, split, f"{where}, {split}", list(made), made.__getitem__)
            for split, made in task.built_in().items()
        }
    elif path is not None and path.is_dir():
        where, splits = str(data), _read_directory(task, path)
    elif path is not None and path.is_file() and task.is_own:
        return {"train": _read_file(task, "train", path)}
    elif path is not None and path.is_file():
        raise DataError(
            f"--data {data} is a file: give the directory that it is in, with the files train, dev "
            "(or validation) and optionally test"
        )
    elif path is not None and (str(data)[:1] in ("/", ".", "~") or path.suffix[1:] in FORMATS):
        raise DataError(f"--data {data}: there is no such directory or file")
    else:
        where, splits = _read_hub(task, data)
    for split in ("train", "dev"):
        if split not in splits:
            raise DataError(
                f"{where} has no {split} split: a data directory holds train, dev (or validation) "
                f"and optionally test, as {', '.join(FORMATS)}"
                f"{'; or give the one file itself' if task.is_own else ''}"
            )
    return splits


def _read_directory(task: Task, directory: Path) -> dict[str, _Split | None]:
    splits: dict[str, _Split | None] = {}
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
            splits[split] = _read_file(task, split, found[0])
    return splits


def _read_file(task: Task, split: str, file: Path) -> _Split | None:
    kind = file.suffix[1:]
    if kind not in FORMATS:
        raise DataError(f"what is in {file}? Let its name end with .{', .'.join(FORMATS)}")
    if file.stat().st_size == 0:
        raise DataError(f"{file} is empty")
    if kind == "parquet":
        return _read_parquet(task, split, file)
    with file.open("rb") as lines:
        try:
            if kind in ("json", "jsonl"):
                read = read_jsonl(lines) if kind == "jsonl" else read_json(lines.read())
                names, rows = _whole(task, read)
            else:
                names, table = read_table(
                    lines,
                    separator="\t" if kind == "tsv" else ",",
                    quoted=task.quoted or kind == "csv",
                    columns=_unnamed_columns(task, file),
                )
                _, rows = _whole(task, table)
        except DataError as error:
            raise DataError(f"{file} cannot be read as {kind}: {error}") from None
    if not rows:
        raise DataError(f"{file} has no rows: the split is empty")
    return _split(task, split, str(file), names, lambda name: [row.get(name) for row in rows])


def _whole(task: Task, rows: Iterable[Row]) -> tuple[list[str], list[dict[str, Any]]]:
    """The columns of a file, and its rows with what the task may need of them.

    Raises:
        DataError: if a row cannot be read; names the first.
    """
    needed = {task.text, task.pair, task.label, *task.other_names}
    names: dict[str, None] = {}
    good, bad = [], []
    for number, (line, row) in enumerate(rows):
        if isinstance(row, DataError):
            bad.append(f"row {number} (line {line}): {row}")
        else:
            names.update(dict.fromkeys(row))
            good.append({name: value for name, value in row.items() if name in needed})
    if bad:
        others = f"; so are {len(bad) - 1} more rows" if len(bad) > 1 else ""
        raise DataError(f"{bad[0]}{others}")
    return list(names), good


def _unnamed_columns(task: Task, file: Path) -> Sequence[str] | None:
    """The columns of a tsv file that has no header line."""
    if file.suffix != ".tsv" or task.header is None:
        return None
    with file.open(encoding="utf-8-sig", errors="replace") as lines:
        named = task.text in lines.readline().rstrip("\n").split("\t")
    return None if named else task.header


def _read_parquet(task: Task, split: str, file: Path) -> _Split | None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Features

    try:
        schema = pq.read_schema(file)
        # Only of the columns that are needed: datasets has no name for some types of others.
        needed = {task.text, task.pair, task.label, *task.other_names}
        fields = [field for field in schema if field.name in needed]
        features = Features.from_arrow_schema(pa.schema(fields, metadata=schema.metadata))
        return _split(
            task,
            split,
            str(file),
            schema.names,
            lambda name: _named(
                pq.read_table(file, columns=[name]).column(name).to_pylist(), features[name]
            ),
        )
    except DataError:
        raise
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{file} cannot be read as parquet: {first_line(error)}") from None


def _read_hub(task: Task, data: str | None) -> tuple[str, dict[str, _Split | None]]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

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
        found = load_dataset(*source)
    except (ConnectionError, OSError, DatasetNotFoundError, ValueError) as error:
        raise DataError(f"{where} cannot be loaded ({first_line(error)}): {ways_out}") from error
    names = {"train": ["train"], "dev": ["validation", "dev"], "test": ["test"]}
    if task.dev_split:
        names["dev"].insert(0, task.dev_split)
    splits: dict[str, _Split | None] = {}
    for split, spelt in names.items():
        rows = next((found[name] for name in spelt if name in found), None)
        if rows is not None:
            column = partial(_hub_column, rows)
            splits[split] = _split(task, split, f"{where}, {split}", rows.column_names, column)
    return where, splits


def _hub_column(rows: "Dataset", name: str) -> list[Any]:
    return _named(list(rows[name]), rows.features[name])


def _named(labels: list[Any], feature: Any) -> list[Any]:
    """The names, where labels are numbers in the source's own order of its classes."""
    from datasets import ClassLabel

    if not isinstance(feature, ClassLabel):
        return labels
    names = dict(enumerate(feature.names))
    return [names.get(label, label) for label in labels]


def _split(
    task: Task,
    split: str,
    where: str,
    names: Sequence[str],
    column: Callable[[str], list[Any]],
) -> _Split | None:
    """The columns of a split that the task needs; None for a test split that has no labels.

    Args:
        task: whose columns.
        split: train, dev or test.
        where: it stands, for messages.
        names: the columns that there are.
        column: reads one by its name.
    """
    theirs = {own: name for name, own in task.other_names.items() if name in names}
    wanted = [task.text, *([task.pair] if task.pair else []), task.label]
    sources = {own: own if own in names else theirs.get(own) for own in wanted}
    if split == "test" and sources[task.label] is None:
        return None
    if missing := [own for own, name in sources.items() if name is None]:
        raise DataError(f"{where}: no column {', '.join(missing)}; it has {', '.join(names)}")
    if twice := [name for name in sources.values() if list(names).count(str(name)) > 1]:
        raise DataError(f"{where}: there are two columns {twice[0]}: take one out")
    columns = {own: column(str(name)) for own, name in sources.items()}
    if not columns[task.label]:
        raise DataError(f"{where} has no rows: the split is empty")
    return _Split(where, columns)


def _texts(values: list[Any], where: str) -> list[str]:
    for row, text in enumerate(values):
        if text is None:
            raise DataError(f"{where}, row {row}: the text is missing")
        if not isinstance(text, str):
            raise DataError(
                f"{where}, row {row}: {str(text)[:40]} is not a text but a {type(text).__name__}"
            )
        try:
            text.encode()
        except UnicodeEncodeError:
            raise DataError(f"{where}, row {row}: the text is not valid UTF-8") from None
    return values
