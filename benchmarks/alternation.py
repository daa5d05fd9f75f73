r"""What alternating adds to strong exits: the paper's claim, at equal numbers of updates.

    python benchmarks/alternation.py --models DIR --data DIR --work DIR \
        --recordings DIR/mrpc-ours-0 DIR/mrpc-ours-1 ...

Each recording, named SET-ours-SEED as `strong_exits.py` makes them, is gone on from in two ways,
each for the same number of epochs at the same rate: `policy` trains the backbone on the
cross-entropy at the exits its policy takes (ConsistentEE), at prices drawn from a range, and learns
the policy again after each round; `warm-up` goes on with the objective the exits were made with.
Policies are `policy-improvement` over the range. Operating points are chosen on calibration, and
accuracy is compared on dev at 20 to 80 % saved layers, row by row. It goes on where it was stopped.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import tyro
from common import write
from strong_exits import SETS
from worth_learning import SAVED, interval, of_policy, rules

from cee_gym.agents.base import Agent
from cee_gym.agents.registry import make_agent, preset_for
from cee_gym.exits import MultiExitOutput, load_model
from cee_gym.problem_settings import ProblemSettings
from cee_gym.tasks import get_task
from cee_gym.traces.recordings import open_split
from cee_gym.training.calibration import calibrate
from cee_gym.training.config import AlternationConfig, FitConfig, RecordConfig
from cee_gym.training.fit import fit
from cee_gym.training.losses import alternating
from cee_gym.training.phases import RECIPE, backbone_phase, problem_env, record
from cee_gym.training.setup import Setup

OF_PARTITION = ("policy_data", "held_out", "calibration", "folds", "seed")
AGENT = "policy-improvement"
PRICES = (0.0, 0.03)
ARMS: tuple["Arm", ...] = ("policy", "warm-up")
Arm = Literal["policy", "warm-up"]
Right = npt.NDArray[np.floating]


@dataclass
class Args:
    """Arguments.

    Attributes:
        models: the folder with the backbones.
        data: the folder with the data sets.
        work: for what is trained.
        recordings: to go on from, each named SET-ours-SEED.
        rounds: of one epoch each.
        learning_rate: of a round.
    """

    models: Path
    data: Path
    work: Path
    recordings: tuple[Path, ...]
    rounds: int = 2
    learning_rate: float = 2e-5


def settings_of(task: str) -> ProblemSettings:
    """What the agent observes and is paid."""
    return ProblemSettings(alpha=PRICES, observe=(*preset_for(AGENT).observe, "alpha"))


def learn(recording: Path, settings: ProblemSettings) -> Agent:
    """Longstaff-Schwartz on a recording."""
    return make_agent(AGENT).learn(problem_env(recording, settings), 1)


def go_on(arm: Arm, setup: Setup, start: Path, work: Path, args: Args, seed: int) -> Path:
    """The recording after all rounds of one way."""
    settings = settings_of(setup.task.name)
    fitting = FitConfig(epochs=1, learning_rate=args.learning_rate)
    models, recording = start / "models", start
    for number in range(1, args.rounds + 1):
        before, here = (models, recording), work / f"{arm}-{number}"
        models, recording = here / "models", here / "recording"
        if recording.exists():
            continue
        if arm == "policy":
            agent = learn(before[1], settings)
            config = AlternationConfig(rounds=args.rounds, backbone_phase=fitting)
            backbone_phase(setup, before[0], models, agent, settings, config, number)
        elif not models.exists():
            train(setup, before[0], models, fitting, seed + number)
        record(setup, models, recording)
        # A backbone is large, and the recording's own is not ours to remove.
        if before[0] != start / "models":
            shutil.rmtree(before[0])
    return recording


def train(setup: Setup, before: Path, models: Path, config: FitConfig, seed: int) -> None:
    """One round of the objective the exits were made with."""

    def objective(
        output: MultiExitOutput, losses: torch.Tensor, labels: torch.Tensor, step: int
    ) -> torch.Tensor:
        return alternating(losses, step)

    trained = models.with_name("models.training")
    for name, rows in setup.partition.fit.items():
        if (trained / name).exists():
            continue
        model = load_model(before / name, torch.float32)
        fit(
            model,
            setup.text["train"],
            rows,
            objective,
            config,
            accelerator=setup.accelerator,
            seed=seed,
            checkpoint=None,
            name=f"warm-up/{name}",
        )
        setup.save(model, trained / name)
    calibrate(setup, trained, models)
    shutil.copyfile(before / RECIPE, models / RECIPE)
    shutil.rmtree(trained)


def measured(recording: Path, task: str) -> dict[str, Right]:
    """How often each row of dev is right, by policy: full depth `[1, N]`, others `[S, N]`."""
    settings = settings_of(task)
    policy = learn(recording, settings).policy
    curves = {AGENT: of_policy(policy, recording, settings.observe, PRICES)}
    curves |= {name: of for name, of in rules(recording) if name == "confidence"}
    found = {name: of["dev"].at(SAVED) for name, of in curves.items()}
    return found | {"full depth": open_split(recording, "dev").correct[None, :, -1].astype(float)}


def main(args: Args) -> None:
    """Trains and compares."""
    right: dict[str, dict[str, list[dict[str, Right]]]] = {}
    for start in args.recordings:
        name, seed = start.name.split("-")[0], int(start.name.rpartition("-")[2])
        found = json.loads((start / "recording.json").read_text())["config"]
        config = RecordConfig(**{setting: found[setting] for setting in OF_PARTITION})
        task = get_task(open_split(start, "dev").header.task)
        setup = Setup.load(task, str(args.models / SETS[name][1]), str(args.data / name), config)
        of_set = right.setdefault(name, {"before": [], **{arm: [] for arm in ARMS}})
        of_set["before"].append(measured(start, task.name))
        for arm in ARMS:
            work = args.work / f"alternation-{name}-{seed}"
            done = go_on(arm, setup, start, work, args, seed)
            of_set[arm].append(measured(done, task.name))
        write(
            "alternation",
            {
                "rounds": args.rounds,
                "learning_rate": args.learning_rate,
                "prices": PRICES,
                "saved_layers": SAVED.tolist(),
                "sets": {name: summary(of) for name, of in right.items()},
            },
        )


def summary(of_set: dict[str, list[dict[str, Right]]]) -> dict[str, Any]:
    """Accuracy before and after, and what the policy's exits add, with 95 % intervals."""
    policies = list(of_set["before"][0])
    rows = {
        arm: {policy: np.array([seed[policy] for seed in seeds]) for policy in policies}
        for arm, seeds in of_set.items()
    }
    return {
        "seeds": len(of_set["before"]),
        "rows": rows["before"]["full depth"].shape[2],
        "accuracy": {
            arm: {policy: of.mean(axis=(1, 2)).round(4).tolist() for policy, of in found.items()}
            for arm, found in rows.items()
        },
        "differences": {
            f"{arm} over {other}": {
                policy: interval((rows[arm][policy] - rows[other][policy]).mean(axis=(0, 1)))
                for policy in policies
            }
            for arm, other in (("policy", "before"), ("warm-up", "before"), ("policy", "warm-up"))
        },
    }


if __name__ == "__main__":
    main(tyro.cli(Args))
