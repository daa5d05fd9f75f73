"""What training and evaluation take of memory on a recording larger than it.

A made-up recording of random states is written row by row, and a policy is trained and evaluated on
it in a process of its own, whose anonymous resident memory is watched: pages of the recording
itself, which the system gives back whenever it needs them, are counted apart. What is solved at
once takes minutes, and is measured on a smaller recording, which is still larger than what is held.

python -m benchmarks.memory --gigabytes 7   (results in results/memory.json)
python -m benchmarks.memory --gigabytes 1.2 --result memory_solved_at_once \
    --agents policy-improvement longstaff-schwartz learning-to-exit headroom

memory_solved_at_once_before.json is what the latter took when all states were read into memory.
"""

import json
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import tyro

from benchmarks.common import write
from cee_gym.agents.registry import make_agent, preset_hyperparameters
from cee_gym.headroom import headroom_of
from cee_gym.problem_settings import ProblemSettings
from cee_gym.traces import TraceHeader, TraceWriter, read_out
from cee_gym.training.trainer import ConsistentEETrainer

LAYERS, WIDTH, CLASSES = 12, 768, 2
HEADROOM = "headroom"
OBSERVE = ("hidden", "layer", "confidence", "margin")


@dataclass(frozen=True)
class Args:
    """How large, and what learns on it."""

    gigabytes: float = 7.0
    agents: tuple[str, ...] = ("confidence", "reinforce", "ppo", "sb3:ppo")
    result: str = "memory"
    inner: str = ""


def record(path: Path, rows: int, split: str) -> None:
    """A trace of random states, written 2000 rows at a time."""
    rng = np.random.default_rng(rows)
    labels = rng.integers(CLASSES, size=rows)
    header = TraceHeader(
        task="made-up",
        split=split,
        backbone="none",
        num_labels=CLASSES,
        labels=("no", "yes"),
        depths=tuple(range(1, LAYERS + 1)),
    )
    ids = np.array([f"{split}/{row}" for row in range(rows)])
    writer = TraceWriter(
        path=path, header=header, row_ids=ids, labels=labels, width=WIDTH, dtype="float32"
    )
    lean = np.linspace(0, 2, LAYERS, dtype=np.float32)
    for start in range(0, rows, 2000):
        some = np.arange(start, min(rows, start + 2000))
        logits = rng.normal(size=(len(some), LAYERS, CLASSES)).astype(np.float32)
        logits[np.arange(len(some)), :, labels[some]] += lean
        states = rng.normal(size=(len(some), LAYERS, WIDTH)).astype(np.float32)
        writer.write(some, states, read_out(logits, labels[some][:, None]))
    writer.publish()


def watched(work: Any) -> dict[str, float]:
    """Seconds, and the peaks of this process's memory in MB, while something runs."""
    peaks = {"RssAnon": 0, "RssFile": 0}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            for line in Path("/proc/self/status").read_text().splitlines():
                name = line.split(":")[0]
                if name in peaks:
                    peaks[name] = max(peaks[name], int(line.split()[1]) // 1024)

    thread = threading.Thread(target=watch)
    thread.start()
    began = time.monotonic()
    work()
    seconds = time.monotonic() - began
    done.set()
    thread.join()
    return {
        "seconds": round(seconds, 1),
        "anonymous_mb": peaks["RssAnon"],
        "of_the_recording_mb": peaks["RssFile"],
    }


def learn(agent: str) -> None:
    """Trains and evaluates on the recording in the working directory, or measures headroom."""
    if agent == HEADROOM:
        problem = ProblemSettings(observe=OBSERVE, alpha=(0.01,)).problem(Path("recording"), "dev")
        headroom_of(problem)
        return
    shutil.rmtree("run", ignore_errors=True)
    made = make_agent(agent, **preset_hyperparameters(agent, OBSERVE, 0))
    trainer = ConsistentEETrainer(
        made,
        Path("run"),
        recording=Path("recording"),
        problem=ProblemSettings(observe=OBSERVE, alpha=(0.01,)),
        total_timesteps=100_000,
    )
    trainer.train(progress_bar=False)


def main(args: Args) -> None:
    """Records, then lets each agent learn in a process of its own."""
    if args.inner:
        print(json.dumps(watched(lambda: learn(args.inner))))
        return
    rows = int(args.gigabytes * 2**30 / (4 * LAYERS * WIDTH))
    results: dict[str, Any] = {"rows": rows, "layers": LAYERS, "width": WIDTH}
    with TemporaryDirectory() as directory:
        recording = Path(directory) / "recording"

        def make() -> None:
            for split, count in (("train", rows), ("calibration", 2000), ("dev", 2000)):
                record(recording / split, count, split)

        results["recording"] = watched(make)
        size = sum(file.stat().st_size for file in recording.rglob("*.npy"))
        results["gigabytes"] = round(size / 2**30, 2)
        print(f"{results['gigabytes']} GB recorded: {results['recording']}", flush=True)
        for agent in args.agents:
            words = [sys.executable, "-m", "benchmarks.memory", "--inner", agent]
            root = str(Path(__file__).parents[1])
            done = subprocess.run(
                words, cwd=directory, capture_output=True, text=True, env=_environment(root)
            )
            if done.returncode:
                raise SystemExit(f"{agent} failed:\n{done.stderr[-2000:]}")
            results[agent] = json.loads(done.stdout.splitlines()[-1])
            print(f"{agent}: {results[agent]}", flush=True)
    write(args.result, results)


def _environment(root: str) -> dict[str, str]:
    import os

    return os.environ | {"PYTHONPATH": root}


if __name__ == "__main__":
    main(tyro.cli(Args))
