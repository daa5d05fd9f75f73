"""A study on a local Ray: the table is that of one process, also where a worker dies."""

import pandas as pd
import pytest

from cee_gym.cli import main
from cee_gym.studies.config import StudyConfig
from cee_gym.studies.study import TABLE, run_study
from tests.ray_workers import one_dies


def test_two_workers_give_the_table_of_one_process(
    local_ray, config_file, tmp_path, capsys
) -> None:
    config = StudyConfig.read(config_file)
    run_study(config, tmp_path / "whole")
    words = ["study", str(config_file), "--output", str(tmp_path / "out"), "--engine", "ray"]
    with one_dies("do_cell", lambda: list((tmp_path / "out" / "cells").rglob("*.json"))):
        main(words)
    found, whole = (pd.read_parquet(tmp_path / place / TABLE) for place in ("out", "whole"))
    pd.testing.assert_frame_equal(found, whole)
    capsys.readouterr()
    # Again, there is nothing to do; and it goes on where a process without Ray stopped.
    main(words)
    cells = len(list((tmp_path / "out" / "cells").rglob("*.json")))
    assert f"{cells} cells, {cells} done" in capsys.readouterr().err


def test_what_ray_alone_knows_is_refused_without_it(config_file, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["study", str(config_file), "--cpus", "2"])
    assert "--cpus is of --engine ray" in capsys.readouterr().err
