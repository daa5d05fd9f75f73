"""Exits of the default recipe against frozen probes, the paper's recipe and ordinary fine-tuning.

    python benchmarks/strong_exits.py --models DIR --data DIR --work DIR

Each set is recorded by each recipe from three seeds, with mean pooling throughout, so that recipes
alone differ; where a recording is done already it is read. `ordinary` trains backbone and last exit
alone, then the other exits on the frozen backbone (DeeBERT). Nothing is chosen on dev or test. The
threshold of the confidence rule is the one that saves the wanted share of layers on calibration.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from common import RESULTS, write

from cee_gym.cli import main as cee_gym
from cee_gym.traces.recordings import open_split, recorded_splits

HELD_OUT = ("--policy-data", "held_out", "--held-out")
SETS = {
    "mcid": ("EarlyExit-BERT-MCID", "minilm-l6-h384", ()),
    "mrpc": ("EarlyExit-BERT-MRPC", "minilm-l6-h384-nli", (*HELD_OUT, "0.3")),
    "rte": ("EarlyExit-BERT-RTE", "minilm-l6-h384-nli", (*HELD_OUT, "0.35")),
    "sst2": (
        "EarlyExit-BERT-SST-2",
        "minilm-l6-h384",
        (*HELD_OUT, "0.1918", "--calibration", "0.041"),
    ),
}
RECIPES = {
    "probe": ("--recipe", "probe"),
    "ours": (),
    "paper": ("--recipe", "paper", "--pooling", "mean"),
    "ordinary": (
        *("--recipe", "paper", "--pooling", "mean"),
        *("--objective", "two_stage", "--pooler", "per_layer"),
    ),
}
SAVED = (0.2, 0.4, 0.5, 0.6, 0.7, 0.8)


@dataclass
class Args:
    """Arguments.

    Attributes:
        models: the folder with minilm-l6-h384 and minilm-l6-h384-nli.
        data: the folder with mcid, mrpc, rte and sst2, its train cut to 10 428 rows; a test of it,
            where there is one, is of further rows of train.
        work: for the recordings.
        seeds: how many.
        read_only: measure the recordings there are, and make none; a set of which there is none
            keeps the results it has.
    """

    models: Path
    data: Path
    work: Path
    seeds: int = 3
    read_only: bool = False


def record(args: Args, name: str, recipe: str, seed: int, output: Path) -> None:
    """Records one; of M-CID all but ours are fitted to all rows, as nothing is learned there."""
    id, backbone, shares = SETS[name]
    if name == "mcid" and recipe != "ours":
        shares = ("--policy-data", "fitted")
    cee_gym(
        [
            *("build", id, "--backbone", str(args.models / backbone)),
            *("--data", str(args.data / name), *shares, *RECIPES[recipe]),
            *("--seed", str(seed), "--output", str(output)),
        ]
    )


def confidence_rule(recording: Path, split: str) -> list[float]:
    """Accuracy on a split of the thresholds that save the wanted shares on calibration."""
    calibration, reported = (open_split(recording, of) for of in ("calibration", split))
    found = []
    for saved in SAVED:
        thresholds = np.unique(np.asarray(calibration.confidence))
        leave = np.asarray(calibration.confidence)[None] > thresholds[:, None, None]
        leave[..., -1] = True
        shares = 1 - (leave.argmax(axis=2) + 1).mean(axis=1) / calibration.num_layers
        threshold = thresholds[shares >= saved].max(initial=0.0)
        leaves = np.asarray(reported.confidence) > threshold
        leaves[:, -1] = True
        rows = np.arange(len(reported))
        found.append(float(reported.correct[rows, leaves.argmax(axis=1)].mean()))
    return found


def measured(recording: Path) -> dict[str, Any]:
    """Accuracy of every exit on all that was not fitted to, and what calibration did."""
    exits = json.loads((recording / "recording.json").read_text())["exits"]
    splits = [of for of in recorded_splits(recording) if of != "train"]
    return {
        "accuracy": {
            of: open_split(recording, of).correct.mean(axis=0).round(4).tolist() for of in splits
        },
        "rows": {of: len(open_split(recording, of)) for of in splits},
        "confidence_rule": {of: confidence_rule(recording, of) for of in splits[1:]},
        "calibration": {key: exits[key] for key in exits if key not in ("layer", "accuracy")},
    }


def mean_of(seeds: list[dict[str, Any]], key: str) -> dict[str, list[float]]:
    """Over seeds, for each split."""
    return {
        of: np.mean([seed[key][of] for seed in seeds], axis=0).round(4).tolist()
        for of in seeds[0][key]
    }


def main(args: Args) -> None:
    """Records and measures."""
    sets: dict[str, Any] = {}
    for name in SETS:
        if args.read_only and not any(args.work.glob(f"{name}-*-[0-9]*")):
            sets[name] = json.loads((RESULTS / "strong_exits.json").read_text())["sets"][name]
            continue
        for recipe in RECIPES:
            seeds = []
            for seed in range(args.seeds):
                recording = args.work / f"{name}-{recipe}-{seed}"
                if not recording.exists():
                    if args.read_only:
                        continue
                    record(args, name, recipe, seed, recording)
                seeds.append({"seed": seed, **measured(recording)})
            if seeds:
                sets.setdefault(name, {})[recipe] = {
                    "seeds": seeds,
                    "accuracy": mean_of(seeds, "accuracy"),
                    "confidence_rule": mean_of(seeds, "confidence_rule"),
                }
    worst = {
        name: {
            of: {
                "over_probe_worst_exit": round(float(min(np.subtract(ours, probe))), 4),
                "over_ordinary_last_exit": round(
                    float(ours[-1] - recipes["ordinary"]["accuracy"][of][-1]), 4
                )
                if "ordinary" in recipes
                else None,
            }
            for of, ours in recipes["ours"]["accuracy"].items()
            for probe in [recipes["probe"]["accuracy"][of]]
        }
        for name, recipes in sets.items()
    }
    write("strong_exits", {"saved_layers": SAVED, "differences": worst, "sets": sets})


if __name__ == "__main__":
    main(tyro.cli(Args))
