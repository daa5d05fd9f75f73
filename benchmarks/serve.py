"""`cee-gym serve` under many clients at once, with early exit and at full depth.

    OMP_NUM_THREADS=1 python benchmarks/serve.py MODEL RECORDING DATA --task sst2

MODEL is a multi-exit model, RECORDING what it recorded, DATA the text. The policy is the confidence
rule, its threshold chosen on calibration for a layer speed-up of about 2.

Each client has one connection and sends one dev text after another, each as soon as the answer to
the last has come. Every answer is held against what the pipeline says of that text alone, here and
before the server starts: label, exit layer, score. `mixed_up` counts answers with another label or
exit layer, unless the text is a near tie: run in batches of other sizes, sums are added up in
another order, and a score within `NEAR` of the threshold, or of the other class, may fall on the
other side of it. Those are counted as `near_ties`. `lost` are requests without an answer.

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
import tyro
from common import write

from cee_gym.agents import Confidence
from cee_gym.envs import EarlyExitEnv
from cee_gym.errors import CeeGymError
from cee_gym.evaluation.curve import accuracy_speed_curve
from cee_gym.inference.pipeline import EarlyExitPipeline
from cee_gym.inference.pretrained import load_model
from cee_gym.inference.server import full_depth
from cee_gym.models import load_tokenizer
from cee_gym.recordings import open_split
from cee_gym.tasks import get_task, load_splits

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
    """What the pipeline says of a text alone, and how near that was to being something else."""

    label: str
    score: float
    exit_layer: int
    near: bool


def main(args: Args) -> None:
    """Measures and writes `results/runtime_serve.json`."""
    pipeline = make_pipeline(args)
    splits = load_splits(get_task(args.task), str(args.data))
    given = [text_of(row) for row in splits["dev"]]
    texts = [
        text
        for text, encoded in zip(given, pipeline.encode(given), strict=True)
        if not isinstance(encoded, CeeGymError)
    ]
    expected = {
        "early_exit": offline(pipeline, texts),
        "full_depth": offline(full_depth(pipeline), texts),
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
            "backbone": open_split(args.recording, "dev").header["backbone"],
            "layers": pipeline.model.num_layers,
            "trace": open_split(args.recording, "dev").fingerprint,
            "policy": {"agent": pipeline.agent.name, "threshold": pipeline.threshold},
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
    agent = Confidence()
    for split in ("train", "calibration"):
        env = EarlyExitEnv(trace=args.recording, split=split, observe=("confidence",))
        if split == "train":
            agent.learn(env)
    scores = agent.exit_probabilities(env.observations)
    curve = accuracy_speed_curve(env.table.trace, scores, most_points=1000)
    best = min(curve[1:], key=lambda point: abs(point.layer_speedup - LAYER_SPEEDUP))
    assert best.threshold is not None
    tokenizer = load_tokenizer(str(args.model))
    return EarlyExitPipeline(load_model(args.model), tokenizer, agent, threshold=best.threshold)


def text_of(row: dict[str, Any]) -> Any:
    """The text of a row, as requests have it."""
    return {"text": row["text"], "text_pair": row["pair"]} if "pair" in row else row["text"]


def offline(pipeline: EarlyExitPipeline, texts: list[Any]) -> list[Expected]:
    """What the pipeline says of each text when it runs alone."""
    found = []
    for text in texts:
        ((result, *_),) = pipeline([text], top_k=None)
        found.append(result)
    return found
