"""Does the cells of a study as tasks of Ray, on this machine or on a cluster."""

import time
from pathlib import Path
from typing import Any

import pandas as pd

from cee_gym.errors import CeeGymError
from cee_gym.progress import say
from cee_gym.studies.cells import Cell, cells_of
from cee_gym.studies.config import StudyConfig
from cee_gym.studies.study import WAIT, claim, do_cell, finish, is_done


def run_on_ray(
    config: StudyConfig, output: Path, *, address: str | None, cpus: float, gpus: float
) -> pd.DataFrame:
    """Does all cells that are not done yet as tasks of Ray, and writes the table.

    What is done stands in the folder of the study, as it does without Ray; all machines have to see
    it under one path. Ray gives the cell of a worker that dies to another one.

    Args:
        config: what is compared.
        output: the folder of the study.
        address: of a cluster that runs, such as `"auto"`; None to start one on this machine.
        cpus: that a cell needs.
        gpus: that a cell needs.

    Raises:
        CeeGymError: if Ray is not installed or cannot be reached, no machine has what a cell needs,
            the folder holds another study, or a cell cannot be done.
    """
    try:
        import ray
    except ImportError:
        raise CeeGymError('ray is not installed: pip install "cee-gym[cluster]"') from None
    output = output.absolute()
    claim(config, output)
    ours = not ray.is_initialized()
    try:
        if ours:
            ray.init(address=address, include_dashboard=False, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise CeeGymError(f"no Ray at {address}: {error}") from error
    try:
        there = ray.cluster_resources()
        for kind, wanted in (("CPU", cpus), ("GPU", gpus)):
            if wanted > there.get(kind, 0):
                raise CeeGymError(
                    f"a cell is to have {wanted:g} {kind}s, and all machines together have "
                    f"{there.get(kind, 0):g}"
                )
        task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=-1)(do_cell)
        cells = cells_of(config)
        waiting = [cell for cell in cells if not is_done(output, cell.key)]
        running: dict[Any, Cell] = {}
        say(f"{len(cells)} cells, {len(cells) - len(waiting)} done; {there.get('CPU', 0):g} CPUs")
        while waiting or running:
            for cell in [one for one in waiting if not one.needs or is_done(output, one.needs)]:
                waiting.remove(cell)
                running[task.remote(cell, config, output)] = cell
            (finished, *_), _ = ray.wait(list(running))
            cell = running.pop(finished)
            try:
                spent = ray.get(finished)
            except ray.exceptions.RayTaskError as error:
                raise CeeGymError(f"{cell.key}: {error.cause or error}") from error
            if spent is None and not is_done(output, cell.key):  # a process without Ray has it
                waiting.append(cell)
                time.sleep(WAIT)
                continue
            done = len(cells) - len(waiting) - len(running)
            by = "another process" if spent is None else f"{spent:.0f} CPU s"
            say(f"{done}/{len(cells)} cells, {cell.key}: {by}")
    finally:
        if ours:
            ray.shutdown()
    return finish(config, output)
