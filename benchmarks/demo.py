"""Time and result of `make demo`, after the install.

python benchmarks/demo.py
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from common import write

PLOT = Path(__file__).parents[1] / "docs" / "demo.png"
CEE_GYM = [sys.executable, "-m", "cee_gym"]


def main() -> None:
    """Runs the two commands in an empty directory."""
    with TemporaryDirectory() as directory:
        environment = {**os.environ, "CEE_GYM_HOME": f"{directory}/home"}
        start = time.perf_counter()
        for command in (
            "train EarlyExit-ToyBERT-Clauses --agent reinforce --alpha 0.035 --rounds 1 "
            "--total-timesteps 1000000 "
            "--observe hidden layer confidence margin agreement previous --output runs/demo",
            "evaluate runs/demo",
        ):
            subprocess.run([*CEE_GYM, *command.split()], cwd=directory, env=environment, check=True)
        seconds = time.perf_counter() - start
        shutil.copy(Path(directory) / "runs/demo/evaluation.png", PLOT)
        results = json.loads((Path(directory) / "runs/demo/evaluation.json").read_text())
    write(
        "demo",
        {
            "seconds": seconds,
            "dev_rows": results["rows"],
            "full_depth_accuracy": results["full_depth"]["accuracy"],
            "policy": {
                id: {
                    key: point["measured"]["dev"][key]
                    for key in ("accuracy", "saved_layers", "mean_return")
                }
                for id, point in results["points"].items()
            },
            "hindsight_return": results["hindsight"]["mean_return"],
            "best_fixed_layer_return": max(p["mean_return"] for p in results["fixed_layers"]),
        },
    )


if __name__ == "__main__":
    main()
