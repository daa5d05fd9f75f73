"""`cee-gym serve --workers` under load while a worker is killed, and clients that hang up at once.

A model of the built-in Clauses is trained in a few seconds and served by a process of its own.
`--clients` clients send it one sentence after another for `--minutes`; halfway through, one worker
is killed by SIGKILL. Every answer is held against what the pipeline says of that sentence alone, in
this process and before the server starts: the label and the exit layer have to be the same, the
score to 1e-4. A client opens a new connection after every 100 requests, and where its connection
breaks; the sentence is then sent again, as a client of the server has to do. Each broken connection
with a request on it is counted in `reset`: the server had accepted it, and it was lost with its
worker.

Resident memory (VmRSS of /proc) is read every two seconds and told per worker: its median in the
half minute after its first minute, its median in its last half minute, and the growth between them.

In the end 150 clients connect, send a request of six texts each and close their connection at once.
`texts_computed` says how many of these 900 texts the server ran all the same.

python -m benchmarks.server_load --minutes 10 --clients 64 --workers 2   (`make load`)
"""

import asyncio
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tyro

from benchmarks.common import write
from cee_gym.inference.pipeline import EarlyExitPipeline
from cee_gym.tasks.clauses import sentences

TRAIN = "train EarlyExit-ToyBERT-Clauses --agent confidence --alpha 0.035 --rounds 1 --output run"
SENTENCES = 2000
REQUESTS_A_CONNECTION = 100
HANG_UP, TEXTS_EACH = 150, 6
HEAD = "POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


@dataclass(frozen=True)
class Args:
    """How long, how many clients, how many workers."""

    minutes: float = 10.0
    clients: int = 64
    workers: int = 2


@dataclass
class Tally:
    """What the clients got: answers by kind, seconds to each right one, and what was wrong."""

    answers: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


Expected = dict[str, Any]


def main(args: Args) -> None:
    """Trains, serves, loads, and fails where an answer was wrong or something was left behind."""
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
    program = [sys.executable, "-m", "cee_gym"]
    texts = sentences(SENTENCES, seed=1)["text"]
    with TemporaryDirectory() as directory:
        subprocess.run(
            [*program, *TRAIN.split()], cwd=directory, check=True, stderr=subprocess.DEVNULL
        )
        pipeline = EarlyExitPipeline.from_pretrained(Path(directory) / "run")
        expected: list[Expected] = [dict(pipeline([text])[0]) for text in texts]
        words = [*program, "serve", "run", "--port", "0", "--workers", str(args.workers)]
        server = subprocess.Popen(words, cwd=directory, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            port = int(re.findall(r":(\d+)", server.stdout.readline())[0])
            results = asyncio.run(load(server.pid, port, texts, expected, args))
            seen = children(server.pid)
            server.send_signal(signal.SIGTERM)
            results["exit_code"] = server.wait(timeout=90)
            results["processes_left"] = sum(Path(f"/proc/{pid}").exists() for pid in seen)
        finally:
            server.kill()
    print(json.dumps(results, indent=1), flush=True)
    write("server_load", {**vars(args), **results})
    left = results["hang_up"]["waiting"] or results["exit_code"] or results["processes_left"]
    if results["wrong"] or left:
        raise SystemExit(1)


async def load(
    server: int, port: int, texts: list[str], expected: list[Expected], args: Args
) -> dict[str, Any]:
    """All clients until the time is up, the kill among them, then those that hang up."""
    tally, memory = Tally(), dict[int, list[tuple[float, float]]]()
    began = time.monotonic()
    end = began + 60 * args.minutes
    watching = asyncio.create_task(watch(server, memory))
    killing = asyncio.create_task(kill_one(server, began + 30 * args.minutes))
    clients = [
        client(port, texts, expected, end, first, args.clients, tally)
        for first in range(args.clients)
    ]
    await asyncio.gather(*clients)
    seconds = time.monotonic() - began
    watching.cancel()
    killed = await killing
    counted = await samples(port)
    seconds_to_answer = sorted(tally.seconds)
    return {
        "seconds": round(seconds, 1),
        "answered_rightly": tally.answers["right"],
        "wrong": tally.answers["wrong"],
        "wrong_answers": tally.wrong[:10],
        "status_503": tally.answers["503"],
        "other_status": sum(n for kind, n in tally.answers.items() if kind.isdigit())
        - tally.answers["503"],
        "reset": tally.answers["reset"],
        "refused_connections": tally.answers["refused"],
        "requests_per_second": round(tally.answers["right"] / seconds, 1),
        "milliseconds_median": round(1000 * statistics.median(seconds_to_answer), 1),
        "milliseconds_p99": round(1000 * seconds_to_answer[int(0.99 * len(seconds_to_answer))], 1),
        "counted_200": counted.get('cee_gym_requests_total{status="200"}', 0.0),
        "memory_mb": {
            ("killed" if pid == killed else f"worker {place}"): told(read)
            for place, (pid, read) in enumerate(memory.items(), 1)
        },
        "hang_up": await hang_up(port, texts),
    }


async def client(
    port: int,
    texts: list[str],
    expected: list[Expected],
    end: float,
    first: int,
    step: int,
    tally: Tally,
) -> None:
    """Asks one sentence after another; asks again on a new connection where one broke."""
    row, left, writer = first % len(texts), 0, None
    while (sent := time.monotonic()) < end:
        if left == 0:
            if writer is not None:
                writer.close()
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                tally.answers["refused"] += 1
                await asyncio.sleep(0.1)
                continue
            left = REQUESTS_A_CONNECTION
        assert writer is not None
        left -= 1
        try:
            writer.write(request([texts[row]]))
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(re.findall(rb"content-length: (\d+)", head)[0])
            body = await reader.readexactly(length)
        except (OSError, EOFError):
            tally.answers["reset"] += 1
            left = 0
            continue
        if b"connection: close" in head:
            left = 0
        status = head.split(maxsplit=2)[1].decode()
        if status != "200":
            tally.answers[status] += 1
            await asyncio.sleep(0.1)
            continue
        found, wanted = json.loads(body)["predictions"][0], expected[row]
        alike = all(found[name] == wanted[name] for name in ("label", "exit_layer"))
        if alike and abs(found["score"] - wanted["score"]) < 1e-4:
            tally.answers["right"] += 1
            tally.seconds.append(time.monotonic() - sent)
        else:
            tally.answers["wrong"] += 1
            tally.wrong.append(f"{texts[row]!r}: {found}, not {wanted}")
        row = (row + step) % len(texts)
    if writer is not None:
        writer.close()


def request(texts: list[str]) -> bytes:
    """A request as it goes over the line."""
    body = json.dumps({"texts": texts}).encode()
    return f"{HEAD}content-length: {len(body)}\r\n\r\n".encode() + body


async def hang_up(port: int, texts: list[str]) -> dict[str, Any]:
    """What is left behind by clients that have gone before they could be answered."""

    async def ask_and_go(first: int) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request(texts[first : first + TEXTS_EACH]))
        writer.close()
        await writer.wait_closed()

    before = await samples(port)
    await asyncio.gather(*(ask_and_go(TEXTS_EACH * number) for number in range(HANG_UP)))
    await asyncio.sleep(3)
    after = await samples(port)

    def more(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    return {
        "clients": HANG_UP,
        "texts": HANG_UP * TEXTS_EACH,
        "texts_computed": more("cee_gym_batch_size_sum"),
        "counted_499": more('cee_gym_requests_total{status="499"}'),
        "counted_200": more('cee_gym_requests_total{status="200"}'),
        "waiting": after["cee_gym_waiting_texts"],
    }


async def samples(port: int) -> dict[str, float]:
    """What Prometheus would read."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    lines = re.findall(r"^(cee_gym_\S+) (\S+)\r?$", text, re.MULTILINE)
    return {name: float(value) for name, value in lines}


async def kill_one(server: int, when: float) -> int:
    """Kills the oldest worker, and says which that was."""
    await asyncio.sleep(when - time.monotonic())
    worker = children(server)[0]
    os.kill(worker, signal.SIGKILL)
    return worker


async def watch(server: int, memory: dict[int, list[tuple[float, float]]]) -> None:
    """Notes the time and the resident memory in MB of each worker."""
    while True:
        for pid in children(server):
            try:
                status = Path(f"/proc/{pid}/status").read_text()
            except OSError:  # it has ended just now
                continue
            if found := re.findall(r"VmRSS:\s+(\d+)", status):
                memory.setdefault(pid, []).append((time.monotonic(), int(found[0]) / 1024))
        await asyncio.sleep(2)


def told(read: list[tuple[float, float]]) -> dict[str, float]:
    """The memory of a worker after its first minute, in its last half minute, and the growth."""
    born, died = read[0][0], read[-1][0]
    early = [mb for at, mb in read if born + 60 <= at < born + 90]
    late = [mb for at, mb in read if at > died - 30]
    if died - born < 120:
        return {"seconds": round(died - born), "last": round(statistics.median(late), 1)}
    first, last = statistics.median(early), statistics.median(late)
    return {
        "seconds": round(died - born),
        "after_a_minute": round(first, 1),
        "last": round(last, 1),
        "growth": round(last - first, 1),
    }


def children(server: int) -> list[int]:
    """The workers of a server, by their process number, oldest first."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = re.findall(r"PPid:\s+(\d+)", (place / "status").read_text())[0]
            if int(parent) == server and b"spawn_main" in (place / "cmdline").read_bytes():
                found.append(int(place.name))
        except OSError:  # it has ended just now
            continue
    return sorted(found)


if __name__ == "__main__":
    main(tyro.cli(Args))
