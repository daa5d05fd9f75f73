"""A study on a local Ray: the table is that of one process, also where a worker dies."""

import os
import signal
import threading
import time
from pathlib import Path

import pandas as pd
import pytest

from cee_gym.cli import main
from cee_gym.errors import CeeGymError
from cee_gym.studies.config import StudyConfig
from cee_gym.studies.study import TABLE, run_study

NEEDED = 'Ray is not installed: pip install "cee-gym[cluster]"'


def workers() -> list[int]:
    """The processes of Ray that work on a cell just now."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                name = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if name.startswith(b"ray::do_cell"):
                found.append(int(entry.name))
    return found


@pytest.fixture
def local_ray(monkeypatch):
    ray = pytest.importorskip("ray", reason=NEEDED)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


def test_two_workers_give_the_table_of_one_process(
    local_ray, config_file, tmp_path, capsys
) -> None:
    config = StudyConfig.read(config_file)
    run_study(config, tmp_path / "whole")
    killed: list[int] = []

    def kill_one() -> None:
        while not killed:
            if list((tmp_path / "out" / "cells").rglob("*.json")) and (found := workers()):
                os.kill(found[0], signal.SIGKILL)
                killed.append(found[0])
            time.sleep(0.005)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    main(["study", str(config_file), "--output", str(tmp_path / "out"), "--engine", "ray"])
    killer.join(1)
    assert killed
    found, whole = (pd.read_parquet(tmp_path / place / TABLE) for place in ("out", "whole"))
    pd.testing.assert_frame_equal(found, whole)
    capsys.readouterr()
    # Again, there is nothing to do; and it goes on where a process without Ray stopped.
    main(["study", str(config_file), "--output", str(tmp_path / "out"), "--engine", "ray"])
    cells = len(list((tmp_path / "out" / "cells").rglob("*.json")))
    assert f"{cells} cells, {cells} done" in capsys.readouterr().err


def test_what_no_machine_has_is_refused(local_ray, config_file, tmp_path) -> None:
    from cee_gym.studies.cluster import run_on_ray

    config = StudyConfig.read(config_file)
    with pytest.raises(CeeGymError, match="7 CPUs, and all machines together have 2"):
        run_on_ray(config, tmp_path / "out", address=None, cpus=7, gpus=0)
    with pytest.raises(CeeGymError, match="1 GPUs, and all machines together have 0"):
        run_on_ray(config, tmp_path / "out", address=None, cpus=1, gpus=1)


def test_what_ray_alone_knows_is_refused_without_it(config_file, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["study", str(config_file), "--cpus", "2"])
    assert "--cpus is of --engine ray" in capsys.readouterr().err
