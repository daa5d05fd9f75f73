"""How fast the vector environment steps, against the least it has to do: gather its observations.

    OMP_NUM_THREADS=1 python benchmarks/vector_env.py

Every step of n environments gives n observations, so `np.take` of n random rows as wide as an
observation is a floor under its time. Both are measured in turns in one run, in CPU time of the one
thread that works, with random actions, in mode SameStep, infos included. Steps are those of single
environments.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from common import write

import cee_gym  # noqa: F401 (registers the ids)
from cee_gym.traces import TraceHeader, TraceWriter, read_out
from cee_gym.traces.recordings import MissingRecordingError, find_recording

ID = "EarlyExit-BERT-RTE"
REPEATS = 25
SECONDS_A_REPEAT = 0.1


def main() -> None:
    """Measures and writes `results/vector_env.json`."""
    with tempfile.TemporaryDirectory() as folder:
        trace, name = recording(Path(folder))
        results: dict[str, Any] = {
            "recording": name,
            "repeats": REPEATS,
            "steps_per_second": [compare(trace, num_envs) for num_envs in (64, 256, 1024, 4096)],
            "sync_vector_env": compare(trace, 64, vectorization_mode="sync"),
        }
    for row in (*results["steps_per_second"], results["sync_vector_env"]):
        print(row)
    write("vector_env", results)


def recording(folder: Path) -> tuple[Path, str]:
    """The recorded RTE benchmark, or a made-up trace of its size."""
    try:
        return find_recording(ID) / "train", ID
    except MissingRecordingError:
        n, num_layers, width, rng = 700, 6, 384, np.random.default_rng(0)
        writer = TraceWriter(
            path=folder / "trace",
            header=TraceHeader(
                task="made-up",
                split="train",
                backbone="none",
                num_labels=2,
                depths=tuple(range(1, num_layers + 1)),
            ),
            row_ids=np.array([f"train/{row}" for row in range(n)]),
            labels=rng.integers(2, size=n),
            width=width,
            dtype="float16",
        )
        states = rng.normal(size=(n, num_layers, width))
        logits = rng.normal(size=(n, num_layers, 2)).astype(np.float32)
        writer.write(np.arange(n), states, read_out(logits, writer.labels[:, None]))
        return writer.publish().path, f"made up, {n} x {num_layers} x {width}"


def compare(trace: Path, num_envs: int, **how: Any) -> dict[str, Any]:
    """Steps per second of the vector environment and rows per second of `np.take`."""
    if how:
        how["vector_kwargs"] = {"autoreset_mode": "SameStep"}
    envs = gym.make_vec("EarlyExit", num_envs=num_envs, trace=str(trace), **how)
    envs.reset(seed=0)
    rng = np.random.default_rng(0)
    table = gym.make("EarlyExit", trace=str(trace)).unwrapped.problem.observe()  # type: ignore
    table = table.reshape(-1, table.shape[-1])
    actions = rng.integers(2, size=(64, num_envs))
    rows = rng.integers(len(table), size=(64, num_envs))

    one_step = timer(lambda turn: envs.step(actions[turn % 64]))
    one_take = timer(lambda turn: np.take(table, rows[turn % 64], axis=0))
    one_step(), one_take()  # warm up
    seconds = [(one_step(), one_take()) for _ in range(REPEATS)]
    step, take = (statistics.median(column) for column in zip(*seconds, strict=True))
    return {
        "num_envs": num_envs,
        "observation_width": table.shape[1],
        "env": round(num_envs / step),
        "np_take": round(num_envs / take),
        "ratio": round(statistics.median(t / s for s, t in seconds), 3),
    }


def timer(call: Callable[[int], object]) -> Callable[[], float]:
    """Measures the mean CPU seconds of one call over a tenth of a second of calls."""

    def measure() -> float:
        turn, kept = 0, None
        start = time.process_time()
        while time.process_time() - start < SECONDS_A_REPEAT:
            kept = call(turn)  # as a learner does, keep one result while the next is made
            turn += 1
        del kept
        return (time.process_time() - start) / turn

    return measure


if __name__ == "__main__":
    main()
