"""`cee-gym evaluate`: what a run comes to."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from cee_gym.cli.arguments import SpeedArguments
from cee_gym.cli.options import command
from cee_gym.errors import CeeGymError


@command("evaluate")
@dataclass(frozen=True)
class Evaluate:
    """Shows what a run buys: accuracy, exit layers and saved layers at several speeds.

    It is compared with full depth, every fixed layer and the best choice with hindsight. Speeds are
    chosen on calibration and reported on dev. Every operating point is kept with the run under the
    first word of its line in the table; `predict`, `serve`, `profile` and `export` take it by --at.

    Attributes:
        run_directory: The directory that train wrote.
        split: The split to report on: dev, or test where the recording has one.
        per_class: Also print precision, recall and F1 of each class and, for up to 30 classes, the
            confusion matrix. The file evaluation.json has them in any case.
        speed: One more operating point to choose.
        guarantee: Find a threshold with a promise: with probability 1 - delta, fewer than a share
            epsilon of new texts of the same kind fail. With `disagreement` a text fails where the
            exit says something else than the last layer; with `harm`, where the last layer was
            right and the exit is wrong.
        epsilon: The share of texts that may fail.
        delta: The probability with which the promise may be broken.
    """

    run_directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    split: Literal["dev", "test"] = "dev"
    per_class: bool = False
    speed: SpeedArguments = field(default_factory=SpeedArguments)
    guarantee: Literal["disagreement", "harm"] | None = None
    epsilon: float = 0.05
    delta: float = 0.05

    def run(self) -> None:
        """Evaluates, prints the table and writes it as JSON, and as a plot."""
        from cee_gym.evaluation.guarantee import sentence
        from cee_gym.evaluation.report import (
            Promise,
            class_tables,
            live_lines,
            report,
            table,
            write,
        )
        from cee_gym.runs import Run

        speed = self.speed.speed()
        if speed.at is not None:
            raise CeeGymError(
                "--at names a point that is kept already; evaluate reports all of them without it"
            )
        others = [name for name in speed.given if name != "alpha"]
        if self.guarantee is not None and others:
            raise CeeGymError(
                f"--guarantee chooses the threshold itself: leave --{others[0].replace('_', '-')} "
                "out, or ask for the two one after the other"
            )
        run = Run.open(self.run_directory)
        calibration, dev = run.problem("calibration"), run.problem(self.split)
        for problem in (calibration, dev):
            problem.trace.verify()
        promise = None
        if self.guarantee is not None:
            promise = Promise(self.guarantee, self.epsilon, self.delta)
        results = report(
            run.policy, calibration, dev, run.metrics, name=run.agent, asked=speed, promise=promise
        )
        if (run.recording / f"tokens-{self.split}.safetensors").exists():
            from cee_gym.generation.live import live_points

            results["live"] = live_points(
                run.weights, run.recording, self.split, run.policy, results
            )
        run.keep(results["points"])
        name = "evaluation" if self.split == "dev" else f"evaluation-{self.split}"
        file = run.directory / name
        write(results, file, f"{run.directory.name}, {run.newest_round.name}")
        print(table(results))
        if lines := live_lines(results):
            print(lines)
        if self.per_class:
            print(f"\n{class_tables(results)}")
        if results["guarantee"] is not None:
            print(f"\n{sentence(results['guarantee'])}")
        print(f"\ntrace {results['trace']}; {file}.json, {file}.png")
