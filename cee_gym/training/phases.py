"""The phases of ConsistentEE, each a function from what is on disk to what is on disk.

    warm up:   text -> backbones
    record:    backbones -> traces of train (the rows the policy learns on), calibration, dev and
        test
    policy:    traces -> policy
    backbone:  backbones, policy -> backbones

A phase writes into `NAME.partial` and renames when it is done, so what exists is whole, and a run
that was stopped goes on after the last thing that exists.
"""

import hashlib
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from stable_baselines3.common.logger import Logger

from cee_gym import processes
from cee_gym.agents.base import Agent, load_agent
from cee_gym.agents.network_agent import GradientAgent
from cee_gym.documents import publish, read_document, write_document
from cee_gym.envs import EarlyExitEnv
from cee_gym.evaluation.calibration import exits_report
from cee_gym.exits import MultiExitModel, MultiExitOutput, load_model
from cee_gym.observation import Layout, Seen, Sizes, observe_into, width_of
from cee_gym.problem import OBSERVE
from cee_gym.problem_settings import ProblemSettings
from cee_gym.progress import say
from cee_gym.reward import alpha_range
from cee_gym.traces.readout import read_out
from cee_gym.traces.recordings import RECORDING, open_split
from cee_gym.traces.texts import collect, start_trace, write_rows
from cee_gym.traces.writer import finish_trace
from cee_gym.training.calibration import calibrate
from cee_gym.training.config import AlternationConfig, FitConfig
from cee_gym.training.fit import Objective, fit
from cee_gym.training.losses import (
    alternating,
    at_sampled_exit,
    last_exit,
    other_exits,
    over_exits,
    weighted_joint,
)
from cee_gym.training.partition import DEPLOYED
from cee_gym.training.probes import probe
from cee_gym.training.setup import OF_EXITS, Setup
from cee_gym.training.tensorboard import BACKBONE, WARM_UP

RECIPE = "recipe.json"
WARMUP_FROM_PROBES = 0.1
MOST_WATCHED = 500  # rows of calibration that an epoch's line is made of

Part = Literal["all", "last_exit", "other_exits"]


@dataclass(frozen=True)
class Stage:
    """One run of `fit`; a backbone is trained in one, or in several one after another.

    Attributes:
        name: of progress bar and curves.
        seed: of batches and dropout.
        objective: what to descend.
        trains: which parameters: those of the `last_exit` are all that it uses (the backbone, its
            pooler, its head), those of the `other_exits` are the rest.
        from_probes: whether it begins with fitted heads, which the first updates are to spare.
    """

    name: str
    seed: int
    objective: Objective
    trains: Part = "all"
    from_probes: bool = False


def warm_up(setup: Setup, models: Path, logger: Logger | None = None) -> None:
    """Makes every backbone of the partition by the recipe of the set-up.

    Where it leaves the recipe open, `probe` and `finetune` are made and the better one is kept. A
    backbone that has exits already is only copied.

    Args:
        setup: the text, the backbone and how.
        models: where the backbones are to be, by name, and `recipe.json`, which says how they came
            about.
        logger: takes loss and accuracy per layer.
    """
    work = models.with_name(f"{models.name}.training")
    if processes.agree(models.exists()):
        _remove(work)  # of a process that was killed at its very end
        return
    if setup.calibrates:
        processes.once(lambda: probe(setup, work / "probe"))
    if setup.recipes != ("probe",):
        _train(setup, work / "finetune" if setup.calibrates else work / "paper", logger)
    processes.once(lambda: _keep_the_best(setup, work, models))


def _keep_the_best(setup: Setup, work: Path, models: Path) -> None:
    """Calibrates what each recipe made, and publishes the one that is best on unseen text."""
    losses = {}
    for recipe in setup.recipes or ("paper",):
        finished = work / f"{recipe}.calibrated"
        shutil.rmtree(finished, ignore_errors=True)
        losses[recipe] = calibrate(setup, work / recipe, finished).mean()
    kept = min(losses, key=lambda recipe: losses[recipe])
    finished = work / f"{kept}.calibrated"
    if setup.recipes:
        made = ", ".join(f"{recipe} {loss:.4f}" for recipe, loss in losses.items())
        say(f"recipe {kept}; mean cross-entropy on unseen text: {made}")
    write_document(finished / RECIPE, {"recipe": kept, "losses": losses} if setup.recipes else {})
    publish(finished, models)
    shutil.rmtree(work)


def _train(setup: Setup, models: Path, logger: Logger | None) -> None:
    """Trains every backbone on the objective of the set-up, from probes or from fresh heads."""
    rows = {name: len(fit) for name, fit in setup.partition.fit.items()}
    left = processes.agree({name for name in rows if not (models / name).exists()})
    started, trained = time.monotonic(), 0
    for number, name in enumerate(rows, start=1):
        label = f"{WARM_UP}/{name}"
        if name in left and setup.objective is not None:
            said = f"{label}: model {number} of {len(rows)}, {rows[name]} rows"
            if trained:
                pace = (time.monotonic() - started) / trained
                minutes = pace * sum(rows[other] for other in left) / 60
                said += f"; about {minutes:.0f} min left for all models"
            say(said)
        start = models.with_name("probe") / name
        load = partial(load_model, start, torch.float32) if start.exists() else setup.initial_model
        stages = _warm_up_stages(setup, label)
        _train_one(setup, models / name, load, stages, setup.config.warm_up, logger)
        if name in left:
            left.remove(name)
            trained += rows[name]


def _warm_up_stages(setup: Setup, label: str) -> list[Stage]:
    def stage(
        name: str, loss: Callable[[torch.Tensor, int], torch.Tensor], trains: Part = "all"
    ) -> Stage:
        seed = _phase_seed(setup.config.seed, name)
        return Stage(
            name, seed, lambda _o, losses, _l, step: loss(losses, step), trains, setup.calibrates
        )

    match setup.objective:
        case "weighted_joint":
            return [stage(label, lambda losses, _: weighted_joint(losses))]
        case "alternating":
            return [stage(label, alternating)]
        case "two_stage":
            return [
                stage(f"{label}/last-exit", lambda losses, _: last_exit(losses), "last_exit"),
                stage(f"{label}/other-exits", lambda losses, _: other_exits(losses), "other_exits"),
            ]
        case None:
            return []


def backbone_phase(
    setup: Setup,
    before: Path,
    models: Path,
    agent: Agent,
    settings: ProblemSettings,
    config: AlternationConfig,
    number: int,
    logger: Logger | None = None,
) -> Agent:
    """Trains every backbone on the cross-entropy at the exit layer only.

    The policy stays as it is, unless the phases are together: then each batch of the deployed
    backbone first improves the policy on its states. Those are states the backbone is being fitted
    to; a policy phase on recorded ones follows.

    Args:
        setup: the text and how.
        before: the backbones to go on from.
        models: where the backbones are to be.
        agent: decides the exits.
        settings: of the problem it was trained on.
        config: how long, and at which exits.
        number: of the round.
        logger: takes loss and accuracy per layer.

    Returns:
        The agent, improved where the phases are together.
    """
    together = config.phases == "together"
    layout = agent.policy.layout

    def objective_for(name: str, seed: int) -> Objective:
        learns = together and name == DEPLOYED
        improve = _improver(agent, settings, seed) if learns else None

        def objective(
            output: MultiExitOutput, losses: torch.Tensor, labels: torch.Tensor, _: int
        ) -> torch.Tensor:
            alpha = draw_alpha(settings, len(labels))
            observations = observe_output(output, layout, alpha)
            if improve is not None:
                improve(observations, output, labels, alpha)
            probabilities = agent.policy.exit_probabilities(observations)
            scores = torch.from_numpy(probabilities).to(losses)
            if config.backbone_loss == "expected":
                return over_exits(losses, scores)
            uniforms = torch.rand(losses.shape).to(losses)
            return at_sampled_exit(losses, scores, uniforms)

        return objective

    work = models.with_name(f"{models.name}.training")
    if processes.agree(models.exists()):
        _remove(work)
        return load_agent(models / DEPLOYED / "agent") if together else agent
    for name in setup.partition.fit:
        label = f"{BACKBONE}/{name}"
        seed = _phase_seed(setup.config.seed, f"backbone/{name}/{number}")
        _train_one(
            setup,
            work / name,
            partial(load_model, before / name, torch.float32),
            [Stage(label, seed, objective_for(name, seed))],
            config.backbone_phase,
            logger,
            agent if together and name == DEPLOYED else None,
            epochs_before=(number - 1) * config.backbone_phase.epochs,
        )
        if together and name == DEPLOYED:
            agent = load_agent(work / DEPLOYED / "agent")

    def finish() -> None:
        calibrate(setup, work, models)
        shutil.copyfile(before / RECIPE, models / RECIPE)
        shutil.rmtree(work)

    processes.once(finish)
    return agent


def _remove(folder: Path) -> None:
    if processes.is_main():
        shutil.rmtree(folder, ignore_errors=True)


def _train_one(
    setup: Setup,
    target: Path,
    load: Callable[[], MultiExitModel],
    stages: list[Stage],
    config: FitConfig,
    logger: Logger | None,
    agent: Agent | None = None,
    epochs_before: int = 0,
) -> None:
    """Trains one backbone, and with it perhaps an agent, which is then kept beside it.

    Every stage has a checkpoint of what it trains. Those of complete stages stay until the end, so
    that a run that was stopped passes through them to where it was.
    """
    checkpoints = target.with_name(f"{target.name}.checkpoints")
    if processes.agree(target.exists()):
        _remove(checkpoints)
        return
    model = load()
    rng = np.random.default_rng(setup.config.seed)
    watched = np.sort(rng.permutation(setup.partition.calibration)[:MOST_WATCHED])
    of_other_exits = {*model.poolers[:-1].parameters(), *model.heads[:-1].parameters()}
    for number, stage in enumerate(stages, start=1):
        for parameter in model.parameters():
            part = "other_exits" if parameter in of_other_exits else "last_exit"
            parameter.requires_grad_(stage.trains in ("all", part))
        fit(
            model,
            setup.text["train"],
            setup.partition.fit[target.name],
            stage.objective,
            config,
            accelerator=setup.accelerator,
            seed=stage.seed,
            # The agent's share of an epoch is in no checkpoint, so such a phase begins anew.
            checkpoint=checkpoints / f"{number}.safetensors" if agent is None else None,
            name=stage.name,
            logger=logger if target.name == DEPLOYED else None,
            epochs_before=epochs_before,
            warmup_ratio=WARMUP_FROM_PROBES if stage.from_probes else 0.0,
            watched=watched,
        )
    processes.once(lambda: setup.save(model, target, agent))
    _remove(checkpoints)


def record(setup: Setup, models: Path, recording: Path) -> None:
    """Traces what the backbones do.

    On train (the policy's rows), calibration, dev and, where it has labels, test.

    Args:
        setup: the text and how.
        models: the backbones, by name.
        recording: where the traces are to be.
    """
    if processes.agree(recording.exists()):
        return
    unfinished = recording.with_name(f"{recording.name}.partial")
    unfinished.mkdir(parents=True, exist_ok=True)
    shares = setup.partition
    deployed = load_model(models / DEPLOYED, torch.float32).to(setup.accelerator.device)
    for split, source, rows in (
        ("calibration", "train", shares.calibration),
        ("dev", "dev", None),
        ("test", "test", None),
    ):
        if source in setup.splits and not processes.agree((unfinished / split).exists()):
            collect(
                deployed,
                setup.text[source],
                setup.splits[source],
                unfinished / split,
                setup.description(split),
                rows=rows,
                dtype=setup.config.states,
            )
    if not processes.agree((unfinished / "train").exists()):
        writer = start_trace(
            deployed,
            setup.splits["train"],
            unfinished / "train",
            setup.description("train"),
            rows=shares.policy,
            dtype=setup.config.states,
        )
        for name in sorted(set(shares.traced_by)):
            model = deployed
            if name != DEPLOYED:
                model = load_model(models / name, torch.float32).to(setup.accelerator.device)
            positions = np.flatnonzero(np.array(shares.traced_by) == name)
            write_rows(writer, model, setup.text["train"], shares.policy, positions)
        finish_trace(writer)
    processes.once(lambda: _describe(setup, models, deployed, unfinished, recording))


def _describe(
    setup: Setup, models: Path, deployed: MultiExitModel, unfinished: Path, recording: Path
) -> None:
    """Writes beside complete traces how they came about, and publishes them."""
    shares = setup.partition
    row_ids = np.array(setup.splits["train"]["row_id"])
    exits = {name: getattr(deployed.config, name) for name in OF_EXITS}
    description = {
        "task": setup.task.to_json(),
        "backbone": Path(setup.backbone).name,
        "config": asdict(setup.config) | exits | {"objective": setup.objective},
        "fitted_to": {name: row_ids[rows].tolist() for name, rows in shares.fit.items()},
        "traced_by": shares.traced_by,
        "made": read_document(models / RECIPE, "recipe", remedy="make the models again"),
        "exits": exits_report(open_split(unfinished, "calibration"), deployed.config.temperatures),
    }
    write_document(unfinished / RECORDING, description)
    publish(unfinished, recording)


def problem_env(
    recording: str | Path,
    settings: ProblemSettings,
    split: str = "train",
    memorized_layers: np.ndarray | None = None,
) -> EarlyExitEnv:
    """The environment of a policy phase.

    Args:
        recording: the traces.
        settings: what is observed and paid.
        split: of the recording.
        memorized_layers: int `[N]`, to be used in place of the trace's own.
    """
    trace = open_split(recording, split)
    hardness = None
    if memorized_layers is not None and settings.hardness == "memorized_layer":
        hardness = 1.0 - memorized_layers / trace.num_layers
    return EarlyExitEnv(
        trace=trace,
        split=split,
        alpha=settings.price,
        reward=settings.make_reward(hardness),
        observe=settings.observe or OBSERVE,
    )


def draw_alpha(settings: ProblemSettings, size: int) -> np.ndarray:
    """A price of one layer for each of some instances, float32 `[B, 1]`.

    Where alpha is a range it is drawn from it, by torch's generator on the CPU.
    """
    low, high = alpha_range(settings.price)
    return (low + (high - low) * torch.rand((size, 1))).numpy()


def observe_output(output: MultiExitOutput, layout: Layout, alpha: np.ndarray) -> np.ndarray:
    """What is observed of a batch that a model has just run, float32 `[B, L, D]`.

    Args:
        output: of B texts.
        layout: the columns of each part.
        alpha: the price of one layer, `[B, 1]`.
    """
    assert output.states is not None
    assert output.logits is not None
    states = output.states.detach().float().cpu().numpy()
    logits = output.logits.detach().float().cpu().numpy()
    size, num_layers, width = states.shape
    sizes = Sizes(num_layers, width, logits.shape[2])
    observations = np.empty((size, num_layers, width_of(layout)), dtype=np.float32)
    seen = Seen(np, sizes, (1, num_layers), alpha[:, :, None], states, logits)
    observe_into(observations, layout, seen)
    return observations


def _improver(agent: Agent, settings: ProblemSettings, seed: int) -> Callable[..., None]:
    """A function that takes one step of the policy on a batch of the backbone phase."""
    assert isinstance(agent, GradientAgent)
    network = agent.network
    assert network is not None
    optimizer = agent.make_optimizer(network)
    rng = np.random.default_rng(seed)
    reward = settings.make_reward()

    def improve(
        observations: np.ndarray, output: MultiExitOutput, labels: torch.Tensor, alpha: np.ndarray
    ) -> None:
        assert output.logits is not None
        exits = read_out(
            output.logits.detach().float().cpu().numpy(), labels.cpu().numpy()[:, None]
        )
        depths = np.arange(1, exits.correct.shape[1] + 1)
        rewards = reward.quality_of(exits) - alpha * reward.price_of(exits, depths)
        logits = network(agent.states(torch.from_numpy(observations)))
        step = agent.estimate(logits, torch.from_numpy(rewards), rng)
        optimizer.zero_grad()
        step.loss.backward()
        optimizer.step()
        agent.hand_over_network()

    return improve


def _phase_seed(seed: int, phase: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{phase}".encode()).digest()[:4], "little")
