"""The cells of a study, and the work of one."""

import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from cee_gym.agents.presets import OBSERVE
from cee_gym.agents.registry import make_agent, preset_hyperparameters
from cee_gym.documents import publish
from cee_gym.envs.registration import BENCHMARKS
from cee_gym.errors import CeeGymError
from cee_gym.evaluation.flops import Flops, count_flops
from cee_gym.evaluation.wall_clock import seconds_a_text
from cee_gym.problem import Problem
from cee_gym.runs import Run
from cee_gym.studies.config import AgentEntry, ExitsEntry, RewardEntry, StudyConfig, TaskEntry
from cee_gym.studies.measures import Row, of_baselines, of_policy
from cee_gym.tasks import get_task, own_task
from cee_gym.traces.recordings import find_recording, is_address, open_split, recorded_splits
from cee_gym.training.build import build
from cee_gym.training.config import RecordConfig
from cee_gym.training.partition import DEPLOYED
from cee_gym.training.setup import Setup
from cee_gym.training.trainer import ConsistentEETrainer

Kind = Literal["recording", "cut", "baselines", "run"]
PROBE = ExitsEntry(name="probe", record=RecordConfig(recipe="probe"))
_RULE = AgentEntry(name="confidence")
_FIRST = RewardEntry(name="")


@dataclass(frozen=True)
class Cell:
    """A piece of work that is done once.

    Attributes:
        key: names it, in files too.
        kind: what is done. `recording`: a backbone gets its exits. `cut`: a backbone is cut at a
            layer and trained as such. `baselines`: what everything is compared with. `run`: an
            agent learns.
        task: of it.
        exits: how its backbone is trained.
        seed: of it.
        agent: of a run.
        reward: of a run and of baselines.
        cut_at: of a cut, the layer.
        needs: the key of the recording it works on; empty where that is there already.
    """

    key: str
    kind: Kind
    task: TaskEntry
    exits: ExitsEntry
    seed: int
    agent: AgentEntry = _RULE
    reward: RewardEntry = _FIRST
    cut_at: int = 0
    needs: str = ""

    @property
    def named(self) -> Row:
        """What names its rows in the table."""
        agent = {"cut": f"cut at layer {self.cut_at}"}.get(self.kind, self.agent.label)
        exits = self.exits.name if self.task.backbone is not None else "as recorded"
        return {
            **{"task": self.task.name, "exits": exits, "agent": agent},
            **{"reward": self.reward.name, "seed": self.seed},
        }


def cells_of(config: StudyConfig) -> list[Cell]:
    """All cells, in an order in which each comes after what it needs."""
    return [cell for task in config.tasks for cell in _cells_of(config, task)]


def _cells_of(config: StudyConfig, task: TaskEntry) -> Iterator[Cell]:
    for seed in config.seeds:
        variants: Sequence[ExitsEntry] = config.exits
        if task.backbone is None:
            variants = (ExitsEntry(name="as recorded"),)
        for exits in variants:
            recorded = ""
            if task.backbone is not None and not exits.alternation.rounds:
                recorded = _key("recording", task.name, exits.name, seed)
                yield Cell(recorded, "recording", task, exits, seed)
            for reward in config.rewards:
                if not exits.alternation.rounds and (recorded or seed == config.seeds[0]):
                    key = _key("baselines", task.name, exits.name, reward.name, seed)
                    yield Cell(key, "baselines", task, exits, seed, reward=reward, needs=recorded)
                agents: Sequence[AgentEntry] = config.agents
                if task.backbone is None and _RULE.label not in [one.label for one in agents]:
                    agents = (_RULE, *agents)  # where there is a backbone the probe has it
                for agent in agents:
                    names = (task.name, exits.name, agent.label, reward.name)
                    key = _key("run", *names, seed)
                    yield Cell(key, "run", task, exits, seed, agent, reward, needs=recorded)
        if task.backbone is not None:
            recorded = _key("recording", task.name, PROBE.name, seed)
            probed = PROBE.name in [one.name for one in variants]
            if not probed:
                yield Cell(recorded, "recording", task, PROBE, seed)
            if not probed or _RULE.label not in [agent.label for agent in config.agents]:
                for reward in config.rewards:
                    key = _key("run", task.name, PROBE.name, _RULE.label, reward.name, seed)
                    yield Cell(key, "run", task, PROBE, seed, _RULE, reward, needs=recorded)
            for layer in task.cut_at or (0,):
                key = _key("cut", task.name, layer or "half", seed)
                yield Cell(key, "cut", task, config.exits[0], seed, cut_at=layer)


def _key(*parts: object) -> str:
    return "/".join(re.sub(r"[^\w.=+-]+", "_", str(part)) for part in parts)


def do(cell: Cell, config: StudyConfig, output: Path) -> list[Row]:
    """Does the work of one cell; gives its rows of the table.

    What was begun before is gone on with where it can be, and else begun anew.
    """
    if cell.kind == "recording":
        _record(cell, setup_of(cell), output / cell.key)
        return []
    if cell.kind == "cut":
        return list(_cut(cell, config, output))
    if cell.kind == "baselines":
        return list(_baselines(cell, config, output))
    return list(_run(cell, config, output))


def setup_of(cell: Cell) -> Setup:
    """Text and backbone of a cell."""
    entry = cell.task
    if entry.text is not None and entry.label is not None and entry.data is not None:
        task = own_task(entry.data, entry.text, entry.label, entry.pair)
    elif entry.id in BENCHMARKS:
        task = get_task(BENCHMARKS[entry.id])
    else:
        raise CeeGymError(
            f"task {entry.name!r}: {entry.id} is no benchmark of classification; text of your own "
            "takes data, text and label"
        )
    record = replace(cell.exits.record, seed=cell.seed)
    return Setup.load(task, str(entry.backbone), entry.data, record)


def _record(cell: Cell, setup: Setup, target: Path) -> None:
    if not recorded_splits(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        build(setup, target, {"study": cell.key})


def recording_of(cell: Cell, output: Path) -> str | Path:
    """What a cell works on."""
    if cell.needs:
        return output / cell.needs
    named = str(cell.task.recording)
    return named if is_address(named) or recorded_splits(named) else find_recording(named)


def _cut(cell: Cell, config: StudyConfig, output: Path) -> Iterator[Row]:
    """The model cut at a layer: its last exit, with all rows fitted to that are not chosen on."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    backbone = str(cell.task.backbone)
    whole = int(AutoConfig.from_pretrained(backbone, trust_remote_code=False).num_hidden_layers)
    layer = cell.cut_at or max(2, whole // 2)
    if not cell.cut_at and layer >= whole:
        return  # too shallow for half of it to have a layer to leave at
    if not 1 <= layer < whole:
        raise CeeGymError(
            f"task {cell.task.name!r}: cut_at {layer} is not a layer before the last of {whole}"
        )
    shorter = output / cell.key / "backbone"
    if not (shorter / "config.json").exists():
        model = AutoModel.from_pretrained(
            backbone, num_hidden_layers=layer, trust_remote_code=False, use_safetensors=True
        )
        tokenizer = AutoTokenizer.from_pretrained(backbone, trust_remote_code=False)
        unfinished = shorter.with_name("backbone.partial")
        shutil.rmtree(unfinished, ignore_errors=True)
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        publish(unfinished, shorter)
    record = cell.exits.record
    if record.policy_data != "fitted":
        usual = RecordConfig()
        record = replace(record, policy_data="fitted", folds=usual.folds, held_out=usual.held_out)
    shown = replace(
        cell,
        task=replace(cell.task, backbone=str(shorter)),
        exits=replace(cell.exits, record=record),
    )
    recording = output / cell.key / "recording"
    _record(shown, setup_of(shown), recording)
    trace = open_split(recording, config.report_on)
    accuracy = float(trace.correct[:, -1].mean())
    yield {
        **replace(cell, cut_at=layer).named,
        **{"point": "own", "accuracy": accuracy, "mean_exit_layer": float(layer)},
        **{"saved_layers": 1 - layer / whole, "layer_speedup": whole / layer},
        **_where(config, len(trace)),
    }


def _baselines(cell: Cell, config: StudyConfig, output: Path) -> Iterator[Row]:
    recording = recording_of(cell, output)
    problem = cell.reward.problem(OBSERVE)
    train, reported = (problem.problem(recording, split) for split in ("train", config.report_on))
    for row in of_baselines(train, reported, metrics=("accuracy",)):
        yield {**cell.named, **row, **_where(config, len(reported))}


def _run(cell: Cell, config: StudyConfig, output: Path) -> Iterator[Row]:
    entry = cell.agent
    problem = cell.reward.problem(entry.observe)
    given = preset_hyperparameters(entry.name, entry.observe, cell.seed)
    agent = make_agent(entry.name, **(given | dict(entry.set)))
    directory = output / cell.key
    recording = None
    setup = None
    if cell.exits.alternation.rounds and cell.task.backbone is not None:
        setup = setup_of(cell)
    else:
        recording = recording_of(cell, output)
    trainer = ConsistentEETrainer(
        agent,
        directory,
        setup=setup,
        recording=recording,
        problem=problem,
        total_timesteps=entry.total_timesteps,
        alternation=cell.exits.alternation if setup is not None else None,
    )
    trainer.train(resume=True, progress_bar=False)
    run = Run.open(directory)
    chosen_on: Problem = run.settings.problem(run.recording, config.choose_on)
    reported = run.settings.problem(run.recording, config.report_on)
    flops = clocked = None
    if reported.trace.header.labels is not None:  # those of a decoder depend on the tokens before
        weights = run.weights if setup is not None else run.recording / "models" / DEPLOYED
        flops = flops_of(weights, config.tokens)
        if config.seconds and cell.task.backbone is not None:
            from cee_gym.exits.classifier import load_model

            text = (setup or setup_of(cell)).text[config.report_on]
            held = run.policy.at_some_price()
            clocked = seconds_a_text(load_model(weights), held, text, config.seconds)
    for row in of_policy(
        run.policy,
        chosen_on,
        reported,
        metrics=run.metrics,
        saved_layers=config.saved_layers,
        flops=flops,
        clocked=clocked,
    ):
        yield {**cell.named, **row, **_where(config, len(reported))}


@cache
def flops_of(weights: Path, tokens: int) -> Flops | None:
    """What the model of a recording takes; None where its weights are not at hand."""
    from cee_gym.exits.classifier import load_model

    return count_flops(load_model(weights), tokens) if weights.is_dir() else None


def _where(config: StudyConfig, rows: int) -> dict[str, Any]:
    return {
        **{"split": config.report_on, "chosen_on": config.choose_on, "rows": rows},
        "optimistic": config.choose_on == config.report_on,
    }
