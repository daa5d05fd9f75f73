"""What `cee-gym suitability` predicts, against what is then measured.

    OMP_NUM_THREADS=1 python benchmarks/suitability.py --models DIR --data DIR --work DIR

On each set the command is run with its defaults; then the runtime runs the same text of dev at full
depth, cut at the layer it found, by its threshold, and by its learned policy, in turns batch by
batch. See `cost_model.py` for how time is taken.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from common import write
from cost_model import compare

from cee_gym import ExitPolicy, Problem
from cee_gym.agents.presets import OBSERVE
from cee_gym.backbones.encoding import EncodedText, load_tokenizer
from cee_gym.cli import main as cee_gym
from cee_gym.cost import CostModel
from cee_gym.evaluation.suitability import BATCH_SIZES, POINTS_LOST, learn
from cee_gym.exits import load_model
from cee_gym.policies.rules import FixedLayer
from cee_gym.policies.speeds import Speed, measure_speeds
from cee_gym.tasks import get_task, load_splits
from cee_gym.traces.recordings import open_split

SETS = {"mcid": "EarlyExit-BERT-MCID", "sst2": "EarlyExit-BERT-SST-2"}
MODEL = "minilm-l6-h384"
ALL = ("layer", *OBSERVE[1:])


@dataclass
class Args:
    """Arguments.

    Attributes:
        models: the folder with minilm-l6-h384.
        data: the folder with the sets.
        work: for what the command keeps.
        seconds: to profile.
        rounds: of the measurement.
    """

    models: Path
    data: Path
    work: Path
    seconds: float = 60.0
    rounds: int = 3


def held(recording: Path, name: str, points_lost: float, layer: int) -> ExitPolicy:
    """The policy at its speed."""
    if name == "cut":
        return FixedLayer(layer=layer).policy(Problem(open_split(recording, "dev"), observe=ALL))
    policy = learn(name, recording)
    problem = Problem(
        open_split(recording, "calibration"), observe=policy.observe, alpha=policy.alpha_range
    )
    return Speed(points_lost=points_lost).choose(policy, measure_speeds(policy, problem))


def on_set(args: Args, name: str) -> dict[str, Any]:
    """Predicted and measured speed-ups on one set."""
    output = args.work / f"suitability-{name}"
    if not (output / "suitability.json").exists():
        cee_gym(
            [
                *("suitability", SETS[name], "--backbone", str(args.models / MODEL)),
                *("--data", str(args.data / name), "--output", str(output)),
                *("--seconds", str(args.seconds)),
            ]
        )
    said = json.loads((output / "suitability.json").read_text())
    recording, directory = output / "recording", output / "models" / "deployed"
    model = load_model(directory, torch.float32)
    dev = open_split(recording, "dev")
    split = load_splits(get_task(dev.header.task), str(args.data / name))["dev"]
    text = EncodedText(split, load_tokenizer(str(directory)), model.config.max_tokens)
    costs = CostModel.load(output / "profile-threshold.json")
    accuracy = open_split(recording, "calibration").correct.mean(axis=0)
    rows = []
    for way in said["ways"]:
        if way["name"] == "bound" or way["points_lost"] != max(POINTS_LOST):
            continue
        layer = 1 + int((accuracy >= accuracy[-1] - way["points_lost"] / 100).argmax())
        policy = held(recording, way["name"], way["points_lost"], layer)
        observe = ALL if way["name"] == "cut" else policy.observe
        problem = Problem(dev, observe=observe, alpha=policy.alpha_range)
        for size in BATCH_SIZES:
            (found,) = compare(model, problem, [policy], costs, text, size, args.rounds)
            predicted = way["speedups"][str(size)]
            rows.append(
                {
                    "way": way["name"],
                    "points_allowed": way["points_lost"],
                    "batch_size": size,
                    "saved_layers": round(way["saved_layers"], 4),
                    "predicted": round(predicted, 3),
                    "measured": found["measured"],
                    "measured_each_round": found["measured_each_round"],
                    "predicted_over_measured": round(predicted / found["measured"], 3),
                }
            )
            print(name, rows[-1], flush=True)
    ratios = np.array([row["predicted_over_measured"] for row in rows])
    return {
        "texts": len(text),
        "mean_tokens": round(float(text.lengths.mean()), 1),
        "said": said,
        "speed_ups": rows,
        "most_wrong": round(float(np.abs(ratios - 1).max()), 3),
        "within_10_percent": f"{int((np.abs(ratios - 1) <= 0.1).sum())} of {len(ratios)}",
    }


def main(args: Args) -> None:
    """Asks, measures and writes `results/suitability.json`."""
    results: dict[str, Any] = {"model": MODEL, "sets": {}}
    for name in SETS:
        results["sets"][name] = on_set(args, name)
        write("suitability", results)


if __name__ == "__main__":
    main(tyro.cli(Args))
