"""`cee-gym train`: train a policy, or policy and backbone in turn."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from cee_gym import processes
from cee_gym.agents.registry import hyperparameter_defaults
from cee_gym.cli.arguments import (
    OWN_ID,
    AgentName,
    Id,
    OwnText,
    Recording,
    Settings,
    benchmark_or_own,
    check_agent,
    check_recording,
    check_there,
    hyperparameters,
    is_prompted,
    metrics_of,
    parse_settings,
    task_named,
)
from cee_gym.cli.options import command
from cee_gym.errors import CeeGymError, check_number
from cee_gym.hold import hold
from cee_gym.problem_settings import ProblemSettings
from cee_gym.settings import MOST_SEED
from cee_gym.training.config import (
    AlternationConfig,
    RecordConfig,
    TokenConfig,
    refuse_changed,
)

if TYPE_CHECKING:
    from cee_gym.tasks import Task


def observing_tokens(agent: str, problem: ProblemSettings) -> ProblemSettings:
    """What an agent observes of tokens: nothing that takes an LM head, unless it cannot do without.

    Args:
        agent: its name.
        problem: where it leaves that open.
    """
    from cee_gym.agents.presets import OBSERVE, OBSERVE_TOKENS
    from cee_gym.agents.registry import make_agent, preset_for

    if problem.observe is not None or preset_for(agent).observe != OBSERVE:
        return problem
    try:
        make_agent(agent).check_observe(OBSERVE_TOKENS)
    except CeeGymError:
        return problem
    return problem.observing(OBSERVE_TOKENS)


@command("train")
@dataclass(frozen=True)
class Train:
    """Trains an exit policy on a recording, or policy and model in turn.

    Attributes:
        id: The id of a benchmark. MODULE:ID imports a module of yours first. Leave it out, or give
            EarlyExit, for a recording of your own (with --trace) or data of your own (with --text
            and --label).
        agent: The name of the agent.
        backbone: The hub name or directory of a model. With it the run makes and records its own
            exits.
        data: A directory with train, dev (or validation) and perhaps test, or a hub name. With
            --text and --label it may also be a single file. By default it is the benchmark's own
            source.
        columns: The columns of your own data.
        trace: The recording to train on, or its address, such as hf://datasets/OWNER/NAME. By
            default it is the benchmark's.
        output: The directory of the run. By default it is runs/ID-AGENT-seedSEED, or runs/ID-AGENT
            for several seeds.
        resume: Go on with the run in --output.
        seeds: Train once for each of these seeds, in OUTPUT/seed-SEED, and print a table over them.
            This replaces --seed.
        set: A hyper-parameter of the agent, in place of its preset's. The option may be repeated.
        problem: What a policy observes, and what leaving pays.
        total_timesteps: The number of decisions that a policy phase learns from. By default it is
            the preset's.
        alternation: The rounds after the first policy phase.
        record: How the exits are trained and recorded.
        tokens: How the exits of a decoder are made.
    """

    id: Id = OWN_ID
    agent: AgentName = "reinforce"
    backbone: str | None = None
    data: str | None = None
    columns: Annotated[OwnText, tyro.conf.arg(name="own-data")] = field(default_factory=OwnText)
    trace: Recording = None
    output: Path | None = None
    resume: bool = False
    seeds: tuple[int, ...] = ()
    set: Settings = ()
    problem: ProblemSettings = field(default_factory=ProblemSettings)
    total_timesteps: int | None = None
    alternation: AlternationConfig = field(default_factory=AlternationConfig)
    record: Annotated[RecordConfig, tyro.conf.arg(name="recording")] = field(
        default_factory=RecordConfig
    )
    tokens: Annotated[TokenConfig, tyro.conf.arg(name="generation")] = field(
        default_factory=TokenConfig
    )

    def run(self) -> None:
        """Trains, and prints the evaluation on dev."""
        check_agent(self.agent)
        if self.backbone is not None and self.trace is not None:
            raise CeeGymError("--backbone makes a recording and --trace names one: give only one")
        check_there("--backbone", self.backbone)
        check_there("--data", self.data)
        check_recording(self.trace)
        if self.set:
            parse_settings(self.agent, self.set, hyperparameter_defaults(self.agent))
        from cee_gym.documents import write_document
        from cee_gym.evaluation.report import live_lines, table
        from cee_gym.evaluation.seeds import over_seeds, seeds_table
        from cee_gym.runs import Run

        own = None
        if self.columns.given:
            if self.backbone is None:
                raise CeeGymError(
                    "text of your own is for a backbone to be recorded: give --backbone "
                    "NAME_OR_PATH, or for a recording of it only --trace PATH"
                )
            own = self.columns.task(self.id, self.data)
            id, task = self.id, own.name
        else:
            id, task = benchmark_or_own("train", self.id, self.trace)
        name = f"{id}-{self.agent}".replace(":", "-")
        if not self.seeds:
            seed = self.record.seed
            output = self.output or Path("runs") / f"{name}-seed{seed}"
            print(table(self._one(id, task, own, seed, output)))
        else:
            if len(set(self.seeds)) < len(self.seeds):
                raise CeeGymError(f"--seeds names one twice: {' '.join(map(str, self.seeds))}")
            for one in self.seeds:  # before the first trains
                check_number("seed", one, 0, MOST_SEED)
            if any(setting.startswith("seed=") for setting in self.set):
                raise CeeGymError("--seeds gives each run its seed: leave --set seed out")
            output = self.output or Path("runs") / name
            with hold(output):
                runs = {s: self._one(id, task, own, s, output / f"seed-{s}") for s in self.seeds}
                results = over_seeds(runs)
                if processes.is_main():
                    write_document(output / "seeds.json", results)
            print(seeds_table(results))
        if not self.seeds and (lines := live_lines(Run.open(output).evaluation)):
            print(lines)
        print(f"\nrun: {output}; curves: tensorboard --logdir {output.parent}")

    def _one(
        self, id: str, task: str, own: "Task | None", seed: int, output: Path
    ) -> dict[str, Any]:
        """Trains from one seed; gives the evaluation."""
        from cee_gym.agents.registry import make_agent
        from cee_gym.tasks.prompted import get_prompted
        from cee_gym.traces.recordings import find_recording, shipped_backbone
        from cee_gym.training.setup import Setup
        from cee_gym.training.token_setup import TokenSetup
        from cee_gym.training.trainer import ConsistentEETrainer

        problem = self.problem
        if is_prompted(task):
            problem = observing_tokens(self.agent, problem)
        settings = hyperparameters(self.agent, problem.observe, self.set, seed)
        agent = make_agent(self.agent, **settings)
        backbone: str | Path | None = self.backbone
        if backbone is None and self.alternation.rounds and self.trace is None:
            backbone = shipped_backbone(id)
        if self.data is not None and backbone is None and not self.alternation.rounds:
            raise CeeGymError(
                "--data is text for a backbone: give --backbone too, or leave --data out to train "
                "on a recording"
            )
        setup: Setup | TokenSetup | None = None
        recording: str | Path | None = None
        generates = is_prompted(task)
        if not generates or backbone is None:
            what = "the decoder of a task of generation, to be recorded: leave it out"
            refuse_changed(self.tokens, vars(self.tokens), what)
        if backbone is not None and generates:
            record = replace(self.record, seed=seed)
            setup = TokenSetup.load(
                get_prompted(task), str(backbone), self.data, record, self.tokens
            )
        elif backbone is not None:
            record = replace(self.record, seed=seed)
            setup = Setup.load(own or task_named(task), str(backbone), self.data, record)
        elif self.alternation.rounds:
            named = self.id if self.trace is None else "ID"
            raise CeeGymError(
                f"--rounds {self.alternation.rounds} trains the backbone as well, which takes its "
                f"weights and text: cee-gym train {named} --rounds {self.alternation.rounds} "
                "--backbone NAME_OR_PATH --data DIR_OR_HUB_NAME"
            )
        else:
            refuse_changed(
                self.record,
                (name for name in asdict(self.record) if name != "seed"),
                "a backbone to be recorded: give --backbone too, or leave it out to train on a "
                "recording",
            )
            recording = self.trace or find_recording(self.id)
        trainer = ConsistentEETrainer(
            agent,
            output,
            setup=setup,
            recording=recording,
            problem=problem,
            total_timesteps=self.total_timesteps,
            alternation=self.alternation,
            metrics=metrics_of(task),
        )
        return trainer.train(resume=self.resume)
