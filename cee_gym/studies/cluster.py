"""Does the cells of a study as tasks of Ray."""

import time
from pathlib import Path

import pandas as pd

from cee_gym.cluster import Cluster
from cee_gym.progress import say
from cee_gym.studies.cells import cells_of
from cee_gym.studies.config import StudyConfig
from cee_gym.studies.study import WAIT, claim, do_cell, finish, is_done


def run_on_ray(config: StudyConfig, output: Path, cluster: Cluster) -> pd.DataFrame:
    """Does all cells that are not done yet as tasks of Ray, and writes the table.

    What is done stands in the folder of the study, as it does without Ray; all machines have to see
    it under one path. Ray gives the cell of a worker that dies to another one.

    Args:
        config: what is compared.
        output: the folder of the study.
        cluster: where, and what a cell needs.

    Raises:
        CeeGymError: if Ray is not installed or cannot be reached, no machine has what a cell needs,
            the folder holds another study, or a cell cannot be done.
    """
    output = output.absolute()
    claim(config, output)
    with cluster.tasks(do_cell, "cell") as tasks:
        cells = cells_of(config)
        by_key = {cell.key: cell for cell in cells}
        waiting = [cell for cell in cells if not is_done(output, cell.key)]
        done = len(cells) - len(waiting)
        say(f"{len(cells)} cells, {done} done; room for {tasks.slots} at once")
        while waiting or tasks.running:
            for cell in [one for one in waiting if not one.needs or is_done(output, one.needs)]:
                waiting.remove(cell)
                tasks.start(cell.key, cell, config, output)
            key, spent = tasks.wait()
            if spent is None and not is_done(output, key):  # a process without Ray has it
                waiting.append(by_key[key])
                time.sleep(WAIT)
                continue
            done = len(cells) - len(waiting) - len(tasks.running)
            by = "another process" if spent is None else f"{spent:.0f} CPU s"
            say(f"{done}/{len(cells)} cells, {key}: {by}")
    return finish(config, output)
