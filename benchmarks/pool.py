"""Batches that wait for each other at each depth, against batches that run one by one.

    OMP_NUM_THREADS=1 python benchmarks/pool.py TASK MODEL RECORDING DATA

All dev texts, sorted by length, are cut into batches, which eight callers give to a pool; the same
batches run one after another without one, and at full depth. The policy is the confidence rule, its
thresholds chosen on calibration for layer speed-ups of about 1.5 and 2. Times are wall seconds from
token ids on the host to predictions on the host, medians over rounds in random order; on the CPU
all threads share one core. A pool runs texts together that come in batches of their own, so with
batches of 1 it also gains what larger batches gain at full depth, which stands beside it.
"""

import os
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from common import write
from runtime import confidence_at_speeds, full_depth, some_batches

from cee_gym.inference import EarlyExitRuntime, Pool
from cee_gym.models import EncodedText, MultiExitModel, load_model, load_tokenizer
from cee_gym.tasks import get_task, load_splits

# Texts in a batch as they come -> how many are enough in the pool.
SIZES = ((1, 8), (8, 8), (32, 32))
CALLERS = 8
ROUNDS = 5


@dataclass
class Args:
    """Arguments.

    Attributes:
        task: name of the task.
        model: directory of the multi-exit model.
        recording: what it recorded.
        data: directory of the text.
    """

    task: tyro.conf.Positional[str]
    model: tyro.conf.Positional[Path]
    recording: tyro.conf.Positional[Path]
    data: tyro.conf.Positional[Path]


def main(args: Args) -> None:
    """Measures and writes `results/runtime_pool.json`."""
    text = load_splits(get_task(args.task), str(args.data))["dev"]
    model = load_model(args.model).eval()
    encoded = EncodedText(text, load_tokenizer(str(args.model)), model.config.max_tokens)
    agent, thresholds = confidence_at_speeds(args.recording)
    runs = []
    for device in ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]:
        if device == "cpu":
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        model.to(device)
        for threshold in thresholds:
            runtime = EarlyExitRuntime(model, agent, threshold=threshold)
            name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
            runs += [{"device": name, **timed(model, runtime, encoded, *size)} for size in SIZES]
    results = {"task": args.task, "texts": len(encoded), "callers": CALLERS, "rounds": ROUNDS}
    write("runtime_pool", {**results, "thresholds": thresholds, "runs": runs})


def timed(
    model: MultiExitModel, runtime: EarlyExitRuntime, text: EncodedText, size: int, enough: int
) -> dict[str, Any]:
    """All sides at one batch size."""
    batches = [inputs for _, inputs in some_batches(text, size, len(text) + size)]
    larger = [inputs for _, inputs in some_batches(text, enough, len(text) + enough)]

    def pooled() -> list[Any]:
        with ThreadPoolExecutor(CALLERS) as callers:
            return list(callers.map(Pool(runtime, batch_size=enough), batches))

    sides: dict[str, Callable[[], list[Any]]] = {
        "full_depth": lambda: [full_depth(model, inputs) for inputs in batches],
        "full_depth_in_batches_as_in_the_pool": lambda: [full_depth(model, i) for i in larger],
        "alone": lambda: [runtime(inputs) for inputs in batches],
        "pooled": pooled,
    }
    exit_layer = {
        side: np.concatenate([exits.exit_layer for exits in sides[side]()])
        for side in ("alone", "pooled")
    }
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(ROUNDS):
        for side in random.sample(list(sides), len(sides)):
            start = time.perf_counter()
            sides[side]()
            seconds[side].append(time.perf_counter() - start)
    median = {side: float(np.median(taken)) for side, taken in seconds.items()}
    layer_speedup = model.num_layers / float(exit_layer["alone"].mean())
    results = {
        "batch_size": size,
        "enough_in_the_pool": enough,
        "layer_speedup": layer_speedup,
        "same_exit_layer": float((exit_layer["alone"] == exit_layer["pooled"]).mean()),
        "seconds": median,
        "pooled_over_alone": median["alone"] / median["pooled"],
        **{
            f"{side}_speedup_per_layer_speedup": median["full_depth"] / median[side] / layer_speedup
            for side in ("alone", "pooled")
        },
    }
    print(results, flush=True)
    return results


if __name__ == "__main__":
    main(tyro.cli(Args))
