"""`cee-gym study`: tasks x agents x rewards x trainings x seeds, in one table."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from cee_gym.cli.arguments import EngineArguments
from cee_gym.cli.options import command


@command("study")
@dataclass(frozen=True)
class Study:
    """Compares agents over tasks, rewards, trainings and seeds, as one file says.

    Every combination is a cell. A study that was stopped goes on when the same command is repeated,
    and no cell is done twice. Several processes may work on one study: start the same command as
    often as you like.

    The table always has full depth, every fixed exit, the attainable bound, hindsight and the
    confidence rule. For a task with a backbone that rule is on the frozen probe, and the model cut
    at a layer and trained as such is there too.

    Attributes:
        config: The TOML file that says what is compared. The docstring of cee_gym.studies.config,
            and the guide, show one.
        output: The folder of the study. By default it is studies/NAME, after the file.
        engine: What does the cells, and where.
        estimate: Only say how many cells there are and about how much CPU time they take.
    """

    config: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG")]
    output: Path | None = None
    engine: EngineArguments = field(default_factory=EngineArguments)
    estimate: bool = False

    def run(self) -> None:
        """Does what is not done yet, and prints the summary."""
        cluster = self.engine.cluster()
        from cee_gym.studies.config import StudyConfig

        config = StudyConfig.read(self.config)
        output = self.output or Path("studies") / self.config.stem
        from cee_gym.progress import say
        from cee_gym.studies.estimate import estimate
        from cee_gym.studies.report import summary_table
        from cee_gym.studies.study import SUMMARY, TABLE, run_study, summary

        say(estimate(config, output))
        if self.estimate:
            return
        if cluster is None:
            table = run_study(config, output)
        else:
            from cee_gym.studies.cluster import run_on_ray

            table = run_on_ray(config, output, cluster)
        print(summary_table(summary(table)))
        print(f"\n{output / TABLE}: {len(table)} rows; {output / SUMMARY}")
