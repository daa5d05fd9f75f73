"""The speed-up that `cee-gym profile` predicts, against the one that is then measured.

    OMP_NUM_THREADS=1 python benchmarks/cost_model.py --recording DIR --data DIR

The model is profiled, then run for every text of dev by the runtime: at full depth, and with a
confidence threshold that comes nearest to each layer speed-up. Predicted is from the recording,
where each text leaves. Full depth is the same runtime with a policy that is never asked. The ways
take turns batch by batch, in random order, so that whatever else the machine does hits all alike;
making the batches is not counted. On one thread all is the time that thread was running, which on
an idle machine is that of the clock.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from common import at_layer_speedup, write

from cee_gym import ExitPolicy, Problem
from cee_gym.backbones.encoding import EncodedText, load_tokenizer
from cee_gym.cost import CostModel
from cee_gym.exits import MultiExitModel, load_model
from cee_gym.inference.runtime import EarlyExitRuntime
from cee_gym.measuring import predict, profile
from cee_gym.observation import Sizes
from cee_gym.policies.rules import Confidence, full_depth
from cee_gym.tasks import get_task, load_splits
from cee_gym.traces.recordings import open_split

LAYER_SPEEDUPS = (1.5, 2.0)
BATCH_SIZES = (1, 8, 32)


@dataclass
class Args:
    """Arguments.

    Attributes:
        recording: with models/deployed.
        data: the recording's text; none for a built-in task.
        seconds: to profile.
        rounds: of the measurement.
    """

    recording: Path
    data: str | None = None
    seconds: float = 60.0
    rounds: int = 3


def main(args: Args) -> None:
    """Profiles, predicts, measures and writes `results/cost_model.json`."""
    directory = args.recording / "models" / "deployed"
    model = load_model(directory)
    dev = open_split(args.recording, "dev")
    task = get_task(dev.header.task)
    data = load_splits(task, args.data)["dev"]
    text = EncodedText(data, load_tokenizer(str(directory)), model.config.max_tokens)
    problem = Problem(dev, observe=("confidence",))
    rule = Confidence().policy(problem)
    policies = [at_layer_speedup(rule, problem, speedup) for speedup in LAYER_SPEEDUPS]
    costs = profile(model, policies[0], seconds=args.seconds, progress_bar=True)
    rows: list[dict[str, Any]] = []
    for batch_size in BATCH_SIZES:
        rows += compare(model, problem, policies, costs, text, batch_size, args.rounds)
        print(*rows[-len(policies) :], sep="\n", flush=True)
    write(
        "cost_model",
        {
            "task": task.name,
            "backbone": dev.header.backbone,
            "texts": len(text),
            "mean_tokens": round(float(text.lengths.mean()), 1),
            "rounds": args.rounds,
            "speed_ups": rows,
            "most_wrong": max(abs(row["predicted_over_measured"] - 1) for row in rows),
        },
    )


def compare(
    model: MultiExitModel,
    dev: Problem,
    policies: list[ExitPolicy],
    costs: CostModel,
    text: EncodedText,
    batch_size: int,
    rounds: int,
) -> list[dict[str, Any]]:
    """Predicted and measured speed-up of each policy."""
    sizes = Sizes(model.num_layers, model.width, model.num_labels)
    ways = [full_depth(sizes), *policies]
    runtimes = [EarlyExitRuntime(model, way) for way in ways]
    of_batches = list(text.batches(np.arange(len(text)), batch_size))
    seconds = np.zeros((len(ways), rounds, len(of_batches)))
    exits = np.zeros((len(ways), len(text)), dtype=np.int64)
    rng = np.random.default_rng(0)
    # On one thread, the time that thread was running, as in a profile.
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    for turn in range(rounds):
        for number, rows in enumerate(of_batches):
            batch = text.batch(rows, torch.device("cpu"))
            for way in rng.permutation(len(ways)):
                start = clock()
                left = runtimes[way](batch)
                seconds[way, turn, number] = clock() - start
                exits[way, rows] = left.exit_layer
    measured = 1e3 * seconds.sum(axis=2) / len(text)  # of a text, in each round
    results = []
    for way, policy in enumerate(policies, start=1):
        recorded = policy.exit_layers(policy.scores_on(dev))
        predicted = predict(costs, recorded, text.lengths, batch_size)
        full, early = float(measured[0].mean()), float(measured[way].mean())
        results.append(
            {
                "batch_size": batch_size,
                "layer_speedup": round(float(model.num_layers / exits[way].mean()), 3),
                "predicted": round(predicted.wall_clock_speedup, 3),
                "measured": round(full / early, 3),
                "measured_each_round": np.round(measured[0] / measured[way], 3).tolist(),
                "predicted_over_measured": round(predicted.wall_clock_speedup * early / full, 3),
                "milliseconds_a_text": {
                    "full_depth": round(full, 3),
                    "full_depth_predicted": round(1e3 * predicted.full_depth / len(text), 3),
                    "early_exit": round(early, 3),
                    "early_exit_predicted": round(1e3 * predicted.early_exit / len(text), 3),
                },
            }
        )
    return results


if __name__ == "__main__":
    main(tyro.cli(Args))
