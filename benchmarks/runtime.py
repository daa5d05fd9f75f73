"""The runtime against the same backbone at full depth, on the clock.

    OMP_NUM_THREADS=1 python benchmarks/runtime.py --runs TASK MODEL RECORDING DATA ...

MODEL is a multi-exit model, RECORDING what it recorded, DATA the text. Policies are the confidence
rule and a learned one; their thresholds are chosen on calibration for layer speed-ups of about 1.5
and 2, before anything is timed.

Full depth is transformers' own forward pass of the same backbone (attention sdpa) and the last exit
head. Both sides get the same batches of dev texts, sorted by length and padded to the longest of
each, and are timed from token ids on the host to predictions on the host, heads and policy
included. All sides take their turn at every 16 batches, in random order, round after round: a side
finds its weights in the cache as it does in use, and what disturbs the machine for a while disturbs
all. Of each batch and side the median over rounds counts. CPU time is that of the one thread that
works: it says what wall time would be if no other process had disturbed.

`layer_speedup` counts the layers of every text alike. Where longer texts leave later, the share of
the work that is saved is smaller; `token_layer_speedup` counts the layers of every token.
"""

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import tyro
from common import at_layer_speedup, write

from cee_gym import ExitPolicy, Problem
from cee_gym.agents import Agent, ExpectedReturn, make_agent
from cee_gym.agents.registry import preset_for
from cee_gym.backbones.encoding import EncodedText, load_tokenizer
from cee_gym.envs import EarlyExitEnv
from cee_gym.evaluation.wall_clock import full_depth
from cee_gym.exits import MultiExitModel, load_model
from cee_gym.inference import EarlyExitRuntime
from cee_gym.policies.rules import Confidence
from cee_gym.tasks import get_task, load_splits
from cee_gym.traces.recordings import open_split

ALPHA = 0.01
LAYER_SPEEDUPS = (1.5, 2.0)
# Batch size -> the least share of the layer speed-up that should be seen on the clock.
WANTED = {1: 0.9, 8: 0.85, 32: 0.85, 128: 0.85}
SHARE_AT = 32
TURN = 16
LEAST_ROUNDS = 3

Inputs = dict[str, torch.Tensor]
Rows = npt.NDArray[np.int64]
Batches = list[tuple[Rows, Inputs]]


@dataclass
class Args:
    """Arguments.

    Attributes:
        runs: TASK MODEL RECORDING DATA, once or more.
        texts: about how many dev texts to time; batches are taken evenly from all lengths.
        seconds: to time each batch size for, though at least 3 rounds.
        device: cpu or cuda; by default the CPU and, where there is one, a GPU.
    """

    runs: tuple[tuple[str, Path, Path, Path], ...]
    texts: int = 256
    seconds: float = 40.0
    device: str | None = None


@dataclass(frozen=True)
class Side:
    """A policy at one speed.

    Attributes:
        policy: decides.
        wanted: the layer speed-up it was set to, on calibration.
        recorded: int `[N]`, where each dev text leaves by the recording.
    """

    policy: ExitPolicy
    wanted: float
    recorded: Rows


def main(args: Args) -> None:
    """Measures and writes `results/runtime_classification.json`."""
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    results = []
    for task, model, recording, data in args.runs:
        text = load_splits(get_task(task), str(data))["dev"]
        encoded = EncodedText(text, load_tokenizer(str(model)), load_model(model).config.max_tokens)
        sides = policies(task, recording)
        for device in [args.device] if args.device else devices:
            on_device = load_model(model).to(device).eval()
            assert on_device.backbone.config._attn_implementation == "sdpa"
            results.append(
                {
                    "task": task,
                    "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
                    "backbone": open_split(recording, "dev").header.backbone,
                    "layers": on_device.num_layers,
                    "dev_texts": len(encoded),
                    "mean_tokens": float(encoded.lengths.mean()),
                    "trace": open_split(recording, "dev").fingerprint,
                    "share_of_a_layer": shares(on_device, encoded, sides, args.texts),
                    "batch_sizes": [
                        timed(on_device, encoded, sides, batch_size, args, recording)
                        for batch_size in WANTED
                    ],
                }
            )
    write("runtime_classification", {"alpha": ALPHA, "runs": results})


def policies(task: str, recording: Path) -> list[Side]:
    """The policies, each at every speed."""
    preset = preset_for("expected-return")
    agents: list[tuple[Agent, tuple[str, ...], int]] = [
        (make_agent("confidence"), ("confidence",), 1),
        (ExpectedReturn(**preset.hyperparameters), preset.observe, preset.total_timesteps),
    ]
    sides = []
    for agent, parts, timesteps in agents:
        envs = {
            split: EarlyExitEnv(
                trace=str(recording), split=split, alpha=ALPHA, observe=parts, reward="paper"
            )
            for split in ("train", "calibration", "dev")
        }
        agent.learn(envs["train"], timesteps)
        scores = agent.policy.scores_on(envs["dev"].problem)
        for wanted in LAYER_SPEEDUPS:
            policy = at_layer_speedup(agent.policy, envs["calibration"].problem, wanted)
            sides.append(Side(policy, wanted, policy.exit_layers(scores)))
    return sides


def confidence_at_speeds(recording: Path) -> list[ExitPolicy]:
    """The confidence rule at both layer speed-ups."""
    calibration = Problem(open_split(recording, "calibration"), observe=("confidence",))
    rule = Confidence().policy(calibration)
    return [at_layer_speedup(rule, calibration, wanted) for wanted in LAYER_SPEEDUPS]


def some_batches(text: EncodedText, batch_size: int, texts: int) -> Batches:
    """Batches of like length, evenly from the longest to the shortest."""
    every = list(text.batches(np.arange(len(text)), batch_size))
    count = min(len(every), max(3, texts // batch_size))
    picked = np.linspace(0, len(every) - 1, count).round().astype(int)
    cpu = torch.device("cpu")
    return [(every[i], text.batch(every[i], cpu)) for i in picked]


def timed(
    model: MultiExitModel,
    text: EncodedText,
    sides: list[Side],
    batch_size: int,
    args: Args,
    recording: Path,
) -> dict[str, Any]:
    """All sides on batches of one size."""
    batches = some_batches(text, batch_size, args.texts)
    rows = np.concatenate([rows for rows, _ in batches])
    runtimes = [EarlyExitRuntime(model, side.policy) for side in sides]
    calls: list[Callable[[Inputs], Any]] = [partial(full_depth, model), *runtimes]
    trace, labels = open_split(recording, "dev"), text.labels.numpy()[rows]
    full = np.concatenate([full_depth(model, inputs).numpy() for _, inputs in batches])
    totals, rounds = in_turn(calls, batches, args.seconds)
    entries = []
    for side, runtime, (wall, cpu) in zip(sides, runtimes, totals[1:], strict=True):
        exits = [runtime(inputs) for _, inputs in batches]
        exit_layer = np.concatenate([part.exit_layer for part in exits])
        prediction = np.concatenate([part.prediction for part in exits])
        layer_speedup = model.num_layers / exit_layer.mean()
        lengths = text.lengths[rows]
        speedups = {"wall_clock_speedup": totals[0, 0] / wall}
        if model.device.type == "cpu":
            speedups["cpu_time_speedup"] = totals[0, 1] / cpu
        ratios = {f"{name}_per_layer_speedup": s / layer_speedup for name, s in speedups.items()}
        entries.append(
            {
                "policy": side.policy.name,
                "layer_speedup_on_calibration": side.wanted,
                "threshold": side.policy.threshold,
                "layer_speedup": layer_speedup,
                "token_layer_speedup": model.num_layers
                * lengths.sum()
                / (lengths * exit_layer).sum(),
                **speedups,
                **ratios,
                "milliseconds_a_text": 1e3 * wall / len(rows),
                "accuracy": float((prediction == labels).mean()),
                "mean_exit_layer": exit_layer.mean(),
                "exits": np.bincount(exit_layer, minlength=model.num_layers + 1)[1:].tolist(),
                "exits_as_recorded": float((exit_layer == side.recorded[rows]).mean()),
            }
        )
        print(
            f"{model.device.type} batch {batch_size:3d} {side.policy.name:16} layers "
            f"{layer_speedup:.2f}x tokens {entries[-1]['token_layer_speedup']:.2f}x",
            *(f"{name.split('_')[0]} {value:.2f}x" for name, value in speedups.items()),
            *(f"{value:.2f}" for value in ratios.values()),
            f"(wanted {WANTED[batch_size]})",
            flush=True,
        )
    return {
        "batch_size": batch_size,
        "texts": len(rows),
        "rounds": rounds,
        "wanted_per_layer_speedup": WANTED[batch_size],
        "full_depth": {
            "milliseconds_a_text": 1e3 * totals[0, 0] / len(rows),
            "accuracy": float((full == labels).mean()),
            "predictions_as_recorded": float((full == trace.prediction[rows, -1]).mean()),
        },
        "policies": entries,
    }


def in_turn(
    calls: list[Callable[[Inputs], Any]], batches: Batches, at_least: float
) -> tuple[npt.NDArray[np.float64], int]:
    """Wall and CPU seconds that each call takes for all batches, `[calls, 2]`, and the rounds.

    Args:
        calls: what is timed.
        batches: given to each.
        at_least: seconds to go on for, and for at least 3 rounds.
    """
    # By call, batch and round.
    seconds: list[list[list[tuple[float, float]]]] = [[[] for _ in batches] for _ in calls]
    draw, start, rounds = random.Random(0), time.perf_counter(), 0
    while rounds < LEAST_ROUNDS or time.perf_counter() - start < at_least:
        for first in range(0, len(batches), TURN):
            for side in draw.sample(range(len(calls)), len(calls)):
                for number, (_, inputs) in enumerate(batches[first : first + TURN], first):
                    wall, cpu = time.perf_counter(), time.thread_time()
                    calls[side](inputs)
                    taken = (time.perf_counter() - wall, time.thread_time() - cpu)
                    seconds[side][number].append(taken)
        rounds += 1
    return np.median(np.array(seconds), axis=2).sum(axis=1), rounds


def shares(
    model: MultiExitModel, text: EncodedText, sides: list[Side], texts: int
) -> list[dict[str, Any]]:
    """What an exit head and a policy take, against a layer, where they stand in a run.

    Medians of the CPU seconds of the thread on a CPU, of wall seconds on a GPU.
    """
    batches = some_batches(text, SHARE_AT, texts)
    on_cpu = model.device.type == "cpu"

    def now() -> float:
        if on_cpu:
            return time.thread_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    results = []
    for side in sides[:: len(LAYER_SPEEDUPS)]:
        runtime = EarlyExitRuntime(model, side.policy)
        taken: list[list[float]] = []
        with torch.inference_mode():
            for _, inputs in batches * LEAST_ROUNDS:
                inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
                hidden, calls = model.begin(inputs)
                weights = runtime._exits[0].weights(inputs["attention_mask"], hidden.dtype)
                for layer, call in enumerate(calls[:-1], start=1):
                    times = [now()]
                    hidden = call(hidden)
                    times.append(now())
                    state, logits = runtime._exits[layer - 1](hidden, weights)
                    times.append(now())
                    observed = runtime._observe(state, logits, layer, [])
                    runtime.decider.leave(observed, layer)
                    times.append(now())
                    taken.append(np.diff(times).tolist())
        layer, head, policy = (statistics.median(part) for part in zip(*taken, strict=True))
        results.append(
            {
                "policy": side.policy.name,
                "batch_size": SHARE_AT,
                "layer_milliseconds": 1e3 * layer,
                "head": head / layer,
                "policy_and_head": (head + policy) / layer,
            }
        )
        print(f"{side.policy.name}: head and policy take {(head + policy) / layer:.2%} of a layer")
    return results


if __name__ == "__main__":
    main(tyro.cli(Args))
