"""`cee-gym serve` under many clients at once, with early exit and at full depth.

    OMP_NUM_THREADS=1 python benchmarks/serve.py MODEL RECORDING DATA --task sst2

MODEL is a multi-exit model, RECORDING what it recorded, DATA the text. The policy is the confidence
rule, its threshold chosen on calibration for a layer speed-up of about 2.

Each client has one connection and sends one dev text after another, each as soon as the answer to
the last has come. Every answer is held against what becomes of that text when it runs alone through
all layers and the policy reads the scores, here and before the server starts. `mixed_up` counts
answers with another label or exit layer. Texts with a score within `NEAR` of the threshold or of
the other class are counted apart, as `near_ties`: in a batch sums are added up in another order, so
rounding may take them to the other side. `lost` are requests without an answer.

Both servers take their turn twice, in the order early, full, full, early. The clients are one
process of their own, on the same machine: they take a share of it from the server.
"""

import asyncio
import json
import re
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import tyro
from common import at_layer_speedup, write

from cee_gym import Problem
from cee_gym.backbones.encoding import load_tokenizer
from cee_gym.errors import CeeGymError
from cee_gym.exits import load_model
from cee_gym.inference.pipeline import EarlyExitPipeline, Encoded
from cee_gym.policies.rules import Confidence
from cee_gym.serving.server import full_depth
from cee_gym.tasks import get_task, load_splits
from cee_gym.traces.recordings import open_split
from cee_gym.training.phases import observe_output

LAYER_SPEEDUP = 2.0
NEAR = 1e-5
ORDER = ("early_exit", "full_depth", "full_depth", "early_exit")


@dataclass
class Args:
    """Arguments.

    Attributes:
        model: directory of a multi-exit model.
        recording: what it recorded.
        data: directory of the text.
        task: its name.
        clients: at once.
        seconds: of load, for each of two turns of each server.
        threads: that the server computes with.
    """

    model: tyro.conf.Positional[Path]
    recording: tyro.conf.Positional[Path]
    data: tyro.conf.Positional[Path]
    task: str = "sst2"
    clients: int = 64
    seconds: float = 30.0
    threads: int = 1


@dataclass(frozen=True)
class Expected:
    """What becomes of a text alone, and whether rounding could make it something else."""

    label: str
    score: float
    exit_layer: int
    near: bool


@dataclass(frozen=True)
class Answer:
    """What the server said of a text, and after how many seconds."""

    text: int
    label: str
    score: float
    exit_layer: int
    seconds: float


def main(args: Args) -> None:
    """Measures and writes `results/runtime_serve.json`."""
    pipeline = make_pipeline(args)
    splits = load_splits(get_task(args.task), str(args.data))
    given = [text_of(row) for row in splits["dev"]]
    fitting = [
        (text, encoded)
        for text, encoded in zip(given, pipeline.encode(given), strict=True)
        if not isinstance(encoded, CeeGymError)
    ]
    texts = [text for text, _ in fitting]
    expected = {
        name: offline(side, [encoded for _, encoded in fitting])
        for name, side in (("early_exit", pipeline), ("full_depth", full_depth(pipeline)))
    }
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in expected}
    with TemporaryDirectory() as directory:
        pipeline.save_pretrained(directory)
        for name in ORDER:
            turns[name].append(turn(directory, name == "full_depth", texts, args))
    sides = {name: told(turns[name], expected[name]) for name in expected}
    early, full = sides["early_exit"], sides["full_depth"]
    write(
        "runtime_serve",
        {
            "task": args.task,
            "backbone": open_split(args.recording, "dev").header.backbone,
            "layers": pipeline.model.num_layers,
            "trace": open_split(args.recording, "dev").fingerprint,
            "policy": {"name": pipeline.policy.name, "threshold": pipeline.policy.threshold},
            "texts": len(texts),
            "texts_too_long": len(given) - len(texts),
            "clients": args.clients,
            "seconds": args.seconds * ORDER.count("early_exit"),
            "server_threads": args.threads,
            "layer_speedup": pipeline.model.num_layers / early["mean_exit_layer"],
            "throughput_speedup": early["requests_per_second"] / full["requests_per_second"],
            **sides,
        },
    )


def make_pipeline(args: Args) -> EarlyExitPipeline:
    """The confidence rule at the threshold that comes nearest to the wanted layer speed-up."""
    calibration = Problem(open_split(args.recording, "calibration"), observe=("confidence",))
    policy = at_layer_speedup(Confidence().policy(calibration), calibration, LAYER_SPEEDUP)
    tokenizer = load_tokenizer(str(args.model))
    return EarlyExitPipeline(load_model(args.model), tokenizer, policy)


def text_of(row: dict[str, Any]) -> Any:
    """The text of a row, as requests have it."""
    return {"text": row["text"], "text_pair": row["pair"]} if "pair" in row else row["text"]


@torch.inference_mode()
def offline(pipeline: EarlyExitPipeline, encoded: list[Encoded]) -> list[Expected]:
    """What becomes of each text when it runs alone through all layers, and its scores are read."""
    policy, found = pipeline.policy, []
    for text in encoded:
        inputs = {name: torch.tensor([values]) for name, values in text.items()}
        output = pipeline.model(**inputs)
        observations = observe_output(output, policy.layout, np.zeros((1, 1), dtype=np.float32))
        scores = policy.scores(observations)[0]
        layer = int(policy.exit_layers(scores[None])[0])
        distance = np.abs(scores[:layer] - policy.threshold)[: pipeline.model.num_layers - 1]
        best = output.logits[0, layer - 1].softmax(dim=0).topk(2)
        near = distance.min(initial=1.0) < NEAR or float(-best.values.diff()) < NEAR
        label = pipeline.model.labels[int(best.indices[0])]
        found.append(Expected(label, float(best.values[0]), layer, bool(near)))
    return found


def turn(directory: str, full: bool, texts: list[Any], args: Args) -> dict[str, Any]:
    """Starts a server, puts it under load, stops it."""
    command = [sys.executable, "-m", "cee_gym", "serve", directory, "--port", "0"]
    command += ["--threads", str(args.threads), *(["--full-depth"] if full else [])]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        port = int(re.findall(r":(\d+)", server.stdout.readline())[0])
        bodies = [json.dumps({"texts": [text]}).encode() for text in texts]
        start = time.perf_counter()
        told = asyncio.run(load(port, bodies, args))
        seconds = time.perf_counter() - start
        server.terminate()
        server.wait(timeout=60)
    finally:
        server.kill()
    return {**told, "seconds": seconds, "exit_code": server.returncode}


async def load(port: int, bodies: list[bytes], args: Args) -> dict[str, Any]:
    """Lets all clients ask until the time is up; each waits for its last answer."""
    end = time.perf_counter() + args.seconds
    starts = range(0, args.clients)
    clients = [client(port, bodies, end, start, args.clients) for start in starts]
    answers, lost = [], 0
    for found, unanswered in await asyncio.gather(*clients):
        answers += found
        lost += unanswered
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
    metrics = (await reader.read()).decode()
    writer.close()
    batches, rows = (
        float(re.findall(rf"^cee_gym_batch_size_{part} (.+)$", metrics, re.MULTILINE)[0])
        for part in ("count", "sum")
    )
    return {"answers": answers, "lost": lost, "batches": batches, "rows": rows}


async def client(
    port: int, bodies: list[bytes], end: float, start: int, step: int
) -> tuple[list[Answer], int]:
    """The answers to one client's requests, and how many it got none to."""
    head = "POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answers: list[Answer] = []
    text = start % len(bodies)
    while (sent := time.perf_counter()) < end:
        body = bodies[text]
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        try:
            head_of_answer = await reader.readuntil(b"\r\n\r\n")
            length = int(re.findall(rb"content-length: (\d+)", head_of_answer)[0])
            found = json.loads(await reader.readexactly(length))["predictions"][0]
        except (OSError, EOFError, LookupError, ValueError):
            return answers, 1
        answers.append(Answer(text, **found, seconds=time.perf_counter() - sent))
        text = (text + step) % len(bodies)
    writer.close()
    return answers, 0


def told(turns: list[dict[str, Any]], expected: list[Expected]) -> dict[str, Any]:
    """What the turns of one server come to."""
    answers: list[Answer] = [answer for turn in turns for answer in turn["answers"]]
    other = [
        expected[answer.text].near
        for answer in answers
        if (answer.label, answer.exit_layer)
        != (expected[answer.text].label, expected[answer.text].exit_layer)
    ]
    alike = [
        abs(answer.score - expected[answer.text].score)
        for answer in answers
        if answer.exit_layer == expected[answer.text].exit_layer
    ]
    milliseconds = 1e3 * np.array([answer.seconds for answer in answers])
    result = {
        "answers": len(answers),
        "lost": sum(turn["lost"] for turn in turns),
        "mixed_up": other.count(False),
        "near_ties": other.count(True),
        "largest_difference_of_a_score": max(alike),
        "requests_per_second": len(answers) / sum(turn["seconds"] for turn in turns),
        "requests_per_second_by_turn": [len(t["answers"]) / t["seconds"] for t in turns],
        "milliseconds": {
            f"p{percent}": float(np.percentile(milliseconds, percent)) for percent in (50, 95, 99)
        },
        "mean_exit_layer": statistics.fmean(answer.exit_layer for answer in answers),
        "mean_batch_size": sum(t["rows"] for t in turns) / sum(t["batches"] for t in turns),
        "server_exit_codes": [turn["exit_code"] for turn in turns],
    }
    print(json.dumps(result, indent=1))
    return result


if __name__ == "__main__":
    main(tyro.cli(Args))
