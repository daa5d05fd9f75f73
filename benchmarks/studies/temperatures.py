"""What a temperature for each exit is worth to the confidence rule.

    python benchmarks/studies/temperatures.py --recordings DIR DIR ...

The threshold is on the confidence as the exits are, and as they were before their logits were
divided. Compared is the accuracy on dev at 20 to 80 % saved layers, row by row; between two
thresholds, either is taken by a coin.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import write
from worth_learning import SAVED, interval

from cee_gym.evaluation.matched import matched_curve
from cee_gym.returns import first_exit
from cee_gym.traces.readout import read_out
from cee_gym.traces.recordings import open_split


@dataclass
class Args:
    """Arguments.

    Attributes:
        recordings: of calibrated exits, with the split dev.
    """

    recordings: tuple[Path, ...]


def on_one(recording: Path) -> dict[str, Any]:
    """With and without temperatures, on one recording."""
    exits = json.loads((recording / "recording.json").read_text())["exits"]
    dev = open_split(recording, "dev")
    logits = np.asarray(dev.logits, np.float32)
    temperatures = np.array(exits["temperatures"], np.float32)[:, None]
    curves = {}
    for name, of in (("without", logits * temperatures), ("with", logits)):
        confidence = read_out(of, np.asarray(dev.labels)[:, None]).confidence
        thresholds = np.quantile(confidence, np.linspace(0, 1, 200))
        leaving = [first_exit(confidence > threshold) for threshold in thresholds]
        curves[name] = matched_curve(leaving, dev.correct).at(SAVED)
    return {
        "rows": len(dev),
        "temperatures": exits["temperatures"],
        "accuracy": {name: of.mean(axis=1).round(4).tolist() for name, of in curves.items()},
        "gain": interval((curves["with"] - curves["without"]).mean(axis=0)),
    }


def main(args: Args) -> None:
    """Measures all."""
    results = {recording.name: on_one(recording) for recording in args.recordings}
    for name, of in results.items():
        print(name, {key: round(value, 4) for key, value in of["gain"].items()})
    write("temperatures", {"saved_layers": SAVED.tolist(), "recordings": results})


if __name__ == "__main__":
    main(tyro.cli(Args))
