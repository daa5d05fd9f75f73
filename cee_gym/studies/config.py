"""The file that says what a study compares.

A study is a TOML file. Every combination of task, exits, agent, reward and seed is one cell:

    seeds = [0, 1, 2]

    [[tasks]]                      # a recording that is there already
    name = "SST-2"
    recording = "EarlyExit-BERT-SST-2"

    [[tasks]]                      # or a backbone and text, to be recorded for each seed
    name = "M-CID"
    id = "EarlyExit-BERT-MCID"
    backbone = "sentence-transformers/all-MiniLM-L6-v2"
    data = "data/mcid"

    [[exits]]                      # how backbones are trained; without any, the default recipe
    name = "default"

    [[agents]]
    name = "policy-improvement"

    [[agents]]
    name = "reinforce"
    label = "reinforce, K=4"
    set = {rollouts = 4}

    [[rewards]]                    # without any, correctness at alpha 0.01
    name = "paper"
    reward = "paper"
    alpha = 0.02
"""

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from cee_gym.errors import CeeGymError, check_number, did_you_mean
from cee_gym.evaluation.compare import SAVED_LAYERS
from cee_gym.problem_settings import ProblemSettings
from cee_gym.settings import MOST_SEED
from cee_gym.training.config import AlternationConfig, FitConfig, RecordConfig


@dataclass(frozen=True, kw_only=True)
class TaskEntry:
    """What a study reads.

    Attributes:
        name: in the table.
        recording: the id, path or address of a recording that is there already.
        id: the id of a benchmark, where its backbone is to be recorded.
        backbone: hub name or directory.
        data: the text; by default the benchmark's own source.
        text: the column with the text, for text of your own.
        label: the column with the class, likewise.
        pair: the column with the second text, likewise.
        cut_at: the layers at which the backbone is cut and trained as such, to compare with; by
            default half of them.
    """

    name: str
    recording: str | None = None
    id: str = "EarlyExit"
    backbone: str | None = None
    data: str | None = None
    text: str | None = None
    label: str | None = None
    pair: str | None = None
    cut_at: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if (self.recording is None) == (self.backbone is None):
            raise CeeGymError(f"task {self.name!r} takes either a recording, or id and backbone")


@dataclass(frozen=True, kw_only=True)
class ExitsEntry:
    """How a backbone gets its exits.

    Attributes:
        name: in the table.
        record: see `RecordConfig`, a table of its settings.
        alternation: see `AlternationConfig`, likewise; with rounds the backbone is trained at the
            exits of each agent, so each cell records its own.
    """

    name: str
    record: RecordConfig = field(default_factory=RecordConfig)
    alternation: AlternationConfig = field(default_factory=AlternationConfig)


@dataclass(frozen=True, kw_only=True)
class AgentEntry:
    """What learns.

    Attributes:
        name: of the agent.
        label: in the table; by default its name.
        set: hyper-parameters, over its preset.
        total_timesteps: decisions it learns from; by default its preset's.
        observe: the parts of an observation; by default its preset's.
    """

    name: str
    label: str = ""
    set: Mapping[str, Any] = field(default_factory=dict)
    total_timesteps: int | None = None
    observe: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.total_timesteps is not None:
            check_number("total_timesteps", self.total_timesteps, 1)
        object.__setattr__(self, "label", self.label or self.name)


@dataclass(frozen=True, kw_only=True)
class RewardEntry:
    """What is paid.

    Attributes:
        name: in the table.
        alpha: the price of one layer, or a range.
        quality: see `ProblemSettings`.
        hardness: likewise.
        reward: likewise.
        cost: likewise.
    """

    name: str
    alpha: tuple[float, ...] = (0.01,)
    quality: str = "correctness"
    hardness: str = "none"
    reward: str | None = None
    cost: str = "layers"

    def problem(self, observe: tuple[str, ...] | None) -> ProblemSettings:
        """The problem with these parts of an observation."""
        given = {key: getattr(self, key) for key in ("alpha", "quality", "hardness", "reward")}
        return ProblemSettings(**given, cost=self.cost, observe=observe)


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """What a study compares.

    Attributes:
        tasks: at least one.
        agents: at least one.
        exits: how backbones are trained.
        rewards: what is paid.
        seeds: of agents, and of backbones where they are recorded.
        report_on: the split that everything is reported on.
        choose_on: the split that speeds are chosen on.
        optimistic: whether speeds may be chosen on the split that is reported, which flatters;
            the table then says so.
        saved_layers: at which accuracies are compared.
        tokens: the length of a text, in tokens, that FLOPs are counted for.
        seconds: how long to run each policy by the clock where text and weights are at hand; 0 for
            not at all. Whatever else the machine does is in the figure.
    """

    tasks: tuple[TaskEntry, ...]
    agents: tuple[AgentEntry, ...]
    exits: tuple[ExitsEntry, ...] = (ExitsEntry(name="default"),)
    rewards: tuple[RewardEntry, ...] = (RewardEntry(name="correctness"),)
    seeds: tuple[int, ...] = (0, 1, 2)
    report_on: str = "dev"
    choose_on: str = "calibration"
    optimistic: bool = False
    saved_layers: tuple[float, ...] = SAVED_LAYERS
    tokens: int = 32
    seconds: float = 0.0

    def __post_init__(self) -> None:
        for kind in ("tasks", "agents", "exits", "rewards", "seeds", "saved_layers"):
            entries = getattr(self, kind)
            if not entries:
                raise CeeGymError(f"a study needs at least one of {kind}")
            names = [
                one.label if isinstance(one, AgentEntry) else getattr(one, "name", one)
                for one in entries
            ]
            if twice := [name for name in names if names.count(name) > 1]:
                raise CeeGymError(f"{kind} has {twice[0]!r} twice: give each a name of its own")
        for share in self.saved_layers:
            check_number("saved_layers", share, 0, 0.999)
        for seed in self.seeds:
            check_number("seed", seed, 0, MOST_SEED)
        check_number("tokens", self.tokens, 1)
        check_number("seconds", self.seconds, 0)
        if self.report_on not in ("dev", "test"):
            raise CeeGymError(f"report_on must be dev or test, got {self.report_on!r}")
        known = ("calibration", "train", self.report_on)
        if self.choose_on not in known:
            raise CeeGymError(
                f"choose_on must be one of {', '.join(known)}, got {self.choose_on!r}"
            )
        if self.choose_on == self.report_on and not self.optimistic:
            raise CeeGymError(
                f"speeds would be chosen on {self.report_on}, which is reported, and that flatters:"
                " choose on calibration, or write optimistic = true to have the table say so"
            )

    @classmethod
    def read(cls, file: Path) -> Self:
        """Reads a file; a path in it is as seen from the working directory.

        Raises:
            CeeGymError: if there is none, it is no TOML, or a name or value in it is wrong.
        """
        try:
            found = tomllib.loads(file.read_text(encoding="utf-8"))
        except OSError:
            raise CeeGymError(f"there is no file {file}") from None
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise CeeGymError(f"{file} is not TOML: {error}") from None
        return _made(cls, found, str(file))


_ENTRIES: dict[str, type] = {
    "tasks": TaskEntry,
    "exits": ExitsEntry,
    "agents": AgentEntry,
    "rewards": RewardEntry,
    "record": RecordConfig,
    "alternation": AlternationConfig,
    "warm_up": FitConfig,
    "backbone_phase": FitConfig,
}


def _made(kind: type, given: Any, where: str) -> Any:
    """A dataclass of a table; a name alone stands for a table with that name."""
    if isinstance(given, str):
        given = {"name": given}
    if not isinstance(given, dict):
        raise CeeGymError(f"{where} must be a table, got {given!r}")
    known = {one.name: one for one in fields(kind)}
    values = {}
    for key, value in given.items():
        if key not in known:
            raise CeeGymError(f"{where}: {key!r} is unknown: {did_you_mean(key, list(known))}")
        inner = _ENTRIES.get(key)
        if inner is not None and isinstance(value, list):
            value = tuple(
                _made(inner, one, f"{where}, {key} {n + 1}") for n, one in enumerate(value)
            )
        elif inner is not None:
            value = _made(inner, value, f"{where}, {key}")
        elif key == "alpha" and isinstance(value, int | float):
            value = (float(value),)
        elif isinstance(value, list):
            value = tuple(value)
        values[key] = value
    for name, one in known.items():
        needed = one.default is MISSING and one.default_factory is MISSING
        if needed and name not in values:
            raise CeeGymError(f"{where} has no {name}: give one")
    try:
        return kind(**values)
    except TypeError as error:
        raise CeeGymError(f"{where}: {error}") from None
    except CeeGymError as error:
        raise CeeGymError(f"{where}: {error}") from None
