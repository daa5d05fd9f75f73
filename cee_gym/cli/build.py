"""`cee-gym build`: warm a backbone up and record it."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from cee_gym.cli.arguments import (
    OWN_ID,
    Id,
    OwnText,
    benchmark,
    check_there,
    task_named,
    token_benchmark,
)
from cee_gym.cli.options import command
from cee_gym.errors import CeeGymError
from cee_gym.training.config import RecordConfig, TokenConfig, refuse_changed


@command("build")
@dataclass(frozen=True)
class Build:
    """Puts exits on a model, trains them, and records what every layer computes.

    Then gym.make opens the recording without the texts and the model. A build that was stopped
    goes on when the same command is repeated.

    Attributes:
        id: The id of a benchmark, such as EarlyExit-BERT-MRPC. MODULE:ID imports a module of yours
            first. Leave it out where --text and --label name the columns of your own --data.
        backbone: The hub name or directory of an encoder; for generation, of a causal language
            model, or a .gguf file.
        data: A directory with train, dev (or validation) and perhaps test, or a hub name. With
            --text and --label it may also be a single file. By default it is the benchmark's own
            source.
        columns: The columns of your own data.
        record: How the exits are trained and recorded.
        tokens: How the exits of a decoder are made.
        under: For generation, a run or a policy: tokens are recorded as they are when this policy
            runs with state copying. By default they are recorded at full depth.
        output: The directory of the recording. By default it is named after the id, or after the
            data, in the folder $CEE_GYM_HOME.
    """

    id: Id = OWN_ID
    backbone: str | None = None
    data: str | None = None
    columns: Annotated[OwnText, tyro.conf.arg(name="own-data")] = field(default_factory=OwnText)
    record: Annotated[RecordConfig, tyro.conf.arg(name="recording")] = field(
        default_factory=RecordConfig
    )
    tokens: Annotated[TokenConfig, tyro.conf.arg(name="generation")] = field(
        default_factory=TokenConfig
    )
    under: Path | None = None
    output: Path | None = None

    def run(self) -> None:
        """Builds."""
        check_there("--backbone", self.backbone)
        check_there("--data", self.data)
        check_there("--under", self.under)
        from cee_gym.evaluation.calibration import agreement_table, exits_table
        from cee_gym.inference.pretrained import load_policy
        from cee_gym.tasks import Task
        from cee_gym.tasks.prompted import PromptedTask, get_prompted
        from cee_gym.traces.recordings import (
            build_command,
            find_recording,
            home,
            open_split,
            recorded_splits,
            shipped_backbone,
        )
        from cee_gym.training.build import build, clean
        from cee_gym.training.setup import Setup
        from cee_gym.training.token_setup import TokenSetup

        of_tokens = token_benchmark(self.id)
        if of_tokens is None:
            if self.under is not None:
                raise CeeGymError("--under is for tasks of generation: leave it out")
            refuse_changed(
                self.tokens, vars(self.tokens), "generation; leave it out for a classifier"
            )
        task: Task | PromptedTask
        if of_tokens is not None:
            id, name = of_tokens
            task, place = get_prompted(name), home() / id
        elif self.columns.given:
            task = self.columns.task(self.id, self.data)
            data = Path(str(self.data)).expanduser().absolute()
            id, place = OWN_ID, home() / "own" / (data.stem if data.is_file() else data.name)
        else:
            id, name = benchmark(self.id)
            task, place = task_named(name), home() / id
        target = (self.output or place).absolute()
        if recorded_splits(target):
            clean(target)
            raise CeeGymError(f"{target} holds a recording already: remove it to record again")
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise CeeGymError(f"{target} is in the way: give --output a new or empty directory")
        backbone = self.backbone or shipped_backbone(id)
        if backbone is None and isinstance(task, Task) and task.is_own:
            raise CeeGymError("text of your own needs a backbone: give --backbone NAME_OR_PATH")
        if backbone is None:
            raise CeeGymError(f"{id} needs a backbone: {build_command(self.id)}")
        setup: Setup | TokenSetup
        if isinstance(task, PromptedTask):
            setup = TokenSetup.load(task, str(backbone), self.data, self.record, self.tokens)
        else:
            setup = Setup.load(task, str(backbone), self.data, self.record)
        further: dict[str, Any] = {"id": id}
        if self.under is not None:
            further |= {"under": str(self.under)}
        if id == OWN_ID:
            further |= {"task": task.to_json()}
        print(f"recording {id} into {target}", file=sys.stderr)
        build(setup, target, further, None if self.under is None else load_policy(self.under))
        if id == OWN_ID or self.output is not None or find_recording(id).absolute() != target:
            given = f"'{self.id}', trace='{self.output or target}'"
        else:
            given = f"'{self.id}'"
        if of_tokens is None:
            print(exits_table(json.loads((target / "recording.json").read_text())["exits"]))
        else:
            print(agreement_table(open_split(target, "calibration")))
        print(f"recorded. To open it: gym.make({given})")
