"""Tasks of a local Ray: how many run at once, what comes back, and what is refused."""

import sys

import pytest

from cee_gym.cluster import Cluster
from cee_gym.errors import CeeGymError


def root(number: float) -> float:
    if number < 0:
        raise CeeGymError(f"{number} has no root")
    return number**0.5


def test_each_result_comes_with_its_key(local_ray) -> None:
    with Cluster(cpus=0.5).tasks(root, "root") as tasks:
        assert tasks.slots == 4
        for number in (1, 4, 9):
            tasks.start(number, number)
        assert dict(tasks.wait() for _ in range(3)) == {1: 1, 4: 2, 9: 3}
        assert not tasks.running
        tasks.start("of -1", -1)
        with pytest.raises(CeeGymError, match="root of -1: -1 has no root"):
            tasks.wait()


def test_what_no_machine_has_is_refused(local_ray) -> None:
    for wanted, said in (
        (Cluster(cpus=7), "a root is to have 7 CPUs, and no machine has more than 2"),
        (Cluster(gpus=1), "a root is to have 1 GPUs, and no machine has more than 0"),
    ):
        with pytest.raises(CeeGymError, match=said), wanted.tasks(root, "root"):
            pass


def test_needs_that_are_none_are_refused() -> None:
    with pytest.raises(CeeGymError, match="a task needs some of one"):
        Cluster(cpus=0)
    with pytest.raises(CeeGymError, match="gpus must be at least 0, got -1"):
        Cluster(gpus=-1)


def test_without_ray_it_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(CeeGymError, match=r'pip install "cee-gym\[cluster\]"'),
        Cluster().tasks(root, "root"),
    ):
        pass
