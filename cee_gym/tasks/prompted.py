"""Tasks of generation: prompts and answers, of which every token of an answer is an instance.

A task of your own is one dataclass:

    register_prompted(PromptedTask("jokes", prompt=lambda row: row["setup"], answer="punchline"))
"""

import gzip
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cee_gym.errors import DataError, first_line
from cee_gym.registry import Registry
from cee_gym.tasks.files import read_json, read_jsonl, read_table
from cee_gym.tasks.loading import DEV_EVERY

Row = Mapping[str, Any]
_STORIES = Path(__file__).parents[1] / "shipped" / "EarlyExit-TinyLLaMA-Stories" / "stories.json.gz"


class Example(NamedTuple):
    """One text.

    Attributes:
        row_id: `"SPLIT/ROW"` of the source.
        prompt: what is asked; may be empty where a text begins from nothing.
        answer: what is to follow.
    """

    row_id: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class PromptedTask:
    """Where prompts and answers come from.

    Attributes:
        name: short and lower-case; the key of the registry.
        prompt: what is asked in a row of the data.
        answer: the column with the answer; or several names of it, of which a row has one.
        template: what is put around the prompt for a model without a chat template; `{prompt}` is
            the prompt.
        chat: whether a tokenizer's own chat template is used in place of it, where there is one.
        ends: whether the end-of-text token follows the answer.
        hub: dataset name and configuration on the hub, or None where it is not there.
        built_in: makes the rows instead of loading them.
    """

    name: str
    prompt: Callable[[Row], str]
    answer: str | tuple[str, ...]
    template: str = "{prompt}"
    chat: bool = True
    ends: bool = True
    hub: tuple[str, str | None] | None = None
    built_in: Callable[[], list[Row]] | None = None

    @property
    def full_name(self) -> str:
        """The name by which any process finds the task: `MODULE:NAME` for one of your own."""
        return PROMPTED.full_name(self.name)

    def to_json(self) -> str:
        """What `get_prompted` makes the task of in any process."""
        return self.full_name


PROMPTED: Registry[PromptedTask] = Registry("task of generation")


def register_prompted(task: PromptedTask) -> PromptedTask:
    """Makes a task known by its name, and the calling module as the one that defines it."""
    PROMPTED.add(task.name, task, sys._getframe(1).f_globals.get("__name__", "__main__"))
    return task


def get_prompted(name: str) -> PromptedTask:
    """The task of this name; `MODULE:NAME` imports the module that registers it.

    Raises:
        CeeGymError: if there is none.
    """
    return PROMPTED.get(name)


def load_examples(task: PromptedTask, data: str | None = None) -> dict[str, list[Example]]:
    """Loads the splits `train` and `dev` of a task.

    Args:
        task: whose text.
        data: a directory or a file (json, jsonl or csv). A directory holds train and dev (or
            validation), or a single file. Of a single file one row in five, drawn the same way each
            time, is dev. Or the name of a hub dataset; None takes the task's own source.

    Raises:
        DataError: if the data cannot be reached or has not the columns.
    """
    if data is None and task.built_in is not None:
        return _share_out(_examples(task, "train", task.built_in(), task.name))
    path = None if data is None else Path(data).expanduser()
    if path is None or not path.exists():
        if path is not None and (str(data)[:1] in ("/", ".", "~") or path.suffix):
            raise DataError(f"--data {data}: there is no such directory or file")
        return _from_hub(task, data)
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.suffix in _SUFFIXES)
    named = {file.stem: file for file in files}
    dev = named.get("dev", named.get("validation"))
    if "train" in named and dev is not None:
        return {
            split: _examples(task, split, _read(file), str(file))
            for split, file in (("train", named["train"]), ("dev", dev))
        }
    if len(files) != 1:
        raise DataError(
            f"{path} must hold train and dev (or validation), or one file, as json, jsonl or csv; "
            f"it holds {', '.join(file.name for file in files) or 'none'}"
        )
    return _share_out(_examples(task, "train", _read(files[0]), str(files[0])))


def _from_hub(task: PromptedTask, data: str | None) -> dict[str, list[Example]]:
    from datasets import load_dataset

    name, config = (data, None) if data is not None else task.hub or (None, None)
    if name is None:
        raise DataError(f"task {task.name} has no source of its own: give --data DIR_OR_FILE")
    try:
        found = load_dataset(name, config)
    except Exception as error:  # the hub and its files bring about errors of any kind
        raise DataError(
            f"dataset {name} is not available ({first_line(error)}): give --data DIR_OR_FILE"
        ) from error
    dev = next((split for split in ("validation", "dev", "test") if split in found), None)
    train = _examples(task, "train", list(found["train"]), name)
    if dev is None:
        return _share_out(train)
    return {"train": train, "dev": _examples(task, "dev", list(found[dev]), name)}


_SUFFIXES = (".json", ".jsonl", ".csv")


def _read(file: Path) -> list[Row]:
    if file.suffix not in _SUFFIXES:
        raise DataError(f"what is in {file}? Let its name end with {', '.join(_SUFFIXES)}")
    try:
        with file.open("rb") as lines:
            if file.suffix == ".csv":
                _, read = read_table(lines)
            else:
                read = read_jsonl(lines) if file.suffix == ".jsonl" else read_json(lines.read())
            rows = list(read)
    except (DataError, OSError) as error:
        raise DataError(f"{file} cannot be read ({first_line(error)})") from None
    good: list[Row] = []
    for line, row in rows:
        if isinstance(row, DataError):
            raise DataError(f"{file} cannot be read (line {line}: {row})")
        good.append(row)
    return good


def _examples(task: PromptedTask, split: str, rows: list[Row], where: str) -> list[Example]:
    found = []
    names = (task.answer,) if isinstance(task.answer, str) else task.answer
    for number, row in enumerate(rows):
        try:
            prompt = task.prompt(row)
            answer = row[next((name for name in names if name in row), " or ".join(names))]
        except (KeyError, TypeError, IndexError) as error:
            raise DataError(
                f"{where}, row {number}: task {task.name} finds no {first_line(error)}"
            ) from None
        if not isinstance(answer, str) or not isinstance(prompt, str):
            raise DataError(f"{where}, row {number}: prompt and answer must be texts")
        if answer.strip():  # nothing to learn where nothing is answered
            found.append(Example(f"{split}/{number}", prompt, answer))
    if not found:
        raise DataError(f"{where} has no rows with an answer: the split is empty")
    return found


def _share_out(examples: list[Example]) -> dict[str, list[Example]]:
    """Train and dev of the rows of one file, drawn the same way each time."""
    order = np.random.default_rng(0).permutation(len(examples))
    count = len(examples) // DEV_EVERY
    if not count:
        raise DataError(f"{len(examples)} rows are too few to share out into train and dev")
    return {
        "train": [examples[row] for row in np.sort(order[count:])],
        "dev": [examples[row] for row in np.sort(order[:count])],
    }


def _instruction(row: Row) -> str:
    more = row.get("input") or row.get("context") or ""
    return f"{row['instruction']}\n\n{more}" if more else str(row["instruction"])


def _stories() -> list[Row]:
    with gzip.open(_STORIES, "rt", encoding="utf-8") as file:
        return [{"story": story} for story in json.load(file)]


# The template of Stanford Alpaca (Taori et al. 2023), for models without one of their own.
_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{prompt}\n\n### Response:\n"
)
for _task in (
    PromptedTask(
        "alpaca",
        prompt=_instruction,
        answer="output",
        template=_ALPACA,
        hub=("tatsu-lab/alpaca", None),
    ),
    PromptedTask(
        "dolly",
        prompt=_instruction,
        answer=("response", "output"),  # the second is that of copies in the manner of Alpaca
        template=_ALPACA,
        hub=("databricks/databricks-dolly-15k", None),
    ),
    PromptedTask(
        "cnn-dailymail",
        prompt=lambda row: f"Summarize this article.\n\n{row['article']}",
        answer="highlights",
        template="{prompt}\n\nTL;DR: ",
        hub=("abisee/cnn_dailymail", "3.0.0"),
    ),
    # Sampled from stories260K itself at temperature 1.
    PromptedTask(
        "stories",
        prompt=lambda row: "",
        answer="story",
        chat=False,
        ends=False,
        built_in=_stories,
    ),
):
    register_prompted(_task)
