"""The plain alternative to early exit: a model cut to half of its layers and trained by itself.

    python benchmarks/half_depth.py --models DIR --data DIR --work DIR

Each is recorded by the default recipe, as `strong_exits.py` records the whole model, and all rows
that no threshold is chosen on are fitted to, as nothing is learned afterwards.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro
from strong_exits import SETS
from transformers import AutoConfig, AutoModel, AutoTokenizer

from cee_gym.cli import main as cee_gym


@dataclass
class Args:
    """Arguments.

    Attributes:
        models: the folder with the backbones of `strong_exits.py`.
        data: the folder with the data sets.
        work: for the cut models, and for the recordings, SET-half-SEED.
        sets: which.
        seeds: how many.
    """

    models: Path
    data: Path
    work: Path
    sets: tuple[str, ...] = tuple(SETS)
    seeds: int = 3


def cut(backbone: Path, target: Path) -> None:
    """Writes the first half of the layers of a backbone, with its tokenizer."""
    if target.exists():
        return
    half = AutoConfig.from_pretrained(backbone).num_hidden_layers // 2
    unfinished = target.with_name(f"{target.name}.partial")
    AutoModel.from_pretrained(backbone, num_hidden_layers=half).save_pretrained(unfinished)
    AutoTokenizer.from_pretrained(backbone).save_pretrained(unfinished)
    unfinished.rename(target)


def main(args: Args) -> None:
    """Cuts, trains and records."""
    for name in args.sets:
        id, backbone, shares = SETS[name]
        half = args.work / f"{backbone}-half"
        cut(args.models / backbone, half)
        calibration = shares[shares.index("--calibration") :] if "--calibration" in shares else ()
        for seed in range(args.seeds):
            output = args.work / f"{name}-half-{seed}"
            if output.exists():
                continue
            cee_gym(
                [
                    *("build", id, "--backbone", str(half), "--data", str(args.data / name)),
                    *("--policy-data", "fitted", *calibration),
                    *("--seed", str(seed), "--output", str(output)),
                ]
            )


if __name__ == "__main__":
    main(tyro.cli(Args))
