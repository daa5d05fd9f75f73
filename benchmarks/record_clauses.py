"""The shipped recording of Clauses, by the shipped weights, and what there is to gain on it.

    python benchmarks/record_clauses.py

Of each split the first rows, so that the package stays small; `cee-gym build
EarlyExit-ToyBERT-Clauses` records them all.
"""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from common import write

import cee_gym
from cee_gym import Reward
from cee_gym.headroom import headroom_of
from cee_gym.problem import open_problem
from cee_gym.tasks import get_task
from cee_gym.training.config import RecordConfig
from cee_gym.training.phases import record, warm_up
from cee_gym.training.setup import Setup

ID = "EarlyExit-ToyBERT-Clauses"
SHIPPED = Path(cee_gym.__file__).parent / "shipped" / ID
ROWS = {"train": 500, "dev": 700}
REWARDS = {"paper": Reward.paper(), "correctness": Reward("correctness", hardness=None)}
ALPHAS = (0.02, 0.035, 0.05)


def main() -> None:
    """Records, and measures."""
    config = RecordConfig(calibration=0.2, folds=2)
    setup = Setup.load(get_task("clauses"), str(SHIPPED / "backbone"), None, config)
    for split, rows in ROWS.items():
        setup.splits[split] = setup.splits[split].select(range(rows))
    with TemporaryDirectory() as directory:
        work = Path(directory)
        warm_up(setup, work / "models")
        record(setup, work / "models", work / "recording")
        shutil.copytree(work / "recording", SHIPPED, dirs_exist_ok=True)
    found = {}
    for name, reward in REWARDS.items():
        for alpha in ALPHAS:
            problem = open_problem(ID, split="dev", reward=reward, alpha=alpha)
            measured = headroom_of(problem)
            found[f"{name}, alpha {alpha}"] = {
                key: value._asdict() if isinstance(value, tuple) else value
                for key, value in vars(measured).items()
            }
            print(f"{name}, {measured}\n")
    write("clauses", {"fingerprint": problem.trace.fingerprint, "headroom": found})


if __name__ == "__main__":
    main()
