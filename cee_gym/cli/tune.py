"""`cee-gym tune`: search an agent's hyper-parameters."""

import json
import shlex
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from cee_gym.cli.arguments import (
    AgentName,
    EngineArguments,
    Id,
    Recording,
    Settings,
    benchmark_or_own,
    check_agent,
    check_recording,
    parse_settings,
)
from cee_gym.cli.options import command
from cee_gym.problem_settings import ProblemSettings


@command("tune")
@dataclass(frozen=True)
class Tune:
    """Searches the hyper-parameters of an agent on a recording, beginning with its preset.

    A search that was stopped goes on when the same command is repeated.

    Attributes:
        id: The id of a benchmark, or EarlyExit with --trace. MODULE:ID imports a module of yours
            first.
        agent: The name of the agent.
        trace: The recording to search on, or its address. By default it is the benchmark's.
        trials: The number of trials, including those done before a stop.
        timeout_s: Begin no new trial after this many seconds.
        output: The directory for study.db and best.json. By default it is runs/ID-AGENT-tune.
        seed: The seed of the search and of the agent.
        set: A hyper-parameter that is not to be searched. The option may be repeated.
        problem: What a policy observes, and what leaving pays.
        total_timesteps: The number of decisions to learn from. By default it is the preset's.
        engine: What runs the trials, and where.
    """

    id: Id
    agent: AgentName = "reinforce"
    trace: Recording = None
    trials: int = 50
    timeout_s: float | None = None
    output: Path | None = None
    seed: int = 0
    set: Settings = ()
    problem: ProblemSettings = field(default_factory=ProblemSettings)
    total_timesteps: int | None = None
    engine: EngineArguments = field(default_factory=EngineArguments)

    def run(self) -> None:
        """Searches, and prints how to train with what was found."""
        cluster = self.engine.cluster()
        check_agent(self.agent)
        check_recording(self.trace)
        from cee_gym.agents.registry import hyperparameter_defaults
        from cee_gym.traces.recordings import find_recording
        from cee_gym.training.tune import Search, tune

        known = hyperparameter_defaults(self.agent)
        id, _ = benchmark_or_own("tune", self.id, self.trace)
        fixed = parse_settings(self.agent, self.set, known)
        search = Search(
            self.agent,
            self.trace or find_recording(self.id),
            self.problem,
            self.total_timesteps,
            fixed,
            self.seed,
        )
        name = f"{id}-{self.agent}-tune".replace(":", "-")
        output = self.output or Path("runs") / name
        best = tune(search, self.trials, output, timeout_s=self.timeout_s, cluster=cluster)
        print(f"return on calibration, {best['trials']} trials, {output / 'study.db'}")
        print(f"  the preset  {best['preset_value']:.4f}")
        print(f"  the best    {best['value']:.4f}")
        print(f"to use it: {self._train_command(fixed | best['hyperparameters'])}")

    def _train_command(self, hyperparameters: dict[str, Any]) -> str:
        words = ["cee-gym", "train", self.id, "--agent", self.agent]
        if self.trace is not None:
            words += ["--trace", self.trace]
        for setting in fields(self.problem):
            value = getattr(self.problem, setting.name)
            if value != setting.default:
                values = value if isinstance(value, tuple) else (value,)
                words += [f"--{setting.name.replace('_', '-')}", *map(str, values)]
        if self.total_timesteps is not None:
            words += ["--total-timesteps", str(self.total_timesteps)]
        if self.seed:
            words += ["--seed", str(self.seed)]
        for key, value in hyperparameters.items():
            words += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
        return shlex.join(words)
