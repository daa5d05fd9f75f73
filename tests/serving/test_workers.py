"""A server of several processes: its counts add up, and who dies is replaced."""

import http.client
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cee_gym.inference.pipeline import EarlyExitPipeline
from tests.serving.clients import body


@pytest.fixture
def server(pipeline: EarlyExitPipeline, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Two workers; what they count is in `tmp_path`/counts."""
    pipeline.save_pretrained(tmp_path / "saved")
    (tmp_path / "counts").mkdir()
    words = [sys.executable, "-m", "cee_gym", "serve", str(tmp_path / "saved"), "--port", "0"]
    process = subprocess.Popen(
        [*words, "--workers", "2"],
        env=os.environ | {"TMPDIR": str(tmp_path / "counts")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def port_of(server: subprocess.Popen[str]) -> int:
    assert server.stdout is not None
    return int(re.findall(r"http://127.0.0.1:(\d+)", server.stdout.readline())[0])


def workers_of(server: int) -> list[int]:
    """The process numbers of its workers."""
    listed = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    )
    rows = [line.split(maxsplit=2) for line in listed.stdout.splitlines()]
    return [
        int(pid) for pid, parent, args in rows if int(parent) == server and "spawn_main" in args
    ]


def wait_until(reached: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < until
        time.sleep(0.05)


def get(port: int, path: str) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path, headers={"connection": "close"})
    return connection.getresponse().read().decode()


def answered(port: int) -> float:
    return float(re.findall(r'requests_total{status="200"} (\S+)', get(port, "/metrics"))[0])


def predict(port: int) -> None:
    """Asks on a connection of its own, which any worker may take."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"content-type": "application/json", "connection": "close"}
    connection.request("POST", "/predict", body(), headers)
    response = connection.getresponse()
    assert response.status == 200
    response.read()


def test_counts_add_up_and_who_dies_is_replaced(
    server: subprocess.Popen[str], tmp_path: Path
) -> None:
    port = port_of(server)
    workers = workers_of(server.pid)
    assert len(workers) == 2
    for _ in range(20):
        predict(port)
    wait_until(lambda: answered(port) == 20)  # it is counted a moment after it has arrived
    os.kill(workers[0], signal.SIGKILL)
    wait_until(lambda: len(set(workers_of(server.pid)) - {workers[0]}) == 2)
    replaced = workers_of(server.pid)
    for _ in range(10):
        predict(port)
        assert answered(port) >= 20
    wait_until(lambda: answered(port) == 30)
    # Nobody is left but the one that has just come, which answers once it has loaded.
    os.kill(workers[1], signal.SIGKILL)
    predict(port)
    wait_until(lambda: answered(port) == 31)
    assert "cee_gym_waiting_texts 0.0" in get(port, "/metrics")
    wait_until(lambda: len(set(workers_of(server.pid)) - {workers[1]}) == 2)
    left = {*replaced, *workers_of(server.pid)}
    server.send_signal(signal.SIGTERM)
    output, errors = server.communicate(timeout=60)
    assert (server.returncode, output) == (0, "")
    assert errors.splitlines() == [
        f"loading {tmp_path / 'saved'}",
        "policy confidence, leaves above 0.8",
        *(f"worker {pid} has ended by signal 9; another takes its place" for pid in workers),
    ]
    assert not any(Path(f"/proc/{pid}").exists() for pid in left)
    assert list((tmp_path / "counts").iterdir()) == []


@pytest.mark.slow
def test_workers_do_not_outlive_the_parent(server: subprocess.Popen[str]) -> None:
    port_of(server)
    workers = workers_of(server.pid)
    server.kill()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
