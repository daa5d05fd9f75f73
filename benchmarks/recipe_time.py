"""What each recipe takes: CPU seconds of one backbone, on one thread.

    OMP_NUM_THREADS=1 python benchmarks/recipe_time.py --models DIR --data DIR

One model is made by each recipe with its defaults, fitted to all rows that no threshold is chosen
on. `finetune` includes the probes it starts from.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tyro
from common import write
from strong_exits import SETS

from cee_gym.envs.registration import BENCHMARKS
from cee_gym.tasks import get_task
from cee_gym.training.config import RecordConfig
from cee_gym.training.phases import warm_up
from cee_gym.training.setup import Setup


@dataclass
class Args:
    """Arguments.

    Attributes:
        models: the folder with the backbones of `strong_exits.py`.
        data: the folder with the data sets.
        sets: which.
    """

    models: Path
    data: Path
    sets: tuple[str, ...] = ("mcid",)


def main(args: Args) -> None:
    """Makes and writes `results/recipe_time.json`."""
    results: dict[str, Any] = {}
    for name in args.sets:
        id, backbone, _ = SETS[name]
        found: dict[str, Any] = {}
        for recipe in ("probe", "finetune", "paper"):
            setup = Setup.load(
                get_task(BENCHMARKS[id]),
                str(args.models / backbone),
                str(args.data / name),
                RecordConfig(recipe=recipe, policy_data="fitted"),
            )
            with TemporaryDirectory() as directory:
                start = time.process_time()
                warm_up(setup, Path(directory) / "models")
                found[recipe] = round(time.process_time() - start, 1)
            print(name, recipe, found[recipe], flush=True)
        results[name] = {
            "rows": len(setup.partition.fit["deployed"]),
            "epochs": setup.config.warm_up.epochs,
            "cpu_seconds": found,
            "over_paper": {recipe: round(of / found["paper"], 3) for recipe, of in found.items()},
        }
        write("recipe_time", results)


if __name__ == "__main__":
    main(tyro.cli(Args))
