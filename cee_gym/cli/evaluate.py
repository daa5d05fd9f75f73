"""`cee-gym evaluate`: what a run comes to."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from cee_gym.errors import CeeGymError, first_line
from cee_gym.training.config import PolicyConfig


@dataclass(frozen=True)
class Evaluate:
    """Accuracy, exit layers, saved layers and the curve of a run.

    Against fixed layers and the hindsight optimum.

    Attributes:
        run_directory: what train wrote.
        split: to report on: dev, or test where the recording has one.
        alpha: hold an agent that learned with a range of alpha at this price of a layer.
        saved_layers: hold it at the lowest price that saves this share of the layers on
            calibration.
        guarantee: find, on calibration, a threshold whose rate of disagreement with the last layer,
            or of harm (the last layer right, the exit wrong), stays under epsilon on text of the
            same kind, with probability 1 - delta.
        epsilon: of the guarantee.
        delta: of the guarantee.
    """

    run_directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    split: Literal["dev", "test"] = "dev"
    alpha: float | None = None
    saved_layers: float | None = None
    guarantee: Literal["disagreement", "harm"] | None = None
    epsilon: float = 0.05
    delta: float = 0.05

    def run(self) -> None:
        """Evaluates, prints the table and writes it as JSON, and as a plot."""
        from cee_gym.agents.at_alpha import for_budget
        from cee_gym.agents.base import load_agent
        from cee_gym.evaluation.guarantee import sentence
        from cee_gym.evaluation.report import Promise, report, table, write
        from cee_gym.runs import newest_round
        from cee_gym.training.phases import policy_env

        directory = self.run_directory
        try:
            config = json.loads((directory / "config.json").read_text())
            settings: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value
                for key, value in config["policy"].items()
            }
            policy = PolicyConfig(**settings)
            metrics, given = tuple(config["metrics"]), config["recording"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = first_line(error)
            raise CeeGymError(f"there is no run at {directory} ({reason})") from None
        newest = newest_round(directory)
        if policy.layer_costs != config.get("cost"):
            raise CeeGymError(
                f"{policy.cost} has been measured again since {directory} was trained with it: "
                "train again"
            )
        recording = Path(given or newest / "recording")
        calibration, dev = (
            policy_env(recording, policy, split).table for split in ("calibration", self.split)
        )
        for opened in (calibration, dev):
            opened.trace.verify()
        try:
            trained = json.loads((newest / "evaluation.json").read_text())
            before = trained["calibration_trace"]
        except (ValueError, KeyError, TypeError) as error:
            raise CeeGymError(f"{newest} is damaged ({first_line(error)})") from None
        if before != calibration.trace.fingerprint:
            raise CeeGymError(
                f"{recording} has been recorded again since {directory} was trained on it "
                f"({before}, now {calibration.trace.fingerprint}): train again"
            )
        agent = load_agent(newest / "agent")
        if self.alpha is not None and self.saved_layers is not None:
            raise CeeGymError("--alpha and --saved-layers both choose a speed: give only one")
        if self.alpha is not None:
            agent = agent.at(alpha=self.alpha)
        if self.saved_layers is not None:
            agent = for_budget(agent, self.saved_layers, calibration)
        promise = None
        if self.guarantee is not None:
            promise = Promise(self.guarantee, self.epsilon, self.delta)
        results = report(agent, calibration, dev, metrics, promise)
        name = "evaluation" if self.split == "dev" else f"evaluation-{self.split}"
        write(results, directory / name, f"{directory.name}, {newest.name}")
        print(table(results))
        if results["guarantee"] is not None:
            print(f"\n{sentence(results['guarantee'])}")
        print(f"\ntrace {results['trace']}; {directory / name}.json, {directory / name}.png")
