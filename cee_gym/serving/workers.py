"""A server of several processes: workers that share one socket, and a parent that replaces them.

Each worker loads the model and runs the whole server of `cee_gym.serving.server`; the operating
system gives a new connection to whichever worker takes it first. The parent holds the socket, so
that new connections wait, and are not refused, while a worker that has died is replaced. It also
holds the directory in which the workers count, so that `/metrics` is the sum over all of them,
whoever answers, and does not go down when one dies.

uvicorn's own supervisor is not used: it runs uvicorn's own server in the workers, which cuts idle
connections off when it stops, it does not say when all workers answer, and workers outlive it when
it is killed.
"""

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from cee_gym.errors import CeeGymError, check_number
from cee_gym.serving.listening import bound, say_serving

try:
    from prometheus_client.multiprocess import mark_process_dead

    from cee_gym.serving.access import token_of_environment
except ImportError as error:
    raise CeeGymError(f'{error.name} is not installed: pip install "cee-gym[serve]"') from None

if TYPE_CHECKING:
    from fastapi import FastAPI

# Beyond what a worker itself takes to stop, until it is killed.
_MOST_SECONDS_TO_STOP = 70
# Before a worker is started in the place of one that died before it had begun to answer.
_SECONDS_TO_TRY_AGAIN = 2.0


@dataclass
class _Worker:
    """One process, and the line on which it says what it serves, or a `CeeGymError` why not."""

    process: BaseProcess
    line: Connection
    ready: bool = False

    def gone(self) -> str:
        """Waits for its end, no longer counts what was waiting in it, and says how it ended."""
        self.process.join()
        self.line.close()
        mark_process_dead(self.process.pid)
        code = self.process.exitcode
        assert code is not None
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        return f"worker {self.process.pid} has ended {how}"


def serve_with_workers(
    build: Callable[[], "FastAPI"],
    workers: int,
    host: str,
    port: int,
    allowed_hosts: Sequence[str] = (),
) -> None:
    """Serves with several processes until SIGTERM or SIGINT; then they answer what they accepted.

    One line is printed once all of them answer. Limits of an application are those of each worker.

    Args:
        build: makes the application of `make_app`; called in each worker, so it has to be
            picklable.
        workers: how many processes.
        host: to listen on.
        port: 0 for one that is free; it is printed.
        allowed_hosts: names it answers to, beside `host` and those of the local host.

    Raises:
        CeeGymError: if it cannot listen there, the token of the environment is none, or a worker
            ends before all have begun to answer; what it said then is raised here.
    """
    check_number("workers", workers, 1)
    token_of_environment()
    stops: list[int] = []
    before = {
        number: signal.signal(number, lambda got, _: stops.append(got))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    running: list[_Worker] = []
    try:
        with (
            bound(host, port) as listening,
            TemporaryDirectory(prefix="cee-gym-metrics-") as counts,
        ):
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = counts
            try:
                start = (build, listening, (host, *allowed_hosts))
                running += [_start(*start) for _ in range(workers)]
                _watch(running, lambda: _start(*start), lambda: say_serving(listening), stops)
            finally:
                _stop(running)
                del os.environ["PROMETHEUS_MULTIPROC_DIR"]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(
    running: list[_Worker],
    start: Callable[[], _Worker],
    announce: Callable[[], None],
    stops: list[int],
) -> None:
    """Replaces workers that end, until there is a signal to stop."""
    announced, served = False, ""
    while not stops:
        for line in wait([worker.line for worker in running], timeout=0.2):
            place = next(place for place, worker in enumerate(running) if worker.line is line)
            worker = running[place]
            try:
                said = worker.line.recv()
            except (EOFError, OSError):
                said = None
            if isinstance(said, str):
                worker.ready, served = True, said
                continue
            how = worker.gone()
            if not announced:
                raise said or CeeGymError(f"{how} before it could answer")
            print(f"{said or how}; another takes its place", file=sys.stderr, flush=True)
            if not worker.ready:
                time.sleep(_SECONDS_TO_TRY_AGAIN)
            running[place] = start()
        if not announced and all(worker.ready for worker in running):
            announced = True
            print(served, file=sys.stderr, flush=True)
            announce()


def _start(
    build: Callable[[], "FastAPI"], listening: socket.socket, hosts: Sequence[str]
) -> _Worker:
    here, there = multiprocessing.Pipe()
    # Forking would copy threads' locks as they are just now; a spawned worker begins anew.
    process = multiprocessing.get_context("spawn").Process(
        target=_work, args=(build, listening, hosts, there)
    )
    # Ctrl-C goes to the workers too. They inherit that it is ignored, until they answer.
    heard = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, heard)
        there.close()
    return _Worker(process, here)


def _stop(running: list[_Worker]) -> None:
    for worker in running:
        if worker.process.is_alive():
            worker.process.terminate()
    until = time.monotonic() + _MOST_SECONDS_TO_STOP
    for worker in running:
        worker.process.join(max(0.0, until - time.monotonic()))
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


def _work(
    build: Callable[[], "FastAPI"],
    listening: socket.socket,
    hosts: Sequence[str],
    line: Connection,
) -> None:
    threading.Thread(target=_stop_with_the_parent, args=(line,), daemon=True).start()
    try:
        from cee_gym.serving.server import serve_on

        app = build()
    except CeeGymError as error:
        line.send(CeeGymError(str(error)))
        sys.exit(2)
    serve_on(listening, app, hosts, lambda: line.send(app.state.served))


def _stop_with_the_parent(line: Connection) -> None:
    """Ends this process as SIGTERM does once the parent has gone, however that ended."""
    try:
        line.recv()
    except (EOFError, OSError):
        os.kill(os.getpid(), signal.SIGTERM)
