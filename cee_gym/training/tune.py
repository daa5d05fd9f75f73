"""A search for an agent's hyper-parameters, by Optuna's TPE.

What is searched for is the highest return on calibration of an agent that learned on train and
leaves at its own threshold; dev takes no part. The first trial is the preset, so a search never
ends below it.

The study is an SQLite file that Optuna's own tools read. Each trial draws from a generator of its
own, seeded by the place of the trial in the search, so a search that was stopped anywhere goes on
to the end it would have come to. A trial that was cut off is kept as failed, and its place is taken
again.

Trials run one after another, or several at once as tasks of Ray. There the sampler knows fewer
results when it draws. Only this process writes the file.
"""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cee_gym.agents.presets import Preset
from cee_gym.agents.registry import (
    hyperparameter_defaults,
    hyperparameter_ranges,
    make_agent,
    preset_for,
)
from cee_gym.cluster import Cluster, RayTasks
from cee_gym.documents import write_document
from cee_gym.envs import EarlyExitEnv
from cee_gym.errors import CeeGymError, check_number, first_line
from cee_gym.hold import hold
from cee_gym.problem_settings import ProblemSettings
from cee_gym.progress import show_progress
from cee_gym.settings import MOST_SEED, Range
from cee_gym.traces.recordings import where
from cee_gym.training.phases import problem_env

if TYPE_CHECKING:
    import optuna

PLACE = "place"  # of a trial in the search, kept with it
PRESET = 0  # its place


@dataclass(frozen=True)
class Search:
    """What is searched.

    Attributes:
        agent: its name.
        recording: the path or address of one with the splits train and calibration.
        problem: what is observed and paid; what it leaves open is the preset's.
        total_timesteps: decisions to learn from; by default the preset's.
        fixed: hyper-parameters that are not searched.
        seed: of the search and, where it has one, of the agent.
    """

    agent: str
    recording: str | Path
    problem: ProblemSettings = field(default_factory=ProblemSettings)
    total_timesteps: int | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        check_number("seed", self.seed, 0, MOST_SEED)
        if self.total_timesteps is not None:
            check_number("total_timesteps", self.total_timesteps, 1)

    @cached_property
    def start(self) -> dict[str, Any]:
        """The hyper-parameters of the first trial: the preset's, and over them the fixed ones."""
        known = hyperparameter_defaults(self.agent)
        seed = {"seed": self.seed} if "seed" in known else {}
        return known | seed | dict(self._preset.hyperparameters) | dict(self.fixed)

    @cached_property
    def ranges(self) -> dict[str, Range | list[Any]]:
        """What is searched.

        Raises:
            CeeGymError: if there is nothing to search.
        """
        known = hyperparameter_ranges(self.agent)
        ranges = {key: values for key, values in known.items() if key not in self.fixed}
        if not ranges:
            why = f"all of {', '.join(known)} are set" if known else "learning chooses all it has"
            raise CeeGymError(f"there is nothing to search for {self.agent}: {why}")
        return ranges

    @cached_property
    def environments(self) -> dict[str, EarlyExitEnv]:
        """Those of train and calibration."""
        return {s: problem_env(self.recording, self._settings, s) for s in ("train", "calibration")}

    def value(self, hyperparameters: Mapping[str, Any]) -> float:
        """The mean return on calibration with these hyper-parameters.

        Where alpha is a range, prices are spread over it evenly.

        Raises:
            CeeGymError: if the agent refuses them, or diverges.
        """
        agent = make_agent(self.agent, **hyperparameters)
        agent.learn(self.environments["train"], self._total_timesteps)
        problem = self.environments["calibration"].problem
        alpha = np.random.default_rng(0).permutation(np.linspace(*problem.alpha, len(problem)))
        policy = agent.policy
        index = policy.exit_layers(policy.scores_on(problem, alpha)) - 1
        return float(problem.rewards(alpha)[np.arange(len(index)), index].mean())

    def description(self) -> dict[str, Any]:
        """Everything that decides the outcome of the search, JSON-able."""
        traces = {s: env.problem.trace.fingerprint for s, env in self.environments.items()}
        return json.loads(
            json.dumps(
                {
                    "agent": self.agent,
                    "traces": traces,
                    "problem": self._settings.to_json(),
                    "total_timesteps": self._total_timesteps,
                    "start": self.start,
                    "ranges": self.ranges,
                    "seed": self.seed,
                }
            )
        )

    @property
    def _settings(self) -> ProblemSettings:
        return self.problem.observing(self._preset.observe)

    @property
    def _total_timesteps(self) -> int:
        return self.total_timesteps or self._preset.total_timesteps

    @cached_property
    def _preset(self) -> Preset:
        return preset_for(self.agent).observing(self.problem.observe)


def tune(
    search: Search,
    trials: int,
    output: Path,
    *,
    timeout_s: float | None = None,
    progress_bar: bool = True,
    cluster: Cluster | None = None,
) -> dict[str, Any]:
    """Searches, or goes on with a search, until there are so many trials in all.

    Args:
        search: what is searched.
        trials: in all, those of earlier calls included.
        output: the directory for `study.db` and `best.json`.
        timeout_s: begin no trial after so many seconds.
        progress_bar: show progress and time left.
        cluster: run as many trials at once as there is room for there; None runs one at a time in
            this process. All machines have to see the recording under one path or address.

    Returns:
        What is written to `best.json`: `value` and `hyperparameters` of the best trial,
        `preset_value`, the number of `trials` done, and what was searched.

    Raises:
        CeeGymError: if Optuna is not installed, the agent is unknown, cannot learn here or has no
            ranges, `output` holds another search or is being written, or the cluster cannot be
            used.
    """
    check_number("trials", trials, 1)
    description = search.description()
    with hold(output):
        output.mkdir(parents=True, exist_ok=True)
        study = _open_study(output / "study.db", description)
        if cluster is None:
            _run(study, search, trials, timeout_s, progress_bar, _Here())
        else:
            # A new search, so that no open recording is sent along.
            sent = replace(search, recording=where(search.recording))
            with cluster.tasks(_outcome, "trial") as tasks:
                _run(study, sent, trials, timeout_s, progress_bar, tasks)
    done = _done(study)
    # Of equal ones the first in the search, not the first that ended.
    found = {place: trial.value for place, trial in done.items() if trial.value is not None}
    chosen = min(found, key=lambda place: (-found[place], place))
    best = {
        **description,
        "trials": len(done),
        "value": found[chosen],
        "preset_value": found[PRESET],
        "hyperparameters": done[chosen].params,
    }
    write_document(output / "best.json", best)
    return best


def _open_study(file: Path, description: dict[str, Any]) -> "optuna.Study":
    """The study of a file, made where there is none.

    Raises:
        CeeGymError: if Optuna is not installed, or the file is no study, or that of another search.
    """
    try:
        import optuna
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError:
        raise CeeGymError('a search takes Optuna: pip install "cee-gym[tune]"') from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(
            storage=f"sqlite:///{file}",
            study_name="cee-gym",
            direction="maximize",
            load_if_exists=True,
        )
        before = study.user_attrs.get("description")
    except (SQLAlchemyError, optuna.exceptions.OptunaError, RuntimeError) as error:
        raise CeeGymError(
            f"{file} is no study that can be gone on with ({first_line(error)}): give another "
            "--output"
        ) from error
    if before is None:
        study.set_user_attr("description", description)
    elif before != description:
        changed = [key for key in description if before.get(key) != description[key]]
        raise CeeGymError(
            f"{file.parent} holds a search begun with another {', '.join(changed)}: repeat its "
            "settings, or give another --output"
        )
    return study


def _outcome(search: Search, hyperparameters: Mapping[str, Any]) -> float | CeeGymError:
    """The value of these hyper-parameters, or why they have none.

    Raises:
        CeeGymError: if the recording is not to be had here.
    """
    search.environments  # noqa: B018 - before the agent, which alone may fail
    try:
        return search.value(hyperparameters)
    except CeeGymError as error:
        return error


class _Here:
    """Runs one trial at a time, in this process; see `RayTasks`."""

    slots = 1

    def __init__(self) -> None:
        self.running: dict[Any, Any] = {}

    def start(self, key: Any, *given: Any) -> None:
        self.running[key] = given

    def wait(self) -> tuple[Any, Any]:
        key, given = self.running.popitem()
        return key, _outcome(*given)


class _Trials:
    """The trials of a search, each at its place: 0 is the preset's, which is not drawn."""

    def __init__(self, study: "optuna.Study", search: Search) -> None:
        from optuna.trial import TrialState

        self._study = study
        self._search = search
        self._space = {key: _distribution(values) for key, values in search.ranges.items()}
        self._asked: dict[int, optuna.Trial] = {}
        for cut_off in study.get_trials(states=(TrialState.RUNNING,)):
            study.tell(cut_off.number, state=TrialState.FAIL)

    def ask(self, place: int) -> dict[str, Any]:
        """The hyper-parameters of a trial."""
        from optuna.samplers import TPESampler

        if place == PRESET:
            return self._search.start
        seed = np.random.SeedSequence((self._search.seed, place)).generate_state(1)[0]
        self._study.sampler = TPESampler(seed=int(seed))
        trial = self._asked[place] = self._study.ask(self._space)
        trial.set_user_attr(PLACE, place)
        return self._search.start | trial.params

    def tell(self, place: int, outcome: float | CeeGymError) -> None:
        """Keeps what a trial came to.

        Raises:
            CeeGymError: if that of the preset failed.
        """
        from optuna.trial import TrialState, create_trial

        if place != PRESET:
            trial = self._asked.pop(place)
            if isinstance(outcome, CeeGymError):  # as bad as can be, and not to be tried again
                self._study.tell(trial, state=TrialState.PRUNED)
            else:
                self._study.tell(trial, outcome)
            return
        if isinstance(outcome, CeeGymError):
            raise outcome
        first = create_trial(
            params={key: self._search.start[key] for key in self._space},
            distributions=self._space,
            value=outcome,
            user_attrs={PLACE: place},
        )
        self._study.add_trial(first)


def _run(
    study: "optuna.Study",
    search: Search,
    trials: int,
    timeout_s: float | None,
    progress_bar: bool,
    tasks: _Here | RayTasks,
) -> None:
    began = time.monotonic()
    all_trials = _Trials(study, search)
    begun = set(_done(study))

    def more() -> bool:
        late = timeout_s is not None and time.monotonic() - began > timeout_s
        return PRESET not in begun or (len(begun) < trials and not late)

    with show_progress(
        total=trials,
        initial=len(begun),
        desc=f"tune {search.agent}",
        unit="trial",
        disable=not progress_bar,
    ) as bar:
        while True:
            while len(tasks.running) < tasks.slots and more():
                place = next(place for place in count() if place not in begun)
                begun.add(place)
                tasks.start(place, search, all_trials.ask(place))
            if not tasks.running:
                return
            all_trials.tell(*tasks.wait())
            bar.update()
            known = [t.value for t in _done(study).values() if t.value is not None]
            bar.set_postfix_str(f"best return {max(known, default=math.nan):.4f}")


def _done(study: "optuna.Study") -> dict[int, "optuna.trial.FrozenTrial"]:
    """The trials that came to an end, by their place in the search."""
    from optuna.trial import TrialState

    # Those of searches that kept no places came one after another.
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    return {trial.user_attrs.get(PLACE, order): trial for order, trial in enumerate(trials)}


def _distribution(values: Range | list[Any]) -> "optuna.distributions.BaseDistribution":
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if isinstance(values, list):
        return CategoricalDistribution(values)
    if isinstance(values.low, int) and isinstance(values.high, int):
        return IntDistribution(values.low, values.high, log=values.log)
    return FloatDistribution(values.low, values.high, log=values.log)
