"""What the arguments of the commands name: benchmarks, tasks, agents and their settings."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from cee_gym.agents.registry import agent_names
from cee_gym.errors import CeeGymError, did_you_mean, is_a_path
from cee_gym.registry import import_user_module
from cee_gym.traces.recordings import is_address

if TYPE_CHECKING:
    from cee_gym.cluster import Cluster
    from cee_gym.policies.speeds import Speed
    from cee_gym.tasks import Task

# A path, or an address as `cee_gym.traces.recordings.local` takes it. No Path: that would make one
# slash of two.
Recording = Annotated[str | None, tyro.conf.arg(metavar="PATH_OR_ADDRESS")]
Id = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ID")]
OWN_ID = "EarlyExit"
AgentName = Annotated[
    str,
    tyro.conf.arg(
        metavar="AGENT",
        help=f"{', '.join(agent_names())}, sb3:NAME, sb3-contrib:NAME, or MODULE:NAME for one of "
        "your own; see cee-gym agents.",
    ),
]
# `--set a=1 --set b=2`
Settings = Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="KEY=VALUE")]


@dataclass(frozen=True)
class SpeedArguments:
    """How fast the policy should be. Give at most one; by default it is the policy's own speed.

    Attributes:
        at: An operating point that `cee-gym evaluate` kept, by its name.
        threshold: Leave above this score of the policy, from 0 to 1.
        alpha: The price of one layer, for a policy that was trained for a range of prices.
        saved_layers: The slowest speed that saves this share of the layers on calibration.
        points_lost: The fastest speed that loses at most this many points of accuracy on
            calibration. On other text it may lose more.
    """

    at: str | None = None
    threshold: float | None = None
    alpha: float | None = None
    saved_layers: float | None = None
    points_lost: float | None = None

    def speed(self) -> "Speed":
        """The speed that is wanted.

        Raises:
            CeeGymError: if more than one is given, or one is out of range.
        """
        from cee_gym.policies.speeds import Speed

        return Speed(self.at, self.threshold, self.alpha, self.saved_layers, self.points_lost)

    @property
    def option(self) -> str | None:
        """The one that is given, such as `--saved-layers`; None where none is."""
        given = [name for name, value in vars(self).items() if value is not None]
        return f"--{given[0].replace('_', '-')}" if given else None


@dataclass(frozen=True)
class EngineArguments:
    """What does the work, and where.

    Attributes:
        engine: This process, which does one thing after another, or ray, which does several at
            once.
        address: The address of a Ray cluster that runs. By default Ray is started on this machine.
        cpus: The number of CPUs that Ray keeps for each cell of a study, or trial of a search.
        gpus: The number of GPUs that Ray keeps for each.
    """

    engine: Literal["process", "ray"] = "process"
    address: str | None = None
    cpus: float = 1.0
    gpus: float = 0.0

    def cluster(self) -> "Cluster | None":
        """Where Ray runs, and what it keeps for each task; None without it.

        Raises:
            CeeGymError: if something is given that Ray alone knows, or is out of range.
        """
        from cee_gym.cluster import Cluster

        given = {"address": self.address, "cpus": self.cpus != 1, "gpus": self.gpus}
        if self.engine != "ray" and (unused := [name for name in given if given[name]]):
            raise CeeGymError(f"--{unused[0]} is of --engine ray")
        if self.engine != "ray":
            return None
        return Cluster(self.address, self.cpus, self.gpus)


@dataclass(frozen=True)
class OwnText:
    """The columns of your own data, which needs no id.

    The classes are those that occur in train, or in the single file. Classes and columns are kept
    with the recording and the model, so no other command asks for them.

    Attributes:
        text: The name of the column with the text.
        pair: The name of the column with the second text, for pairs of texts.
        label: The name of the column with the class.
    """

    text: str | None = None
    pair: str | None = None
    label: str | None = None

    @property
    def given(self) -> bool:
        """Whether it is about your own text."""
        return any(vars(self).values())

    def task(self, id: str, data: str | None) -> "Task":
        """The task; says so where train and dev are parts of one file.

        Args:
            id: that was given, or EarlyExit.
            data: of `--data`.

        Raises:
            CeeGymError: if something more is to be given, or something less, or the data does not
                serve.
        """
        from cee_gym.tasks import own_task
        from cee_gym.tasks.loading import DEV_EVERY

        option = next(f"--{name}" for name, column in vars(self).items() if column is not None)
        if id != OWN_ID:
            raise CeeGymError(
                f"{option} names a column of text of your own, and {id} knows its columns: leave "
                "out one of the two"
            )
        if self.text is None or self.label is None or data is None:
            raise CeeGymError(
                "text of your own takes --data DIR_OR_FILE, --text COLUMN and --label COLUMN, all "
                f"three: only {option} is not enough"
            )
        task = own_task(data, self.text, self.label, self.pair)
        if Path(data).expanduser().is_file():
            print(
                f"{data} is one file: of each class, about one row in {DEV_EVERY} is dev and the "
                "others are train, the same ones every time",
                file=sys.stderr,
            )
        return task


def check_agent(name: str) -> None:
    """Refuses an unknown agent, before anything that takes seconds to import.

    Args:
        name: of `--agent`; one with a colon is not looked up here.
    """
    if ":" not in name and name not in agent_names():
        raise CeeGymError(f"unknown agent {name!r}: {did_you_mean(name, agent_names())}")


def check_there(option: str, given: str | Path | None) -> None:
    """Refuses a path where nothing is, before anything that takes seconds to import.

    Args:
        option: the name of the option.
        given: its value, which may also be a name on the hub.
    """
    if given is not None and is_a_path(given) and not Path(given).expanduser().exists():
        raise CeeGymError(f"{option} {given}: there is no such file or directory")


def check_recording(given: str | None) -> None:
    """Refuses a `--trace` where nothing is, as `check_there` does; an address is not looked at."""
    if given is not None and not is_address(given):
        check_there("--trace", given)


def loading(model: str) -> Path:
    """The directory of a model; says what the next seconds are spent on.

    Args:
        model: a directory, or a name on the hub.

    Raises:
        CeeGymError: if there is none, before anything that takes seconds to import.
    """
    from cee_gym.inference.pretrained import locate

    directory = locate(model)
    print(f"loading {model}", file=sys.stderr, flush=True)
    return directory


def benchmark(given: str) -> tuple[str, str]:
    """The id and the full name of its task; `MODULE:ID` imports the module that registers it."""
    from cee_gym.envs.registration import BENCHMARKS, TOKEN_BENCHMARKS
    from cee_gym.tasks import get_task

    module, _, id = given.rpartition(":")
    if module:
        import_user_module(module)
    if id == OWN_ID:
        raise CeeGymError(
            "what is to be recorded? Give an id (cee-gym envs lists them), or --data, --text and "
            "--label for text of your own"
        )
    if id in TOKEN_BENCHMARKS:
        raise CeeGymError(f"the instances of {id} are tokens, and this command is for texts")
    if id not in BENCHMARKS:
        known = [*BENCHMARKS, *TOKEN_BENCHMARKS]
        raise CeeGymError(f"unknown id {id!r}: {did_you_mean(id, known)}")
    return id, get_task(BENCHMARKS[id]).full_name


def token_benchmark(given: str) -> tuple[str, str] | None:
    """The id and the full name of its task of generation; None for any other id.

    `MODULE:ID` imports the module that registers it.
    """
    from cee_gym.envs.registration import TOKEN_BENCHMARKS
    from cee_gym.tasks.prompted import get_prompted

    module, _, id = given.rpartition(":")
    if module:
        import_user_module(module)
    if id not in TOKEN_BENCHMARKS:
        return None
    return id, get_prompted(TOKEN_BENCHMARKS[id]).full_name


def benchmark_or_own(command: str, given: str, trace: str | None) -> tuple[str, str]:
    """The id and the name of its task, where `--trace` may give the recording.

    Args:
        command: for the messages.
        given: an id, `MODULE:ID`, or EarlyExit for a recording of your own.
        trace: of `--trace`.

    Raises:
        CeeGymError: if there is no such id, or the recording is of another task.
    """
    from cee_gym.traces.recordings import open_split

    own = given == OWN_ID
    of_tokens = token_benchmark(given)
    if of_tokens is not None and trace is None:
        return of_tokens
    if trace is None:
        if own:
            message = "EarlyExit is a recording of your own: give --trace PATH"
            if command == "train":
                message += "; or for text of your own --data, --text, --label and --backbone"
            raise CeeGymError(message)
        return benchmark(given)
    recorded = open_split(trace, "train").header.task
    id, task = (given, recorded) if own else of_tokens or benchmark(given)
    if task != recorded:
        raise CeeGymError(
            f"the recording at {trace} is of task {recorded}, not {task}: "
            f"cee-gym {command} EarlyExit --trace {trace}"
        )
    return id, task


def task_named(name: str) -> "Task":
    """The task of this name; `MODULE:NAME` imports the module that registers it."""
    from cee_gym.tasks import get_task

    return get_task(name)


def is_prompted(task: str) -> bool:
    """Whether it is a task of generation."""
    from cee_gym.tasks.prompted import PROMPTED

    module, _, name = task.rpartition(":")
    if module and name not in PROMPTED:
        import_user_module(module)
    return name in PROMPTED


def metrics_of(task: str) -> tuple[str, ...]:
    """The metrics of a task; accuracy for the recording of an unknown task.

    Raises:
        CeeGymError: if the task is `MODULE:NAME` and the module cannot be imported.
    """
    from cee_gym.tasks import get_task, task_names
    from cee_gym.tasks.base import OWN, OWN_METRICS

    if task == OWN:
        return OWN_METRICS
    if is_prompted(task):
        return ("agreement",)
    return get_task(task).metrics if ":" in task or task in task_names() else ("accuracy",)


def hyperparameters(
    agent: str,
    observe: tuple[str, ...] | None,
    settings: tuple[str, ...],
    seed: int,
) -> dict[str, Any]:
    """What to construct an agent with: its preset, and over it what `--set` says.

    Args:
        agent: its name.
        observe: of `--observe`.
        settings: of `--set`, each `KEY=VALUE`.
        seed: of the agent, where it has one.

    Raises:
        CeeGymError: if there is no such agent or hyper-parameter, or a value is of another type.
    """
    from cee_gym.agents.registry import hyperparameter_defaults, preset_hyperparameters

    known = hyperparameter_defaults(agent)
    return preset_hyperparameters(agent, observe, seed) | parse_settings(agent, settings, known)


def parse_settings(agent: str, settings: tuple[str, ...], known: dict[str, Any]) -> dict[str, Any]:
    """The values of some `KEY=VALUE`, each of the type of its default.

    >>> parse_settings("cat", ("learning_rate=1",), {"learning_rate": 0.1})
    {'learning_rate': 1.0}
    """
    given = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or key not in known:
            raise CeeGymError(
                f"--set {setting}: give KEY=VALUE, where KEY is one of {agent}'s {', '.join(known)}"
            )
        try:
            given[key] = _as_type_of(known[key], text)
        except ValueError:
            raise CeeGymError(
                f"--set {setting}: {text!r} is not of type {type(known[key]).__name__}"
            ) from None
    return given


def _as_type_of(default: Any, text: str) -> Any:
    """What a text means where this default stands: JSON, or else the text itself.

    Raises:
        ValueError: if it is of another type than the default.
    """
    if isinstance(default, str):
        return text
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    kind = type(default)
    if default is None or type(value) is kind:
        return value
    if kind is float and type(value) is int:
        return float(value)
    if kind is int and type(value) is float and value.is_integer():  # 1e5
        return int(value)
    if kind is tuple and type(value) is list:
        return tuple(value)
    raise ValueError
