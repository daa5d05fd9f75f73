"""A search for an agent's hyper-parameters, by Optuna's TPE.

What is searched for is the highest return on calibration of an agent that learned on train and
leaves at its own threshold; dev takes no part. The first trial is the preset, so a search never
ends below it.

The study is an SQLite file that Optuna's own tools read. Each trial draws from a generator of its
own, seeded by the number of trials done, so a search that was stopped anywhere goes on to the end
it would have come to. The trial that was cut off is kept as failed, and run again.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
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
from cee_gym.documents import write_document
from cee_gym.envs import EarlyExitEnv
from cee_gym.errors import CeeGymError, check_number, first_line
from cee_gym.hold import hold
from cee_gym.problem_settings import ProblemSettings
from cee_gym.progress import show_progress
from cee_gym.settings import MOST_SEED, Range
from cee_gym.training.phases import problem_env

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class Search:
    """What is searched.

    Attributes:
        agent: its name.
        recording: with the splits train and calibration.
        problem: what is observed and paid; what it leaves open is the preset's.
        total_timesteps: decisions to learn from; by default the preset's.
        fixed: hyper-parameters that are not searched.
        seed: of the search and, where it has one, of the agent.
    """

    agent: str
    recording: Path
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
) -> dict[str, Any]:
    """Searches, or goes on with a search, until there are so many trials in all.

    Args:
        search: what is searched.
        trials: in all, those of earlier calls included.
        output: the directory for `study.db` and `best.json`.
        timeout_s: begin no trial after so many seconds.
        progress_bar: show progress and time left.

    Returns:
        What is written to `best.json`: `value` and `hyperparameters` of the best trial,
        `preset_value`, the number of `trials` done, and what was searched.

    Raises:
        CeeGymError: if Optuna is not installed, the agent is unknown, cannot learn here or has no
            ranges, or `output` holds another search or is being written.
    """
    check_number("trials", trials, 1)
    description = search.description()
    with hold(output):
        output.mkdir(parents=True, exist_ok=True)
        study = _open_study(output / "study.db", description)
        _run(study, search, trials, timeout_s, progress_bar)
    best = {
        **description,
        "trials": len(_done(study)),
        "value": study.best_value,
        "preset_value": study.trials[0].value,
        "hyperparameters": study.best_params,
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


def _run(
    study: "optuna.Study",
    search: Search,
    trials: int,
    timeout_s: float | None,
    progress_bar: bool,
) -> None:
    from optuna.samplers import TPESampler
    from optuna.trial import TrialState, create_trial

    began = time.monotonic()
    space = {key: _distribution(values) for key, values in search.ranges.items()}
    for cut_off in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(cut_off.number, state=TrialState.FAIL)
    done = len(_done(study))
    with show_progress(
        total=trials,
        initial=done,
        desc=f"tune {search.agent}",
        unit="trial",
        disable=not progress_bar,
    ) as bar:
        while done < trials:
            if timeout_s is not None and done and time.monotonic() - began > timeout_s:
                break
            if done == 0:
                first = {key: search.start[key] for key in space}
                value = search.value(search.start)
                study.add_trial(create_trial(params=first, distributions=space, value=value))
            else:
                seed = np.random.SeedSequence((search.seed, done)).generate_state(1)[0]
                study.sampler = TPESampler(seed=int(seed))
                trial = study.ask(space)
                try:
                    study.tell(trial, search.value(search.start | trial.params))
                except CeeGymError:  # it diverged: as bad as can be, and not to be tried again
                    study.tell(trial, state=TrialState.PRUNED)
            done += 1
            bar.update()
            bar.set_postfix_str(f"best return {study.best_value:.4f}")


def _done(study: "optuna.Study") -> list["optuna.trial.FrozenTrial"]:
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


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
