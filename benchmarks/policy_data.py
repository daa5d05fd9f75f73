"""Which data should the policy learn on?

The backbone's own (`fitted`), a held-out part, or cross-fitted traces?

For every way and seed: warm the backbones up, record, train the policy by exact expected return,
and report on text that neither saw. Thresholds are chosen on calibration for each level of saved
layers. Goes on where it was stopped.

    python benchmarks/policy_data.py --task mcid --models DIR --data DIR --work DIR
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from common import write

from cee_gym import ExitPolicy, Problem
from cee_gym.agents import ExpectedReturn
from cee_gym.evaluation.curve import evaluate_policy
from cee_gym.exits import load_model
from cee_gym.hardness import memorized_layer
from cee_gym.policies.rules import Confidence
from cee_gym.policies.speeds import Speed, measure_speeds
from cee_gym.problem_settings import ProblemSettings
from cee_gym.tasks import get_task
from cee_gym.training.config import FitConfig, RecordConfig
from cee_gym.training.phases import problem_env, record, warm_up
from cee_gym.training.setup import Setup

LEVELS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
WAYS = ("cross_fit", "fitted", "held_out")


@dataclass
class Args:
    """Arguments.

    Attributes:
        task: mcid or mrpc.
        models: the folder with the backbones.
        data: the folder with the data sets.
        work: for models and recordings.
        seeds: how many.
        epochs: of the warm-up.
        learning_rate: of the warm-up.
    """

    task: str
    models: Path
    data: Path
    work: Path
    seeds: int = 3
    epochs: int = 8
    learning_rate: float = 2e-4


BACKBONES = {"mcid": "minilm-l6-h384", "mrpc": "minilm-l6-h384-nli"}


def main(args: Args) -> None:
    """Runs all ways and seeds."""
    task = get_task(args.task)
    split = "test" if args.task == "mcid" else "dev"
    rows: list[dict[str, Any]] = []
    for seed in range(args.seeds):
        for way in WAYS:
            here = args.work / f"{args.task}-{way}-{seed}"
            config = RecordConfig(
                recipe="paper",
                policy_data=way,
                pooling="mean",
                precision="bf16",
                seed=seed,
                warm_up=FitConfig(epochs=args.epochs, learning_rate=args.learning_rate),
            )
            backbone = args.models / BACKBONES[args.task]
            setup = Setup.load(task, str(backbone), str(args.data / args.task), config)
            twin = args.work / f"{args.task}-cross_fit-{seed}" / "models" / "deployed"
            if way == "fitted" and not (here / "models").exists():
                # The deployed backbone is the same, from the same seed on the same rows.
                shutil.copytree(twin, here / "models" / "deployed")
            warm_up(setup, here / "models")
            record(setup, here / "models", here / "recording")
            row = {"way": way, "seed": seed, **measure(here / "recording", split)}
            if way == "cross_fit":
                row["transfer"] = transfer(setup, here)
            print(row, flush=True)
            rows.append(row)
    write(
        f"policy_data_{args.task}",
        {
            "task": args.task,
            "backbone": BACKBONES[args.task],
            "reported_on": split,
            "epochs": args.epochs,
            "learning_rate": args.learning_rate,
            "levels": LEVELS,
            "mean_over_seeds": {way: mean([r for r in rows if r["way"] == way]) for way in WAYS},
            "rows": rows,
        },
    )


def measure(recording: Path, split: str) -> dict[str, Any]:
    """Trains a policy on a recording and reports it."""
    settings = ProblemSettings(alpha=(0.035,), reward="paper", observe=("hidden", "layer"))
    env = problem_env(recording, settings)
    policy = ExpectedReturn(weight_decay=0.01).learn(env, 300_000).policy
    calibration, report = (settings.problem(recording, s) for s in ("calibration", split))
    rewards = report.rewards(settings.alpha[0])
    trace = report.trace
    at_half = evaluate_policy(policy, report)
    bare = [Problem(one.trace, observe=("confidence",)) for one in (calibration, report)]
    rule = Confidence().policy(bare[0])
    rows = np.arange(len(trace))
    m_train = memorized_layer(env.problem.correct)
    m_report = memorized_layer(trace.correct)
    bins = np.arange(1, trace.num_layers + 2)
    return {
        "accuracy_per_layer": trace.correct.mean(axis=0).round(4).tolist(),
        "memorized_layer_policy_rows": np.histogram(m_train, bins)[0].tolist(),
        "memorized_layer_report_rows": np.histogram(m_report, bins)[0].tolist(),
        "return": at_half.mean_return,
        "hindsight_return": float(rewards.max(axis=1).mean()),
        "best_fixed_return": float(rewards.mean(axis=0).max()),
        "at_half": {"accuracy": at_half.accuracy, "saved_layers": at_half.saved_layers},
        "accuracy_at_level": at_levels(policy, calibration, report),
        "confidence_at_level": at_levels(rule, *bare),
        "policy_rows": len(env.problem),
        "report_rows": len(rows),
    }


def at_levels(
    policy: ExitPolicy, calibration: Problem, report: Problem
) -> dict[str, dict[str, float]]:
    """Accuracy where the threshold saves at least so many of the layers on calibration."""
    speeds = measure_speeds(policy, calibration)
    found = {}
    for level in LEVELS:
        point = evaluate_policy(Speed(saved_layers=level).choose(policy, speeds), report)
        found[str(level)] = {"accuracy": point.accuracy, "saved_layers": point.saved_layers}
    return found


def transfer(setup: Setup, here: Path) -> dict[str, Any]:
    """Accuracy of the fold heads, per layer, on calibration.

    On their own states and on the deployed backbone's.
    """
    import torch

    deployed = load_model(here / "models" / "deployed").eval()
    rows = setup.partition.calibration
    text = setup.text["train"]
    correct: dict[str, list[Any]] = {"own": [], "deployed": []}
    for name in setup.partition.fit:
        if name == "deployed":
            continue
        fold = load_model(here / "models" / name).eval()
        with torch.inference_mode():
            for batch in text.batches(rows, 64):
                inputs = text.batch(batch, deployed.device)
                labels = text.labels[batch][:, None]
                own, other = fold(**inputs), deployed(**inputs)
                read = torch.stack(
                    [h(s) for h, s in zip(fold.heads, other.states.unbind(1), strict=True)], 1
                )
                correct["own"].append((own.logits.argmax(-1) == labels).float())
                correct["deployed"].append((read.argmax(-1) == labels).float())
    return {
        f"fold_heads_on_{name}_states": torch.cat(values).mean(0).numpy().round(4).tolist()
        for name, values in correct.items()
    }


def mean(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds."""
    return {
        "return": float(np.mean([r["return"] for r in rows])),
        "best_fixed_return": float(np.mean([r["best_fixed_return"] for r in rows])),
        "full_depth_accuracy": float(np.mean([r["accuracy_per_layer"][-1] for r in rows])),
        "at_half": {
            key: float(np.mean([r["at_half"][key] for r in rows]))
            for key in ("accuracy", "saved_layers")
        },
        **{
            name: {
                str(level): float(np.mean([r[name][str(level)]["accuracy"] for r in rows]))
                for level in LEVELS
            }
            for name in ("accuracy_at_level", "confidence_at_level")
        },
    }


if __name__ == "__main__":
    main(tyro.cli(Args))
