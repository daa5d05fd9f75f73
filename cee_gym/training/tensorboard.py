"""What a run shows in TensorBoard, beside the curves its agent records.

Tags are those of Stable-Baselines3 where it has them: `rollout/` is what learning met, on train,
and `eval/` the policy as it would be deployed, on calibration. `summary/` is on dev, after each
round, and `warm-up/` and `train-backbone/` are the supervised phases, layer by layer. The group
names sort in the order of interest, which is the order TensorBoard shows them in.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import Figure, HParam, Logger, TensorBoardOutputFormat

from cee_gym.agents.registry import make_agent, preset_for
from cee_gym.evaluation.report import curve_figure, own_point
from cee_gym.problem_settings import ProblemSettings

SUMMARY = ("accuracy", "saved_layers", "mean_return", "regret")
BACKBONE = "train-backbone"
WARM_UP = "warm-up"

_POLICY = {
    "mean return": ("rollout/ep_rew_mean", "eval/mean_reward"),
    "regret": ("rollout/regret", "eval/regret"),
    "accuracy": ("rollout/success_rate", "eval/success_rate"),
    "saved layers": ("rollout/saved_layers", "eval/saved_layers"),
}
_LAYERS = {
    f"{measure} of every exit, {split}": rf"(.*/)?{prefix}{measure}_layer_\d+$"
    for split, prefix in (("train", ""), ("calibration", "calibration_"))
    for measure in ("loss", "accuracy")
}


def run_logger(output: Path, settings: Mapping[str, Any], phases: Sequence[str]) -> Logger:
    """A logger into the directory of a run, which gives the run its name in TensorBoard.

    Args:
        output: the directory.
        settings: of the run, JSON-able, shown under Text.
        phases: the supervised ones whose layers get charts of their own, `WARM_UP`, `BACKBONE`.
    """
    tensorboard = TensorBoardOutputFormat(str(output))
    layout: dict[str, dict[str, list[Any]]] = {
        "policy": {
            title: ["Multiline", [f"{tag}$" for tag in tags]] for title, tags in _POLICY.items()
        }
    }
    for phase in phases:
        layout[phase] = {
            title: ["Multiline", [f"{phase}/{tags}"]] for title, tags in _LAYERS.items()
        }
    tensorboard.writer.add_custom_scalars(layout)
    indented = "\n".join(f"    {line}" for line in json.dumps(settings, indent=2).splitlines())
    tensorboard.writer.add_text("settings", indented)
    return Logger(None, [tensorboard])


def log_round(logger: Logger, results: Mapping[str, Any], number: int, timesteps: int) -> None:
    """The evaluation of a round: four figures and the accuracy-speed curve.

    Args:
        logger: of the run.
        results: see `cee_gym.evaluation.report.report`.
        number: of the round.
        timesteps: the policy has learned from, which the figures stand at.
    """
    for name, value in _summary(results).items():
        logger.record(name, value)
    logger.record("time/round", number)
    figure = curve_figure(results, f"{results['agent']}, round {number}")
    logger.record("summary/accuracy_speed_curve", Figure(figure, close=False))
    logger.dump(timesteps)


def log_settings(logger: Logger, settings: Mapping[str, Any], results: Mapping[str, Any]) -> None:
    """The row of the run in the table under HParams, with the figures of its last round.

    Args:
        logger: of the run.
        settings: of the run. Beside agent, price, rounds and seed only what is not the default is
            shown, so that the figures stay in view.
        results: of the last round.
    """
    defaults = make_agent(settings["agent"]).hyperparameters()
    defaults |= preset_for(settings["agent"]).hyperparameters
    usual = ProblemSettings().to_json()
    alpha = settings["problem"]["alpha"]
    shown = {
        "agent": settings["agent"],
        "alpha": alpha[0] if len(alpha) == 1 else " to ".join(map(str, alpha)),
        "rounds": settings["alternation"]["rounds"],
    }
    for key, value in settings["problem"].items():
        if key not in ("alpha", "observe") and value != usual[key]:
            shown[key] = value
    for key, value in settings["hyperparameters"].items():
        if key == "seed" or value != defaults[key]:
            shown[key] = value
    in_table = {
        key: value if isinstance(value, int | float) else str(value) for key, value in shown.items()
    }
    logger.record("settings", HParam(in_table, _summary(results)))
    logger.dump()


def _summary(results: Mapping[str, Any]) -> dict[str, float]:
    point = own_point(results)
    regret = results["hindsight"]["mean_return"] - point["mean_return"]
    return {f"summary/{name}": (point | {"regret": regret})[name] for name in SUMMARY}
