"""A model and its exit policy in one directory, on disk or on the hub.

config.json, model.safetensors   the `MultiExitModel`
tokenizer.json and the like
agent/                           what `Agent.save` writes
pipeline.json                    the threshold, and what was measured
README.md                        the model card
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from transformers import PreTrainedTokenizerBase

from cee_gym.agents.at_alpha import (
    AtAlpha,
    check_conditioned,
    for_budget,
    lacks_a_speed,
    let_go,
)
from cee_gym.agents.base import Agent, Floats, load_agent
from cee_gym.backbones.encoding import load_tokenizer
from cee_gym.envs import EarlyExitEnv
from cee_gym.errors import CeeGymError, first_line
from cee_gym.evaluation.curve import evaluate, fixed_layers
from cee_gym.exits.classifier import MultiExitModel, load_model
from cee_gym.inference.model_card import model_card
from cee_gym.problem import ExitTable
from cee_gym.returns import first_exit
from cee_gym.runs import is_run, newest_round

VERSION = 1
_SPEEDS = 33  # prices at which the saving of layers is written down
# What is fetched from the hub: no pickles, and no code.
_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "README.md")


class Speed(NamedTuple):
    """A way to hold an agent, and what share of the layers it saves on calibration."""

    alpha: float
    threshold: float
    saved_layers: float


@dataclass(frozen=True)
class Measured:
    """What is known about a policy.

    Attributes:
        recording: of the model, from which the rest can be measured; None where it is not at hand.
        metrics: of the task, the leading one first.
        evaluation: the points (see `cee_gym.evaluation.Point`) of `full_depth` and `early_exit`,
            and their `split` and `rows`; None for a policy that was not measured.
        speeds: of an agent that learned with a range of alpha, the slowest first.
        calibration: the fingerprint of the trace the speeds were measured on.
    """

    recording: Path | None = None
    metrics: tuple[str, ...] = ("accuracy",)
    evaluation: dict[str, Any] | None = None
    speeds: tuple[Speed, ...] = ()
    calibration: str = ""


@dataclass(frozen=True)
class Pretrained:
    """What a directory holds."""

    model: MultiExitModel
    tokenizer: PreTrainedTokenizerBase
    agent: Agent
    threshold: float = 0.5
    measured: Measured | None = None


def load(
    name_or_directory: str | Path,
    *,
    alpha: float | None = None,
    saved_layers: float | None = None,
    threshold: float | None = None,
    revision: str | None = None,
) -> Pretrained:
    """Reads what `save` wrote, or a run of `cee-gym train`; see `EarlyExitPipeline`.

    Raises:
        CeeGymError: if something is missing or damaged, or the speed is not to be had.
    """
    if alpha is not None and saved_layers is not None:
        raise CeeGymError("alpha and saved_layers both choose a speed: give only one")
    if threshold is not None and saved_layers is not None:
        raise CeeGymError("threshold and saved_layers both choose a speed: give only one")
    directory = _local(name_or_directory, revision)
    if is_run(directory):
        weights, agent_directory, measured = _of_run(directory)
        stored = 0.5
    else:
        weights, agent_directory = directory, directory / "agent"
        stored, measured = _read(directory / "pipeline.json")
    model = load_model(weights)
    tokenizer = load_tokenizer(str(weights))
    agent = load_agent(agent_directory)
    held = _at_speed(agent, alpha, saved_layers, measured)
    if held is not agent or threshold not in (None, stored):
        measured = replace(measured, evaluation=None)  # it was of another speed
    if saved_layers is not None:
        threshold = 0.5  # where the budget is kept
    threshold = stored if threshold is None else threshold
    return Pretrained(model, tokenizer, held, threshold, measured)


def weights_directory(name_or_directory: str | Path) -> Path:
    """Where the model and its tokenizer are of all that `load` reads, or of a model alone.

    Raises:
        CeeGymError: if there is no such directory, name or model of a run.
    """
    directory = _local(name_or_directory, None)
    return _of_run(directory)[0] if is_run(directory) else directory


def save(pretrained: Pretrained, directory: Path, name: str) -> None:
    """Writes a directory for `load`.

    Args:
        pretrained: measured first where its recording is at hand.
        directory: exists.
        name: for the card.
    """
    model, agent, measured = pretrained.model, pretrained.agent, pretrained.measured or Measured()
    if measured.recording is not None:
        measured = measure(agent, pretrained.threshold, measured)
    model.save_pretrained(directory)
    pretrained.tokenizer.save_pretrained(directory)
    agent.save(directory / "agent")
    description = {
        "version": VERSION,
        "threshold": pretrained.threshold,
        "evaluation": measured.evaluation,
        "speeds": [speed._asdict() for speed in measured.speeds],
        "calibration": measured.calibration,
    }
    (directory / "pipeline.json").write_text(json.dumps(description, indent=1) + "\n")
    card = model_card(name, model, agent, pretrained.threshold, measured.evaluation)
    (directory / "README.md").write_text(card, encoding="utf-8")


def measure(agent: Agent, threshold: float, measured: Measured) -> Measured:
    """Measures a policy on the dev split of its recording, and its speeds on calibration."""
    table = _table(agent, measured, "dev")
    exits = first_exit(agent.exit_probabilities(table.observations) > threshold)
    evaluation = {
        "split": table.trace.header.split,
        "trace": table.trace.fingerprint,
        "rows": len(table.trace),
        "full_depth": fixed_layers(table.trace, metrics=measured.metrics)[-1].to_json(),
        "early_exit": evaluate(
            table.trace, exits, metrics=measured.metrics, threshold=threshold
        ).to_json(),
    }
    calibration = _table(agent, measured, "calibration")
    speeds = measure_speeds(agent.agent, calibration) if isinstance(agent, AtAlpha) else ()
    return Measured(
        measured.recording, measured.metrics, evaluation, speeds, calibration.trace.fingerprint
    )


def measure_speeds(agent: Agent, calibration: ExitTable) -> tuple[Speed, ...]:
    """What an agent saves at prices all over its range, and above 1/2 at the lowest.

    Args:
        agent: observes alpha.
        calibration: of the split to measure on.

    Returns:
        The slowest first.
    """

    def saved(scores: Floats, threshold: float) -> float:
        return 1 - float(first_exit(scores > threshold).mean()) / calibration.trace.num_layers

    low, high = agent.alpha_range
    speeds = []
    for alpha in np.linspace(low, high, _SPEEDS).tolist():
        scores = AtAlpha(agent, alpha).exit_probabilities(calibration.observations)
        thresholds = [0.5]
        if alpha == low:
            above = np.append(scores[scores > 0.5], 0.5).astype(np.float64)
            thresholds = np.unique(np.quantile(above, np.linspace(1, 0, _SPEEDS)))[::-1].tolist()
        speeds += [Speed(alpha, threshold, saved(scores, threshold)) for threshold in thresholds]
    return tuple(speeds)


def _local(name_or_directory: str | Path, revision: str | None) -> Path:
    directory = Path(name_or_directory).expanduser()
    if directory.is_dir():
        return directory
    try:
        return Path(
            snapshot_download(
                str(name_or_directory), revision=revision, allow_patterns=list(_FILES)
            )
        )
    except HFValidationError:
        raise CeeGymError(f"there is no directory {name_or_directory}") from None
    except (OSError, ValueError) as error:
        raise CeeGymError(
            f"{name_or_directory} is no directory here, and cannot be had from the hub "
            f"({first_line(error)})"
        ) from error


def _of_run(run: Path) -> tuple[Path, Path, Measured]:
    """The directories of weights and agent of the newest complete round, and its recording."""
    here = newest_round(run)
    try:
        config = json.loads((run / "config.json").read_text())
        given, metrics = config["recording"], tuple(config["metrics"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CeeGymError(f"there is no run at {run} ({first_line(error)})") from None
    recording = here / "recording" if given is None else Path(given)
    models = here / "models" if given is None else recording / "models"
    if not models.is_dir():
        raise CeeGymError(
            f"{run} was trained on the recording {recording}, which has no weights: train with "
            "--backbone, or make the recording by cee-gym build"
        )
    return models / "deployed", here / "agent", Measured(recording, metrics)


def _read(file: Path) -> tuple[float, Measured]:
    """The threshold and what was measured; 1/2 and nothing where there is no such file."""
    if not file.exists():
        return 0.5, Measured()
    try:
        found = json.loads(file.read_text())
        if found["version"] != VERSION:
            raise CeeGymError(f"{file} is of version {found['version']}, not {VERSION}")
        return float(found["threshold"]), Measured(
            evaluation=found["evaluation"],
            speeds=tuple(Speed(**speed) for speed in found["speeds"]),
            calibration=found["calibration"],
        )
    except CeeGymError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CeeGymError(f"{file} is damaged ({first_line(error)})") from None


def _at_speed(
    agent: Agent, alpha: float | None, saved_layers: float | None, measured: Measured
) -> Agent:
    whole = let_go(agent)
    if alpha is not None:
        return whole.at(alpha=alpha)
    if saved_layers is not None:
        if measured.recording is not None:
            return for_budget(whole, saved_layers, _table(whole, measured, "calibration"))
        return at_budget(whole, saved_layers, measured.speeds, measured.calibration)
    if lacks_a_speed(agent):
        low, high = agent.alpha_range
        raise CeeGymError(
            f"this {agent.name} agent has a speed for every alpha from {low:g} to {high:g}: give "
            "an alpha, or the share of saved layers"
        )
    return agent


def at_budget(
    agent: Agent, saved_layers: float, speeds: Sequence[Speed], chosen_on: str
) -> AtAlpha:
    """The agent at the slowest of some speeds that saves at least this share of the layers.

    Raises:
        CeeGymError: if none does, or the agent has one speed only.
    """
    check_conditioned(agent)
    if not speeds:
        raise CeeGymError(
            "nobody has measured how many layers this agent saves at which alpha: give alpha "
            "instead, or load the run it comes from"
        )
    for speed in speeds:
        if speed.saved_layers >= saved_layers:
            return AtAlpha(agent, speed.alpha, speed.threshold, chosen_on)
    most = max(speed.saved_layers for speed in speeds)
    raise CeeGymError(
        f"this {agent.name} agent saves {most:.1%} of the layers at most, not {saved_layers:.1%}: "
        "ask for less"
    )


def _table(agent: Agent, measured: Measured, split: str) -> ExitTable:
    assert measured.recording is not None
    env = EarlyExitEnv(
        trace=measured.recording, split=split, alpha=agent.alpha_range, observe=agent.observe
    )
    return env.table
