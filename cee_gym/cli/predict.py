"""`cee-gym predict`: classify the texts of a file."""

import csv
import hashlib
import io
import json
import math
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal

import tyro

from cee_gym.cli.arguments import SpeedArguments, loading
from cee_gym.cli.options import command
from cee_gym.documents import read_document, write_document
from cee_gym.errors import CeeGymError, DataError, did_you_mean
from cee_gym.hold import hold
from cee_gym.tasks import get_task, task_names
from cee_gym.tasks.files import Row, read_jsonl, read_table, without_mark
from cee_gym.tasks.labels import LabelColumn

if TYPE_CHECKING:
    from cee_gym.exits import MultiExitConfig
    from cee_gym.inference.pipeline import EarlyExitPipeline, Result, Text

Format = Literal["jsonl", "csv", "tsv", "text"]
_FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "text",
}
_STANDARD = Path("-")
_COLUMNS = ("id", "label", "score", "exit_layer", "truncated", "given_label", "line", "error")


@command("predict")
@dataclass(frozen=True)
class Predict:
    """Classifies the texts of a file. The policy decides how deep each text goes.

    The output has one line for each text, in order: label, score and exit_layer; the id of the
    input where it has one; and its label, where it has one, as given_label. A text that cannot be
    classified gets the number of its line and an error; the others go on, and the exit code is 2.

    A model that was trained on your own data finds text, second text and label in the columns it
    was trained on.

    Labels are read as training reads them: either all are class names or all are class numbers. To
    tell which, a file is read through once first. Labels on the standard input have to be class
    names.

    A command that was stopped goes on when it is repeated with --resume: the complete lines of the
    output are kept, and the texts after them are classified. OUTPUT.settings.json says with what
    model, speed and input the output was begun, and --resume refuses others. Of the standard input
    it can only compare the ids.

    Attributes:
        model: A saved or exported directory, a run of train, or a name on the hub.
        input: A file, or - for the standard input.
        output: A new file, or - for the standard output. Where the name ends with .csv or .tsv it
            is a table, otherwise it has JSON lines.
        resume: Go on with the output that the same command left when it was stopped.
        format: The format of the input. By default the name of the file says it: .jsonl, .csv, .tsv
            or .txt (one text per line). The standard input is read as JSON lines by default.
        text_column: The field with the text. By default it is `text`, or the model's own column.
        pair_column: The field with the second text, for pairs of texts.
        batch_size: The number of texts that run together. 16 times as many are read before the
            first result, so that texts of similar length run together.
        truncation: Cut texts that are too long, as training does. With --no-truncation they are
            refused.
        speed: How fast the policy should be.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    input: Path = _STANDARD
    output: Path = _STANDARD
    resume: bool = False
    format: Format | None = None
    text_column: str | None = None
    pair_column: str | None = None
    batch_size: int = 32
    truncation: bool = True
    speed: SpeedArguments = field(default_factory=SpeedArguments)

    def run(self) -> None:
        """Classifies, and says what came of it on the standard error."""
        if self.resume and not self.to_file:
            raise CeeGymError("--resume goes on with a file: give its --output")
        with ExitStack() as files:
            source = self._open_input(files)
            format = self._format()
            self._refuse_to_write_over()
            self.speed.speed()
            directory = loading(self.model)
            from cee_gym.inference.pipeline import WINDOW, EarlyExitPipeline

            pipeline = EarlyExitPipeline.from_pretrained(
                directory,
                **vars(self.speed),
                batch_size=self.batch_size,
            )
            config = pipeline.model.config
            columns = self._columns(config)
            rows = self._rows(_lines(source, quiet=self._shows_results()), format, columns)
            read_label = self._label_reader(config, format, columns)
            tally = _Tally(pipeline.model.num_layers)
            sink: IO[str] = sys.stdout
            if self.to_file:
                files.enter_context(hold(self.output))
                self._refuse_to_write_over()
                settings = self._settings(pipeline, format, columns)
                if self.resume and self.output.exists():
                    self._check_same(settings)
                    rows = self._pass_over(rows, tally, self.batch_size * WINDOW)
                else:
                    write_document(self._settings_file, settings)
                mode = "a" if self.resume else "x"
                sink = files.enter_context(self.output.open(mode, encoding="utf-8"))
                if self._separator and not sink.tell():
                    sink.write(_table_row(_COLUMNS, self._separator))
            for line in self._results(pipeline, rows, columns, read_label):
                tally.count(line)
                sink.write(self._written(line))
            sink.flush()
        print(tally.summary(), file=sys.stderr)
        if tally.errors:
            raise CeeGymError(
                f"{tally.errors} of {tally.errors + tally.texts} texts could not be classified: "
                "their lines say why"
            )

    @property
    def to_file(self) -> bool:
        """Whether there is something to go on with."""
        return self.output != _STANDARD

    def _refuse_to_write_over(self) -> None:
        if self.output.exists() and not self.resume:
            raise CeeGymError(
                f"{self.output} is there already: give --resume to go on with it, or another "
                "--output"
            )

    @property
    def _settings_file(self) -> Path:
        return self.output.with_name(f"{self.output.name}.settings.json")

    def _settings(
        self, pipeline: "EarlyExitPipeline", format: Format, columns: Mapping[str, str]
    ) -> dict[str, Any]:
        """All that decides what the lines of the output say."""
        from cee_gym.backbones.fingerprint import fingerprint_of_tensors

        model, policy = pipeline.model, pipeline.policy
        described = policy.description()
        content = None
        if self.input.is_file():
            with self.input.open("rb") as source:
                content = hashlib.file_digest(source, "sha256").hexdigest()
        return {
            "model": f"{model.fingerprint}, {model.dtype}",
            "classes": model.labels,
            "policy": {
                **{name: described[name] for name in ("score", "settings", "layout")},
                "tensors": fingerprint_of_tensors(policy.score.tensors()),
            },
            "speed": {"threshold": policy.threshold, "alpha": policy.alpha},
            "input": content,
            "format": format,
            "columns": dict(columns),
            "truncation": self.truncation,
        }

    def _check_same(self, settings: dict[str, Any]) -> None:
        """Refuses to go on with an output that was begun with other settings."""
        file, remedy = self._settings_file, "give another --output"
        if not file.exists():
            raise CeeGymError(f"nothing says how {self.output} was begun ({file.name}): {remedy}")
        before = read_document(file, f"record of how {self.output} was begun", remedy=remedy)
        now = json.loads(json.dumps(settings))
        if changed := [name for name in now if before.get(name) != now[name]]:
            raise CeeGymError(
                f"{self.output} was begun with another {', '.join(changed)} ({file.name}): repeat "
                f"the command as it was, or {remedy}"
            )

    @property
    def _separator(self) -> str:
        """Of the columns of the output; empty for JSON lines."""
        return {".csv": ",", ".tsv": "\t"}.get(self.output.suffix.lower(), "")

    def _written(self, line: dict[str, Any]) -> str:
        """One line of the output."""
        if not self._separator:
            return json.dumps(line, allow_nan=False) + "\n"
        return _table_row([line.get(name, "") for name in _COLUMNS], self._separator)

    def _found(self, line: bytes) -> dict[str, Any]:
        """What a line of the output says.

        Raises:
            ValueError: if this command does not write such lines.
        """
        if not self._separator:
            return json.loads(line)
        (cells,) = csv.reader([line.decode()], delimiter=self._separator)
        named = {name: cell for name, cell in zip(_COLUMNS, cells, strict=True) if cell}
        if "error" not in named:
            named["exit_layer"] = int(named["exit_layer"])  # type: ignore[assignment]
        return named

    def _shows_results(self) -> bool:
        return not self.to_file and sys.stdout.isatty()

    def _pass_over(self, rows: "Iterator[Row]", tally: "_Tally", window: int) -> "Iterator[Row]":
        """Counts the lines of the output, and gives the rows after them.

        Texts are run in windows of so many, in each of which those of like length stand together,
        and a last digit depends on what is run together. So what does not end a window is cut off,
        and done again as it would have been done.
        """
        since: list[tuple[Row, dict[str, Any]]] = []
        with self.output.open("r+b") as written:
            header = _table_row(_COLUMNS, self._separator).encode() if self._separator else b""
            if header and written.readline() != header:
                raise CeeGymError(
                    f"{self.output} does not begin with the columns that this command writes: give "
                    "another --output"
                )
            end = kept = len(header)
            for number, line in enumerate(written, start=1 + bool(header)):
                whole = line.endswith(b"\n")
                if end and not whole:
                    break
                try:
                    found, numbered = self._found(line), next(rows)
                    _, row = numbered
                    _Tally(tally.num_layers).count(found)  # refuses what is no line of ours
                    given = row.get("id") if isinstance(row, dict) else None
                    if self._separator:
                        given = _cell(given) or None
                    fits = whole and found.get("id") == given
                except (ValueError, KeyError, TypeError, StopIteration):
                    fits = False
                if not fits:
                    raise CeeGymError(
                        f"line {number} of {self.output} is not what this command writes there: "
                        "give another --output"
                    )
                end += len(line)
                since.append((numbered, found))
                if len(since) == window:
                    for _, one in since:
                        tally.count(one)
                    since.clear()
                    kept = end
            written.truncate(kept)
        return chain((numbered for numbered, _ in since), rows)

    def _open_input(self, files: ExitStack) -> IO[bytes]:
        if self.input == _STANDARD:
            if self.format is None and _plain(sys.stdin.buffer):
                raise CeeGymError(
                    "the standard input does not begin with a JSON object: give --format text for "
                    "one text a line, or csv or tsv"
                )
            return sys.stdin.buffer
        try:
            return files.enter_context(self.input.open("rb"))
        except FileNotFoundError:
            raise CeeGymError(f"there is no file {self.input}") from None

    def _format(self) -> Format:
        format = self.format or ("jsonl" if self.input == _STANDARD else None)
        format = format or _FORMATS.get(self.input.suffix.lower())
        if format is None:
            raise CeeGymError(f"what is in {self.input}? Give --format jsonl, csv, tsv or text")
        return format

    def _columns(self, config: "MultiExitConfig") -> dict[str, str]:
        """The fields of a row that `text`, `label` and, where it is known, `pair` are in."""
        own = config.columns or {"text": "text", "label": "label"}
        given = {"text": self.text_column, "pair": self.pair_column}
        return own | {name: column for name, column in given.items() if column is not None}

    def _rows(
        self, lines: Iterable[bytes], format: Format, fields: Mapping[str, str]
    ) -> Iterator[Row]:
        """The rows of the input; refuses a table without the columns asked for."""
        if format == "jsonl":
            return read_jsonl(lines)
        if format == "text":
            return _read_text(lines, fields["text"])
        try:
            columns, rows = read_table(lines, separator="\t" if format == "tsv" else ",")
        except DataError as error:
            raise CeeGymError(f"{self.input} cannot be read as {format}: {error}") from None
        for name, column in fields.items():
            if name != "label" and column not in columns:
                raise CeeGymError(
                    f"{self.input} has no column {column!r}: {did_you_mean(column, columns)}"
                )
        for column in fields.values():
            if columns.count(column) > 1:
                raise CeeGymError(f"{self.input} has two columns {column!r}: take one out")
        return rows

    def _label_reader(
        self, config: "MultiExitConfig", format: Format, fields: Mapping[str, str]
    ) -> Callable[[Any], str | None]:
        """From a label to the name of its class, or None where it stands for no label.

        Raises:
            DataError: if the labels of the file cannot all be read in one way.
        """
        names = config.labels
        first_numbers: tuple[int, ...] = (0, 1)
        if config.columns is not None:
            first_numbers = ()
        elif config.first_number is not None:
            first_numbers = (config.first_number,)
        elif config.task in task_names():
            task = get_task(config.task)
            if list(task.labels) == names and task.first_number is not None:
                first_numbers = (task.first_number,)
        column = LabelColumn(names, first_numbers, "the model")
        read: Callable[[Any], int] = column.read_alone
        if format != "text" and self.input.is_file():
            with self.input.open("rb") as source:
                for line, row in self._rows(source, format, fields):
                    label = None if isinstance(row, DataError) else row.get(fields["label"])
                    # What is no class and no number is a mistake in its own row only.
                    if not column.is_none(label) and column.may_be_class(label):
                        column.add(label, f"{self.input}, line {line}")
            read = column.reader()
        return lambda label: None if column.is_none(label) else names[read(label)]

    def _results(
        self,
        pipeline: "EarlyExitPipeline",
        rows: Iterable[Row],
        fields: Mapping[str, str],
        read_label: Callable[[Any], str | None],
    ) -> Iterator[dict[str, Any]]:
        """What to write for each row."""
        running: deque[tuple[int, dict[str, Any]]] = deque()  # read, and not classified yet

        def texts() -> "Iterator[Text | CeeGymError]":
            for number, row in rows:
                kept: dict[str, Any] = {}
                text: Text | CeeGymError
                try:
                    if isinstance(row, DataError):
                        raise row
                    if row.get("id") is not None:
                        kept["id"] = row["id"]
                    text = _text(row, fields)
                    if (label := read_label(row.get(fields["label"]))) is not None:
                        kept["given_label"] = label
                except CeeGymError as error:
                    text = error
                running.append((number, kept))
                yield text

        result: Result
        for result in pipeline.stream(texts(), truncation=self.truncation):
            number, kept = running.popleft()
            if not math.isfinite(result.get("score", 0.0)):
                result = {"error": "the exit gives no number: the weights of the model are damaged"}
            yield kept | ({"line": number} if "error" in result else {}) | result


@dataclass
class _Tally:
    """Counts what is written."""

    num_layers: int
    texts: int = 0
    layers: int = 0
    labelled: int = 0
    right: int = 0
    errors: int = 0
    truncated: int = 0

    def count(self, line: dict[str, Any]) -> None:
        if "error" in line:
            self.errors += 1
            return
        self.texts += 1
        self.layers += line["exit_layer"]
        self.truncated += bool(line.get("truncated"))
        if "given_label" in line:
            self.labelled += 1
            self.right += line["label"] == line["given_label"]

    def summary(self) -> str:
        said = f"{self.texts} texts"
        if self.texts:
            mean = self.layers / self.texts
            said += f", mean exit layer {mean:.2f} of {self.num_layers}"
            said += f", {1 - mean / self.num_layers:.1%} of the layers saved"
        if self.truncated:
            said += f", {self.truncated} too long and cut as in training"
        if self.labelled:
            said += f", accuracy {self.right / self.labelled:.3f} on {self.labelled} with a label"
        return said


def _text(row: dict[str, Any], fields: Mapping[str, str]) -> dict[str, Any]:
    """What the pipeline takes of a row."""
    columns = {"text": fields["text"]}
    if "pair" in fields:
        columns["text_pair"] = fields["pair"]
    for column in columns.values():
        if column not in row:
            raise CeeGymError(f"no field {column!r}: {did_you_mean(column, list(row))}")
        if not isinstance(row[column], str):
            raise CeeGymError(f"{column} is not a text but {json.dumps(row[column])[:40]}")
    return {name: row[column] for name, column in columns.items()}


def _plain(source: IO[bytes]) -> bool:
    """Whether a stream begins with something else than a JSON object; nothing is read of it."""
    peek = getattr(source, "peek", None)
    start: bytes = peek(1).removeprefix(b"\xef\xbb\xbf").lstrip() if peek else b""
    return bool(start) and not start.startswith(b"{")


def _cell(value: Any) -> str:
    """A value in a table, on one line."""
    return "" if value is None else " ".join(str(value).splitlines())


def _table_row(values: Iterable[Any], separator: str) -> str:
    """One line of a table."""
    line = io.StringIO()
    csv.writer(line, delimiter=separator, lineterminator="\n").writerow(map(_cell, values))
    return line.getvalue()


def _lines(source: IO[bytes], quiet: bool) -> Iterator[bytes]:
    """The lines of a file; shows progress on a terminal."""
    from cee_gym.progress import show_progress

    size = os.fstat(source.fileno()).st_size or None
    with show_progress(total=size, unit="B", unit_scale=True, disable=quiet or None) as progress:
        for line in source:
            yield line
            progress.update(len(line))


def _read_text(lines: Iterable[bytes], column: str) -> Iterator[Row]:
    for number, line in enumerate(without_mark(lines), start=1):
        try:
            yield number, {column: line.decode().rstrip("\r\n")}
        except UnicodeDecodeError:
            yield number, DataError("the line is not valid UTF-8")
