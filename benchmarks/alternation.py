r"""The whole loop on real text: dev accuracy and saved layers before and after alternating.

    python benchmarks/alternation.py --task mrpc --models DIR --data DIR --work DIR \
        --policy-data held_out --epochs 3 --learning-rate 1e-4

Over seeds. Goes on where it was stopped.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from common import write
from policy_data import BACKBONES

from cee_gym.agents import Reinforce
from cee_gym.problem_settings import ProblemSettings
from cee_gym.tasks import get_task
from cee_gym.training.config import AlternationConfig, FitConfig, RecordConfig
from cee_gym.training.partition import PolicyData
from cee_gym.training.setup import Setup
from cee_gym.training.trainer import ConsistentEETrainer


@dataclass
class Args:
    """Arguments.

    Attributes:
        task: mcid or mrpc.
        models: the folder with the backbones.
        data: the folder with the data sets.
        work: for the runs.
        policy_data: which data the policy learns on.
        seeds: how many.
        rounds: of the alternation.
        epochs: of the warm-up.
        learning_rate: of the warm-up.
        alpha: the price of one layer.
    """

    task: str
    models: Path
    data: Path
    work: Path
    policy_data: PolicyData
    seeds: int = 3
    rounds: int = 2
    epochs: int = 8
    learning_rate: float = 2e-4
    alpha: float = 0.035


def main(args: Args) -> None:
    """Runs all seeds."""
    task = get_task(args.task)
    seeds: list[dict[str, Any]] = []
    for seed in range(args.seeds):
        output = args.work / f"alternation-{args.task}-{seed}"
        setup = Setup.load(
            task,
            str(args.models / BACKBONES[args.task]),
            str(args.data / args.task),
            RecordConfig(
                policy_data=args.policy_data,
                pooling="mean",
                precision="bf16",
                seed=seed,
                warm_up=FitConfig(epochs=args.epochs, learning_rate=args.learning_rate),
            ),
        )
        ConsistentEETrainer(
            Reinforce(seed=seed, weight_decay=0.01),
            output,
            setup=setup,
            problem=ProblemSettings(alpha=(args.alpha,), observe=("hidden", "layer")),
            total_timesteps=300_000,
            alternation=AlternationConfig(rounds=args.rounds),
            metrics=task.metrics,
        ).train(resume=True)
        rounds = [
            json.loads((output / f"round-{number}" / "evaluation.json").read_text())
            for number in range(args.rounds + 1)
        ]
        seeds.append({"seed": seed, "rounds": [brief(results) for results in rounds]})
        print(seeds[-1], flush=True)
    write(
        f"alternation_{args.task}",
        {
            "task": args.task,
            "backbone": BACKBONES[args.task],
            "policy_data": args.policy_data,
            "epochs": args.epochs,
            "learning_rate": args.learning_rate,
            "alpha": args.alpha,
            "mean_over_seeds": [
                mean([seed["rounds"][number] for seed in seeds])
                for number in range(args.rounds + 1)
            ],
            "seeds": seeds,
        },
    )


def brief(results: dict[str, Any]) -> dict[str, Any]:
    """What is compared between rounds."""
    chosen = {id: point["measured"][results["split"]] for id, point in results["points"].items()}
    points = {
        "full_depth": results["full_depth"],
        "p_above_half": chosen["own"],
        "one_point_lost": chosen["lost-1"],
        "hindsight": results["hindsight"],
    }
    return {
        name: {
            **point["metrics"],
            "accuracy": point["accuracy"],
            "saved_layers": point["saved_layers"],
            "return": point["mean_return"],
        }
        for name, point in points.items()
    }


def mean(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and spread over seeds."""
    return {
        name: {
            key: [
                float(np.mean([r[name][key] for r in rounds])),
                float(np.std([r[name][key] for r in rounds], ddof=1)) if len(rounds) > 1 else 0.0,
            ]
            for key in rounds[0][name]
        }
        for name in rounds[0]
    }


if __name__ == "__main__":
    main(tyro.cli(Args))
