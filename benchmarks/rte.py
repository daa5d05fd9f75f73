"""The recordings of RTE and SST-2 in the package: how they were made, and why these backbones.

    python benchmarks/rte.py --models DIR --data DIR --work DIR

`e5-small-l12-h384` is first tuned for entailment on SNLI, all exits of it; RTE is then recorded
from three seeds, and from a six-layer MiniLM tuned on the same text to compare with. The package
holds the seed that is right most often on calibration at full depth. Where a recording is done
already it is read. What is learned is learned by `cee_gym.headroom`.
"""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from common import write
from datasets import Dataset

from cee_gym.cli import main as cee_gym
from cee_gym.exits import load_model
from cee_gym.tasks import Task
from cee_gym.traces.recordings import open_split
from cee_gym.training.config import FitConfig, RecordConfig
from cee_gym.training.phases import warm_up
from cee_gym.training.setup import Setup

E5, E5_NLI, MINILM_NLI = "e5-small-l12-h384", "e5-small-l12-h384-nli", "minilm-l6-h384-nli"
ENTAILMENT = ("entailment", "neutral", "contradiction")
SST2_ROWS = 10_428  # the first of train: 8000 to fit, 2000 for the policy, the rest to calibrate


@dataclass
class Args:
    """Arguments.

    Attributes:
        models: the folder with e5-small-l12-h384, minilm-l6-h384 and minilm-l6-h384-nli.
        data: the folder with snli, rte and sst2.
        work: for the tuned backbone and the recordings.
        seeds: how many.
    """

    models: Path
    data: Path
    work: Path
    seeds: int = 3


def tune_on_snli(args: Args) -> Path:
    """The twelve-layer backbone, tuned for entailment; without its exits."""
    target = args.work / E5_NLI
    if target.exists():
        return target
    rows = []
    for part in ("train", "dev"):
        with (args.data / "snli" / f"{part}.tsv").open(newline="", encoding="utf-8") as file:
            lines = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            rows += [
                (f"{part}/{number}", row["premise"], row["hypothesis"], int(row["label"]))
                for number, row in enumerate(lines)
            ]
    columns = zip(("row_id", "text", "pair", "label"), zip(*rows, strict=True), strict=True)
    text = Dataset.from_dict({name: list(column) for name, column in columns})
    config = RecordConfig(
        recipe="finetune",
        policy_data="fitted",
        calibration=0.03,
        warm_up=FitConfig(epochs=3, batch_size=32),
    )
    task = Task("snli", labels=ENTAILMENT, text="premise", pair="hypothesis")
    setup = Setup(task, str(args.models / E5), {"train": text, "dev": text.select([0])}, config)
    warm_up(setup, args.work / "snli")
    tuned = load_model(args.work / "snli" / "deployed", torch.float32)
    unfinished = target.with_suffix(".partial")
    tuned.backbone.save_pretrained(unfinished)
    setup.tokenizer.save_pretrained(unfinished)
    unfinished.rename(target)
    return target


def build(id: str, backbone: Path, data: Path, output: Path, *shares: str) -> None:
    """Records one, on text its backbone was not fitted to."""
    if not output.exists():
        cee_gym(
            [
                *("build", id, "--backbone", str(backbone), "--data", str(data)),
                *("--policy-data", "held_out", *shares, "--output", str(output)),
            ]
        )


def measured(recording: Path) -> dict[str, Any]:
    """Accuracy of each exit, and the fingerprints."""
    traces = {split: open_split(recording, split) for split in ("train", "calibration", "dev")}
    return {
        "fingerprint": {split: trace.fingerprint for split, trace in traces.items()},
        **{
            f"{split}_accuracy_per_layer": trace.correct.mean(axis=0).round(4).tolist()
            for split, trace in traces.items()
        },
    }


def main(args: Args) -> None:
    """Records and measures."""
    tuned = tune_on_snli(args)
    found: dict[str, list[dict[str, Any]]] = {"e5": [], "minilm": []}
    for seed in range(args.seeds):
        for name, backbone in (("e5", tuned), ("minilm", args.models / MINILM_NLI)):
            recording = args.work / f"rte-{name}-{seed}"
            shares = ("--held-out", "0.35", "--seed", str(seed))
            build("EarlyExit-BERT-RTE", backbone, args.data / "rte", recording, *shares)
            found[name].append({"seed": seed, **measured(recording)})
    first = args.work / "sst2-text"
    if not first.exists():
        first.mkdir()
        lines = (args.data / "sst2" / "train.tsv").read_text(encoding="utf-8").splitlines(True)
        (first / "train.tsv").write_text("".join(lines[: SST2_ROWS + 1]), encoding="utf-8")
        (first / "dev.tsv").write_bytes((args.data / "sst2" / "dev.tsv").read_bytes())
    recording = args.work / "sst2"
    shares = ("--held-out", "0.1918", "--calibration", "0.041")
    build("EarlyExit-BERT-SST-2", args.models / "minilm-l6-h384", first, recording, *shares)
    accuracy = {
        name: np.array([row["calibration_accuracy_per_layer"][-1] for row in rows])
        for name, rows in found.items()
    }
    write(
        "rte",
        {
            "trained_on": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "calibration_accuracy_at_full_depth": {
                name: {"mean": round(float(of.mean()), 4), "seeds": of.tolist()}
                for name, of in accuracy.items()
            },
            "shipped_seed": int(accuracy["e5"].argmax()),
            "seeds": found["e5"],
            "minilm_l6_seeds": found["minilm"],
            "sst2": measured(recording),
        },
    )


if __name__ == "__main__":
    main(tyro.cli(Args))
