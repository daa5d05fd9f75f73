"""Runs a study: each cell once, whoever does it, and all of them in one table.

    STUDY/study.json            what is compared
    STUDY/recording, STUDY/run  the recordings and runs, one for each cell
    STUDY/cells/KEY.json        the rows of a finished cell, and how long it took; written last
    STUDY/locks/KEY.lock        held by whoever works on it; gone with its process
    STUDY/table.parquet         all rows
    STUDY/summary.json          means over seeds and tasks

Any number of processes may work on one study, on several machines too where they share its folder
and the file system has locks.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from cee_gym.documents import read_document, write_document, written_whole
from cee_gym.errors import CeeGymError
from cee_gym.evaluation.resampling import (
    interquartile_mean,
    over_seeds,
    probability_of_improvement,
)
from cee_gym.progress import say
from cee_gym.studies.cells import Cell, cells_of, do
from cee_gym.studies.config import StudyConfig

STUDY, TABLE, SUMMARY = "study.json", "table.parquet", "summary.json"
VERSION = 1
WAIT = 2.0  # seconds between two looks at what others work on


def run_study(config: StudyConfig, output: Path) -> pd.DataFrame:
    """Does all cells that are not done yet, and writes the table.

    Args:
        config: what is compared.
        output: the folder of the study; it may hold a part of the same study.

    Raises:
        CeeGymError: if it holds another study, or a cell cannot be done.
    """
    claim(config, output)
    cells = cells_of(config)
    started, done_here, seconds = time.monotonic(), 0, 0.0
    waiting = [cell for cell in cells if not is_done(output, cell.key)]
    say(f"{len(cells)} cells, {len(cells) - len(waiting)} done")
    while waiting:
        progressed = False
        for cell in list(waiting):
            if is_done(output, cell.key):  # by another process
                waiting.remove(cell)
                progressed = True
                continue
            if cell.needs and not is_done(output, cell.needs):
                continue
            begun = time.monotonic()
            spent = do_cell(cell, config, output)
            if spent is None:
                continue
            seconds += time.monotonic() - begun
            waiting.remove(cell)
            done_here += 1
            progressed = True
            left = seconds / done_here * len(waiting)
            say(
                f"{len(cells) - len(waiting)}/{len(cells)} cells, {cell.key}: {spent:.0f} CPU s; "
                f"about {duration(left)} left"
            )
        if not progressed and waiting:
            time.sleep(WAIT)
    if done_here:
        say(f"{done_here} cells here in {duration(time.monotonic() - started)}")
    return finish(config, output)


def do_cell(cell: Cell, config: StudyConfig, output: Path) -> float | None:
    """Does a cell that its needs are done of; gives the CPU time it took.

    None where another process works on it or has done it.
    """
    with claimed(output, cell) as mine:
        if not mine or is_done(output, cell.key):
            return None
        begun = time.process_time()
        rows = do(cell, config, output)
        spent = time.process_time() - begun
        file = result_file(output, cell)
        file.parent.mkdir(parents=True, exist_ok=True)
        result = {"key": cell.key, "cpu_seconds": spent, "rows": _plain(rows)}
        write_document(file, {"version": VERSION, **result})
    return spent


def finish(config: StudyConfig, output: Path) -> pd.DataFrame:
    """Writes and gives the table of all cells, and its summary."""
    table = read_table(config, output)
    summarised = summary(table)
    # Processes that share the study end at about the same time, and each writes them.
    (output / "locks").mkdir(exist_ok=True)
    with FileLock(output / "locks" / f"{TABLE}.lock"):
        with written_whole(output / TABLE) as unfinished:
            table.to_parquet(unfinished)
        write_document(output / SUMMARY, summarised)
    return table


def read_table(config: StudyConfig, output: Path) -> pd.DataFrame:
    """All rows of the finished cells, in the order of the cells."""
    rows = []
    for cell in cells_of(config):
        file = result_file(output, cell)
        if file.exists():
            rows += read_result(file)["rows"]
    return pd.DataFrame(rows)


def read_result(file: Path) -> dict[str, Any]:
    """What a finished cell left."""
    return read_document(
        file, "result of a cell", remedy="remove it and run the study again", versions=[VERSION]
    )


def result_file(output: Path, cell: Cell) -> Path:
    """Where the rows of a cell are, once it is done."""
    return _file(output, cell.key)


def is_done(output: Path, key: str) -> bool:
    """Whether there is what a cell left."""
    return _file(output, key).exists()


def _file(output: Path, key: str) -> Path:
    return output / "cells" / f"{key}.json"


@contextmanager
def claimed(output: Path, cell: Cell) -> Iterator[bool]:
    """Holds a cell, so that nobody else does it; gives whether it was free."""
    file = output / "locks" / f"{cell.key}.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def claim(config: StudyConfig, output: Path) -> None:
    """Begins a study, or makes sure that the one begun is this one."""
    described = {"version": VERSION, "study": json.loads(json.dumps(asdict(config)))}
    file = output / STUDY
    if file.exists():
        before = read_document(file, "study", remedy="give another --output", versions=[VERSION])
        if before != described:
            now = described["study"]
            changed = [key for key in now if before["study"].get(key) != now[key]]
            raise CeeGymError(
                f"{output} holds a study with other {', '.join(changed)}: give another --output"
            )
        return
    output.mkdir(parents=True, exist_ok=True)
    write_document(file, described)


def summary(table: pd.DataFrame) -> dict[str, Any]:
    """Means over seeds and tasks, as rliable has them.

    Accuracy is the mean over the shares of saved layers that are compared. Every task counts the
    same. Of each agent, exits and reward it gives the interquartile mean over seeds and tasks with
    its interval, the value of each seed, and the probability of being better than the confidence
    rule with the same exits and reward, where that is among the agents.
    """
    compared = table[table["point"].str.startswith("saved-")]
    if compared.empty:
        return {"version": VERSION, "optimistic": False, "groups": []}
    means = compared.groupby(["exits", "agent", "reward", "task", "seed"])["accuracy"].mean()
    scores: dict[tuple[str, str, str], Any] = {}
    for (exits, agent, reward), of in means.groupby(level=[0, 1, 2]):
        by_task = of.droplevel([0, 1, 2]).unstack("task")
        if not by_task.isna().to_numpy().any():
            scores[exits, agent, reward] = by_task
    groups = []
    for (exits, agent, reward), by_task in scores.items():
        values = by_task.to_numpy()
        group = {
            **{"exits": exits, "agent": agent, "reward": reward},
            "interquartile_mean": over_seeds(interquartile_mean, values)._asdict(),
            "seeds": {task: by_task[task].tolist() for task in by_task},
        }
        rule = scores.get((exits, "confidence", reward))
        if rule is not None and agent != "confidence" and list(rule) == list(by_task):
            better = over_seeds(probability_of_improvement, values, rule.to_numpy())
            group["better_than_confidence"] = better._asdict()
        groups.append(group)
    optimistic = bool(table["optimistic"].any())
    return {"version": VERSION, "optimistic": optimistic, "groups": groups}


def _plain(value: Any) -> Any:
    """Without NaN and numpy, which JSON has not."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


def duration(seconds: float) -> str:
    """In words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
