"""cee-gym: record a backbone, train an exit policy, evaluate it."""

import json
import os
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from cee_gym.errors import CeeGymError, did_you_mean, first_line
from cee_gym.training.config import AlternationConfig, PolicyConfig, RecordConfig


@dataclass(frozen=True)
class Envs:
    """What is registered, what is recorded here, and what would record it."""

    def run(self) -> None:
        """Prints a table."""
        from cee_gym.envs.registration import BENCHMARKS
        from cee_gym.recordings import (
            MissingRecordingError,
            build_command,
            find_recording,
            home,
            open_split,
            recorded_splits,
        )

        for id, task in BENCHMARKS.items():
            try:
                path = find_recording(id)
            except MissingRecordingError:
                print(f"{id:30} {task:14} not recorded; {build_command(id)}")
                continue
            traces = [open_split(path, split) for split in recorded_splits(path)]
            sizes = ", ".join(f"{t.header['split']} {len(t)}" for t in traces)
            where = "shipped" if home() not in path.parents else str(path)
            first = traces[0]
            print(
                f"{id:30} {task:14} {first.header['backbone']}, {first.num_layers} layers, {sizes} "
                f"[{first.fingerprint}] {where}"
            )
        print("EarlyExit                      your own         gym.make('EarlyExit', trace=PATH)")


@dataclass(frozen=True)
class Build:
    """Warms a backbone up and records it, so that its id can be made without it.

    Goes on where it was stopped.

    Attributes:
        id: of the benchmark, such as EarlyExit-BERT-MRPC; MODULE:ID imports a module of yours
            first.
        backbone: hub name or directory of an encoder.
        data: a directory with train, dev (or validation) and optionally test, or a hub name; by
            default the task's own.
        record: how to warm up and record.
        output: where to record to; by default the folder of recordings, $CEE_GYM_HOME.
    """

    id: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ID")]
    backbone: str | None = None
    data: str | None = None
    record: Annotated[RecordConfig, tyro.conf.arg(name="")] = field(default_factory=RecordConfig)
    output: Path | None = None

    def run(self) -> None:
        """Builds."""
        from cee_gym.recordings import (
            build_command,
            find_recording,
            home,
            recorded_splits,
            shipped_backbone,
        )
        from cee_gym.training.phases import record, warm_up
        from cee_gym.training.setup import Setup

        _quiet_transformers()
        id, task_name = _benchmark(self.id)
        target = (self.output or home() / id).absolute()
        if recorded_splits(target):
            raise CeeGymError(f"{target} holds a recording already: remove it to record {id} again")
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise CeeGymError(f"{target} is in the way: give --output a new or empty directory")
        backbone = self.backbone or shipped_backbone(id)
        if backbone is None:
            raise CeeGymError(f"{id} needs a backbone: {build_command(id)}")
        setup = Setup.load(_task(task_name), str(backbone), self.data, self.record)
        work = target.with_name(f"{target.name}.build")
        _check_same(
            work / "config.json",
            _jsonable(self.record)
            | {"backbone": str(backbone), "id": id, "text": setup.text_fingerprint},
        )
        print(f"recording {id} into {target}", file=sys.stderr)
        if not (work / "recording" / "models").exists():
            warm_up(setup, work / "models")
            record(setup, work / "models", work / "recording")
            (work / "models").rename(work / "recording" / "models")
        (work / "recording").rename(target)
        for leftover in work.iterdir():
            leftover.unlink()
        work.rmdir()
        if self.output is not None or find_recording(id).absolute() != target:
            print(f"recorded. To open it: gym.make('{id}', trace='{self.output or target}')")
        else:
            print(f"recorded. To open it: gym.make('{id}')")


@dataclass(frozen=True)
class Train:
    """Trains a policy on a recording, or policy and backbone in turn.

    Attributes:
        id: of the benchmark, or EarlyExit with --trace; MODULE:ID imports a module of yours first.
        agent: reinforce, expected-return, longstaff-schwartz, or a rule; see the README.
        backbone: hub name or directory; with it the run warms up and records its own backbone.
        data: a directory with train, dev and optionally test, or a hub name; by default the task's
            own.
        trace: the recording to train on, if not the benchmark's.
        output: of the run; by default runs/ID-AGENT-seedSEED.
        resume: go on with the run in output.
        set: hyper-parameters of the agent, as key=value.
        policy: the environment of the policy phase.
        alternation: the rounds after the first policy phase.
        record: how to warm up and record.
    """

    id: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ID")]
    agent: str = "reinforce"
    backbone: str | None = None
    data: str | None = None
    trace: Path | None = None
    output: Path | None = None
    resume: bool = False
    set: tuple[str, ...] = ()
    policy: Annotated[PolicyConfig, tyro.conf.arg(name="")] = field(default_factory=PolicyConfig)
    alternation: Annotated[AlternationConfig, tyro.conf.arg(name="")] = field(
        default_factory=AlternationConfig
    )
    record: Annotated[RecordConfig, tyro.conf.arg(name="")] = field(default_factory=RecordConfig)

    def run(self) -> None:
        """Trains, and prints the evaluation on dev."""
        from cee_gym.evaluation.report import table
        from cee_gym.recordings import find_recording, shipped_backbone
        from cee_gym.training.setup import Setup
        from cee_gym.training.trainer import ConsistentEETrainer

        _quiet_transformers()
        if self.backbone is not None and self.trace is not None:
            raise CeeGymError("--backbone makes a recording and --trace names one: give only one")
        id, task_name = self._id_and_task()
        agent = _make_agent(self.agent, self.set, self.record.seed)
        output = self.output or Path("runs") / f"{id}-{self.agent}-seed{self.record.seed}"
        backbone: str | Path | None = self.backbone
        if backbone is None and self.alternation.rounds and self.trace is None:
            backbone = shipped_backbone(id)
        if self.data is not None and backbone is None and not self.alternation.rounds:
            raise CeeGymError(
                "--data is text for a backbone: give --backbone too, or leave --data out to train "
                "on a recording"
            )
        setup = recording = None
        if backbone is not None:
            setup = Setup.load(_task(task_name), str(backbone), self.data, self.record)
        elif self.alternation.rounds:
            raise CeeGymError(
                f"--rounds {self.alternation.rounds} trains the backbone as well, which takes its "
                f"weights and text: cee-gym train {id} --rounds {self.alternation.rounds} "
                "--backbone NAME_OR_PATH --data DIR_OR_HUB_NAME"
            )
        else:
            recording = self.trace or find_recording(id)
        trainer = ConsistentEETrainer(
            agent,
            output,
            setup=setup,
            recording=recording,
            policy=self.policy,
            alternation=self.alternation,
            metrics=_metrics(task_name),
        )
        print(table(trainer.train(resume=self.resume)))
        print(f"\nrun: {output}; curves: tensorboard --logdir {output.parent}")

    def _id_and_task(self) -> tuple[str, str]:
        from cee_gym.recordings import open_split

        own = self.id == "EarlyExit"
        if self.trace is None:
            if own:
                raise CeeGymError("EarlyExit is a recording of your own: give --trace PATH")
            return _benchmark(self.id)
        recorded = open_split(self.trace, "train").header["task"]
        id, task = (self.id, recorded) if own else _benchmark(self.id)
        if task != recorded:
            raise CeeGymError(
                f"the recording at {self.trace} is of task {recorded}, not {task}: "
                f"cee-gym train EarlyExit --trace {self.trace}"
            )
        return id, task


@dataclass(frozen=True)
class Evaluate:
    """Accuracy, exit layers, saved layers and the curve of a run.

    Against fixed layers and the hindsight optimum.

    Attributes:
        run_directory: what train wrote.
        split: to report on: dev, or test where the recording has one.
    """

    run_directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    split: Literal["dev", "test"] = "dev"

    def run(self) -> None:
        """Evaluates, prints the table and writes it as JSON, and as a plot."""
        from cee_gym.agents.base import load_agent
        from cee_gym.evaluation.report import report, table, write
        from cee_gym.training.phases import policy_env

        directory = self.run_directory
        try:
            config = json.loads((directory / "config.json").read_text())
            settings: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value
                for key, value in config["policy"].items()
            }
            policy = PolicyConfig(**settings)
            metrics, given = tuple(config["metrics"]), config["recording"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = first_line(error)
            raise CeeGymError(f"there is no run at {directory} ({reason})") from None
        rounds: list[Path] = []
        while (directory / f"round-{len(rounds)}" / "evaluation.json").exists():
            rounds.append(directory / f"round-{len(rounds)}")
        if not rounds:
            raise CeeGymError(f"{directory} has no complete round yet: go on with it by --resume")
        recording = Path(given or rounds[-1] / "recording")
        calibration, dev = (
            policy_env(recording, policy, split).table for split in ("calibration", self.split)
        )
        for opened in (calibration, dev):
            opened.trace.verify()
        try:
            trained = json.loads((rounds[-1] / "evaluation.json").read_text())
            before = trained["calibration_trace"]
        except (ValueError, KeyError, TypeError) as error:
            raise CeeGymError(f"{rounds[-1]} is damaged ({first_line(error)})") from None
        if before != calibration.trace.fingerprint:
            raise CeeGymError(
                f"{recording} has been recorded again since {directory} was trained on it "
                f"({before}, now {calibration.trace.fingerprint}): train again"
            )
        results = report(load_agent(rounds[-1] / "agent"), calibration, dev, metrics)
        name = "evaluation" if self.split == "dev" else f"evaluation-{self.split}"
        write(results, directory / name, f"{directory.name}, {rounds[-1].name}")
        print(table(results))
        print(f"\ntrace {results['trace']}; {directory / name}.json, {directory / name}.png")


Command = Envs | Build | Train | Evaluate


def main(args: list[str] | None = None) -> None:
    """Runs a command; an error meant for the user is one line and exit code 2."""
    _quiet()
    command: Command | None = None
    try:
        command = tyro.cli(
            Annotated[Envs, tyro.conf.subcommand("envs")]
            | Annotated[Build, tyro.conf.subcommand("build")]
            | Annotated[Train, tyro.conf.subcommand("train")]
            | Annotated[Evaluate, tyro.conf.subcommand("evaluate")],
            prog="cee-gym",
            description=__doc__,
            args=args,
        )
        command.run()
    except CeeGymError as error:
        print(f"cee-gym: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        words = list(sys.argv[1:] if args is None else args)
        if isinstance(command, Train) and not command.resume:
            words.append("--resume")
        again = f"cee-gym {shlex.join(words)}"
        print(f"\nstopped; what is done is kept. To go on: {again}", file=sys.stderr)
        raise SystemExit(130) from None
    except (FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        print(f"cee-gym: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except Exception as error:
        # Each library that writes a file has its own kind of error for this.
        if "No space left on device" not in str(error):
            raise
        print(f"cee-gym: the disk is full: {error}; what is done is kept", file=sys.stderr)
        raise SystemExit(2) from None


def _benchmark(given: str) -> tuple[str, str]:
    """The id and the name of its task; `MODULE:ID` first imports the module that registers it."""
    from importlib import import_module

    from cee_gym.envs.registration import BENCHMARKS

    module, _, id = given.rpartition(":")
    if module:
        try:
            import_module(module)
        except ImportError as error:
            raise CeeGymError(f"{module} cannot be imported: {error}") from error
    if id not in BENCHMARKS:
        raise CeeGymError(f"unknown id {id!r}: {did_you_mean(id, list(BENCHMARKS))}")
    return id, BENCHMARKS[id]


def _metrics(task: str) -> tuple[str, ...]:
    """Those of a task; accuracy where a recording is of one that is not known here."""
    from cee_gym.tasks import get_task, task_names

    return get_task(task).metrics if task in task_names() else ("accuracy",)


def _task(name: str) -> Any:
    from cee_gym.tasks import get_task

    return get_task(name)


def _make_agent(name: str, settings: tuple[str, ...], seed: int) -> Any:
    from cee_gym.agents.base import agent_class

    kind = agent_class(name)
    known = kind().hyperparameters()
    given: dict[str, Any] = {"seed": seed} if "seed" in known else {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or key not in known:
            raise CeeGymError(
                f"--set {setting}: give KEY=VALUE, where KEY is one of {name}'s {', '.join(known)}"
            )
        try:
            given[key] = type(known[key])(value)
        except ValueError:
            raise CeeGymError(
                f"--set {setting}: {value!r} is not of type {type(known[key]).__name__}"
            ) from None
    return kind(**given)


def _jsonable(config: RecordConfig) -> dict[str, Any]:
    from dataclasses import asdict

    return json.loads(json.dumps(asdict(config)))


def _check_same(file: Path, settings: dict[str, Any]) -> None:
    """Refuses to go on with a build that was begun with other settings."""
    if file.exists():
        try:
            before = dict(json.loads(file.read_text()))
        except (ValueError, TypeError) as error:
            raise CeeGymError(f"{file} cannot be read ({error}): remove {file.parent}") from None
        if before != settings:
            changed = [key for key in settings if before.get(key) != settings[key]]
            raise CeeGymError(
                f"{file.parent} holds a build begun with another {', '.join(changed)}: repeat its "
                f"settings ({file.name}), or remove it"
            )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(settings, indent=1) + "\n")


def _quiet_transformers() -> None:
    """Its bars for reading and writing weights would drown ours."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _quiet() -> None:
    """Libraries' own bars and advice would drown ours."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
