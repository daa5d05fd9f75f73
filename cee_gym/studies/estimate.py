"""How long a study will take, before it starts."""

import time
from pathlib import Path

import torch

from cee_gym.agents.registry import make_agent, preset_for, preset_hyperparameters
from cee_gym.studies.cells import Cell, cells_of, recording_of, setup_of
from cee_gym.studies.config import StudyConfig
from cee_gym.studies.study import duration, read_result, result_file
from cee_gym.training.phases import problem_env

_SHARE = 50  # of the decisions an agent learns from, this part is timed
_EVALUATION = 0.3  # CPU seconds of what follows learning: the curve and the measures


def estimate(config: StudyConfig, output: Path) -> str:
    """A sentence: cells, those that are done, and about how much CPU time is left.

    What is done already is known. An agent is timed on a fiftieth of its decisions, on a recording
    that is at hand; a backbone on a few of its texts.
    """
    cells = cells_of(config)
    waiting = [cell for cell in cells if not result_file(output, cell).exists()]
    known: dict[tuple[str, ...], list[float]] = {}
    for cell in cells:
        file = result_file(output, cell)
        if file.exists():
            known.setdefault(_like(cell), []).append(float(read_result(file)["cpu_seconds"]))
    guessed: dict[tuple[str, ...], float | None] = {}
    total, unknown = 0.0, 0
    for cell in waiting:
        like = _like(cell)
        if like in known:
            total += sum(known[like]) / len(known[like])
            continue
        if like not in guessed:
            guessed[like] = _timed(cell, output)
        seconds = guessed[like]
        total += seconds or 0.0
        unknown += seconds is None
    done = len(cells) - len(waiting)
    said = f"{len(cells)} cells, {done} done; about {duration(total)} of CPU time"
    if unknown:
        said += f", without {unknown} cells whose recording is not made yet"
    return said


def _like(cell: Cell) -> tuple[str, ...]:
    """What cells that take about the same time have in common."""
    return (cell.kind, cell.task.name, cell.exits.name, cell.agent.label)


def _timed(cell: Cell, output: Path) -> float | None:
    """About how many CPU seconds a cell takes; None where that cannot be said yet."""
    if cell.kind in ("recording", "cut"):
        return _of_training(cell)
    if cell.needs and not (output / cell.needs).is_dir():
        return None
    if cell.exits.alternation.rounds and cell.task.backbone is not None:
        return _of_training(cell) * (1 + cell.exits.alternation.rounds)
    if cell.kind == "baselines":
        return _EVALUATION
    preset = preset_for(cell.agent.name)
    steps = cell.agent.total_timesteps or preset.total_timesteps
    problem = cell.reward.problem(cell.agent.observe).observing(preset.observe)
    given = preset_hyperparameters(cell.agent.name, cell.agent.observe, cell.seed)
    given |= cell.agent.set
    env = problem_env(recording_of(cell, output), problem)
    # Some agents solve for all rows at once, however few decisions they are asked to learn from.
    at_least = make_agent(cell.agent.name, **given).learn(env, 1).timesteps
    agent = make_agent(cell.agent.name, **given)
    begun = time.process_time()
    agent.learn(env, max(1, steps // _SHARE))
    spent = time.process_time() - begun
    solves = agent.timesteps == at_least
    return _EVALUATION + spent * (1 if solves else steps / agent.timesteps)


def _of_training(cell: Cell) -> float:
    """A backbone: a training step is about three times the forward pass of its texts."""
    setup = setup_of(cell)
    model = setup.initial_model()
    rows = setup.splits["train"]
    some = min(64, len(rows))
    encoded = setup.tokenizer(
        list(rows[:some]["text"]),
        truncation=True,
        max_length=setup.max_tokens,
        padding=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        model(**encoded)
        begun = time.process_time()
        model(**encoded)
        forward = (time.process_time() - begun) / some
    config = setup.config
    models = config.folds + 1 if config.policy_data == "cross_fit" else 1
    epochs = 0 if config.recipe == "probe" else config.warm_up.epochs
    return float(len(rows) * models * forward * (3 * epochs + 2))
