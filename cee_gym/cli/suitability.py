"""`cee-gym suitability`: will early exit pay for a model and a text?"""

import json
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import tyro

from cee_gym.cli.arguments import OWN_ID, OwnText, benchmark, check_there, task_named
from cee_gym.cli.options import command
from cee_gym.documents import write_document
from cee_gym.errors import CeeGymError
from cee_gym.training.config import RecordConfig

if TYPE_CHECKING:
    from cee_gym.tasks import Task


@command("suitability")
@dataclass(frozen=True)
class Suitability:
    """Says whether early exit will pay for a model and a text, before a policy is trained.

    The model stays as it is. Each exit is a logistic regression on the states of one layer (recipe
    probe of build), and what a layer costs is measured on this machine. Full depth is the last of
    these exits.

    Attributes:
        model: The hub name or directory of an encoder; or the id of a benchmark, with the encoder
            in --backbone.
        backbone: The hub name or directory of an encoder, where an id was given.
        data: A directory with train and dev (or validation), or a hub name. With --text and --label
            it may also be a single file. By default it is the benchmark's own source.
        columns: The columns of your own data.
        profile: A file that `cee-gym profile --policy` wrote for a model of this shape. By default
            the costs are measured now, with a threshold and with a learned policy.
        seconds: About how long to measure.
        output: A directory to keep the recording, the profile and the result in, so that a command
            that was stopped can go on. By default nothing is kept.
        seed: The seed of the split of train into parts.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL_OR_ID")]
    backbone: str | None = None
    data: str | None = None
    columns: Annotated[OwnText, tyro.conf.arg(name="own-data")] = field(default_factory=OwnText)
    profile: Path | None = None
    seconds: float = 30.0
    output: Path | None = None
    seed: int = 0

    def run(self) -> None:
        """Records, measures, compares and prints."""
        check_there("MODEL", self.model)
        check_there("--backbone", self.backbone)
        check_there("--data", self.data)
        task, backbone = self._asked()
        if self.profile is not None and not self.profile.is_file():
            raise CeeGymError(f"there is no profile at {self.profile}: leave it out to measure now")
        place = TemporaryDirectory() if self.output is None else nullcontext(str(self.output))
        with place as directory:
            self._compare(task, backbone, Path(directory))

    def _asked(self) -> tuple["Task", str]:
        from cee_gym.envs.registration import BENCHMARKS

        if self.columns.given:
            if self.backbone is not None:
                raise CeeGymError(
                    f"the model is {self.model}: leave out --backbone {self.backbone}, which is "
                    "for the id of a benchmark"
                )
            return self.columns.task(OWN_ID, self.data), self.model
        id = self.model.rpartition(":")[2]
        if id not in BENCHMARKS and not id.startswith("EarlyExit"):
            raise CeeGymError(
                "which text is it for? Give --data DIR_OR_FILE, --text COLUMN and --label COLUMN; "
                f"or cee-gym suitability ID --backbone {self.model} for the text of a benchmark"
            )
        task = task_named(benchmark(self.model)[1])
        if self.backbone is None:
            raise CeeGymError(
                f"{self.model} names the text: give the model with --backbone NAME_OR_PATH"
            )
        return task, self.backbone

    def _compare(self, task: "Task", backbone: str, directory: Path) -> None:
        import torch

        from cee_gym.cost import BATCH_SIZES as SIZES
        from cee_gym.cost import LENGTHS, CostModel
        from cee_gym.evaluation.suitability import BATCH_SIZES, learn, suitability, table
        from cee_gym.exits import load_model
        from cee_gym.measuring import profile
        from cee_gym.training.phases import record, warm_up
        from cee_gym.training.setup import Setup

        config = RecordConfig(recipe="probe", seed=self.seed)
        setup = Setup.load(task, backbone, self.data, config)
        from cee_gym.training.build import check_same

        check_same(
            directory / "config.json",
            json.loads(json.dumps(asdict(config)))
            | {"backbone": backbone, "text": setup.text_fingerprint, "task": task.name},
        )
        warm_up(setup, directory / "models")
        record(setup, directory / "models", directory / "recording")
        lengths = setup.text["dev"].lengths
        recording, costs = directory / "recording", []
        for way in ("threshold", "learned") if self.profile is None else ():
            measured = directory / f"profile-{way}.json"
            if not measured.exists():
                model = load_model(directory / "models" / "deployed", torch.float32)
                longest = int(lengths.max())
                shorter = [size for size in LENGTHS if size < longest] or [longest - 1]
                profile(
                    model.to(setup.accelerator.device),
                    learn(way, recording),
                    batch_sizes=[size for size in SIZES if size <= max(BATCH_SIZES)],
                    lengths=[*shorter, longest],
                    seconds=self.seconds / 2,
                    progress_bar=True,
                ).save(measured)
            costs.append(CostModel.load(measured))
        if self.profile is not None:
            costs = [CostModel.load(self.profile)]
        found = suitability(recording, costs[0], lengths, costs[-1])
        print(table(found))
        if self.output is not None:
            write_document(directory / "suitability.json", found.to_json())
            print(f"\n{self.output}: suitability.json, profiles, recording, models")
