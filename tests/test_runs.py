"""What is read from the directory of a run."""

from pathlib import Path

import pytest

from cee_gym.errors import CeeGymError
from cee_gym.runs import newest_round


def complete(run: Path, number: int) -> Path:
    here = run / f"round-{number}"
    here.mkdir(parents=True)
    (here / "evaluation.json").write_text("{}")
    return here


def test_the_newest_complete_round_is_that_of_the_highest_number(tmp_path) -> None:
    rounds = [complete(tmp_path, number) for number in range(12)]
    (tmp_path / "round-12").mkdir()
    assert newest_round(tmp_path) == rounds[11]


def test_a_round_after_one_that_is_missing_does_not_count(tmp_path) -> None:
    first = complete(tmp_path, 0)
    complete(tmp_path, 2)
    assert newest_round(tmp_path) == first


def test_a_run_without_a_complete_round_is_refused(tmp_path) -> None:
    (tmp_path / "round-0").mkdir()
    with pytest.raises(CeeGymError, match="no complete round yet"):
        newest_round(tmp_path)
