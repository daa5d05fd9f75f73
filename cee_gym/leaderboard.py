"""Agents on the recordings in the package, with what is exactly known about each.

An agent learns on train with its preset. On dev its exit probabilities give its return in closed
form, J. Beside it stand the best fixed layer, what Longstaff-Schwartz regression learns, a bound on
that, and hindsight, which nothing beats. The normalised score is

    (J - J_fixed) / (J_ls - J_fixed)

0 is the best fixed layer, 1 is Longstaff-Schwartz. Where the two are no further apart than two
standard errors of their difference there is nothing to divide by, and the score is left out.

Agents of other libraries join by a file of their exit probabilities, see `write_submission`.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cee_gym.agents.presets import OBSERVE
from cee_gym.agents.registry import make_agent, preset_for, preset_hyperparameters
from cee_gym.documents import written_whole
from cee_gym.envs import EarlyExitVectorEnv
from cee_gym.errors import CeeGymError, did_you_mean
from cee_gym.evaluation.resampling import Interval
from cee_gym.headroom import Headroom, headroom
from cee_gym.intervals import error_of_mean
from cee_gym.problem import Problem
from cee_gym.problem_settings import ProblemSettings
from cee_gym.returns import exit_distribution, expected_return
from cee_gym.tables import aligned, paragraph
from cee_gym.traces.recordings import find_recording
from cee_gym.training.phases import problem_env

# The recordings in the package, and the price of a layer that makes leaving a question there.
ENTRIES: dict[str, float] = {
    "EarlyExit-ToyBERT-Clauses": 0.035,
    "EarlyExit-BERT-RTE": 0.01,
    "EarlyExit-BERT-SST-2": 0.01,
}
AGENTS = (
    *("policy-improvement", "longstaff-schwartz", "expected-return", "reinforce", "ppo"),
    *("cat", "learning-to-exit", "confidence", "patience", "fixed-layer", "random"),
)
_REPLAYS = 20_000
Floats = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Line:
    """One agent on one recording.

    Attributes:
        id: of the recording.
        agent: its name.
        returns: mean return on dev, one for each seed.
        error: the standard error of the mean return over the rows.
        regret: hindsight's mean return minus the mean of the returns.
        normalised: the normalised score of each seed; None where there is none.
        accuracy: on dev, the mean over seeds.
        saved_layers: likewise.
        seconds: that learning took, the mean over seeds; None for a submission.
    """

    id: str
    agent: str
    returns: list[float]
    error: float
    regret: float
    normalised: list[float] | None
    accuracy: float
    saved_layers: float
    seconds: float | None


def known_about(id: str) -> Headroom:
    """What is known of a recording at its price."""
    problem = _problem(id, "dev", OBSERVE)
    return headroom(problem, _problem(id, "train", OBSERVE))


def run_agent(id: str, agent: str, seeds: Sequence[int], known: Headroom) -> Line:
    """Trains an agent with its preset, once for each seed.

    Args:
        id: of an entry.
        agent: its name.
        seeds: at least one.
        known: of the recording.
    """
    preset = preset_for(agent)
    tables, seconds = [], []
    for seed in seeds:
        made = make_agent(agent, **preset_hyperparameters(agent, None, seed))
        env = problem_env(find_recording(id), _settings(id, preset.observe))
        begun = time.perf_counter()
        policy = made.learn(env, preset.total_timesteps).policy
        seconds.append(time.perf_counter() - begun)
        problem = _problem(id, "dev", preset.observe)
        exits = policy.exit_layers(policy.scores_on(problem))
        leave = np.arange(1, problem.num_layers + 1) >= exits[:, None]
        tables.append(leave.astype(np.float64))
    return _line(id, agent, tables, known, float(np.mean(seconds)))


def _line(
    id: str, agent: str, tables: Sequence[Floats], known: Headroom, seconds: float | None
) -> Line:
    problem = _problem(id, "dev", OBSERVE)
    rewards = problem.rewards(ENTRIES[id])
    each = [expected_return(table, rewards) for table in tables]
    returns = [float(of.mean()) for of in each]
    taken = [exit_distribution(table) for table in tables]
    accuracy = np.mean([(of * problem.correct).sum(axis=1).mean() for of in taken])
    depth = np.mean([(of * problem.trace.depths).sum(axis=1).mean() for of in taken])
    gap = known.learned.mean_return - known.fixed_layer.mean_return
    normalised = None
    if gap > 2 * known.over_fixed_layer.error:
        normalised = [(one - known.fixed_layer.mean_return) / gap for one in returns]
    return Line(
        id=id,
        agent=agent,
        returns=returns,
        error=error_of_mean(each[0]),
        regret=known.hindsight.mean_return - float(np.mean(returns)),
        normalised=normalised,
        accuracy=float(accuracy),
        saved_layers=float(1 - depth / problem.trace.depths[-1]),
        seconds=seconds,
    )


def write_submission(file: str | Path, tables: Mapping[str, Floats]) -> None:
    """Writes what another library's agent does, to join the leaderboard with.

    Args:
        file: ends with .npz.
        tables: by the id of the recording, the probability of leaving each row of dev at each
            layer once it is there, float `[N, L]`, in the order of the rows.

    Raises:
        CeeGymError: if an id or a table is not what is expected.
    """
    arrays: dict[str, Any] = {}
    for id, table in tables.items():
        problem = _checked(id, np.asarray(table))
        arrays[id] = np.asarray(table, dtype=np.float64)
        arrays[f"{id}/fingerprint"] = np.array(problem.trace.fingerprint)
    # numpy adds .npz to a name, but not to an open file.
    with written_whole(file) as unfinished, unfinished.open("wb") as unfinished_file:
        np.savez_compressed(unfinished_file, **arrays)


def read_submission(file: str | Path) -> dict[str, Floats]:
    """What `write_submission` wrote, by the id of the recording. Nothing is unpickled.

    Raises:
        CeeGymError: if it is no such file, or was made on other rows.
    """
    try:
        with np.load(file, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
    except (OSError, ValueError) as error:
        raise CeeGymError(f"{file} cannot be read: {error}") from None
    tables = {name: table for name, table in arrays.items() if not name.endswith("/fingerprint")}
    for id, table in tables.items():
        problem = _checked(id, table)
        made_on = str(arrays.get(f"{id}/fingerprint", ""))
        if made_on != problem.trace.fingerprint:
            raise CeeGymError(
                f"{file}: {id} was made on the rows {made_on or 'that it does not name'}, and here "
                f"they are {problem.trace.fingerprint}"
            )
    if not tables:
        raise CeeGymError(f"{file} holds no table: write it with write_submission")
    return tables


def run_submission(file: str | Path, known: Mapping[str, Headroom]) -> list[Line]:
    """The lines of a submission.

    Args:
        file: of `write_submission`.
        known: of the recordings, by id.
    """
    name = Path(file).stem
    tables = read_submission(file)
    return [_line(id, name, [table], known[id], None) for id, table in tables.items()]


def validate(file: str | Path, seed: int = 0) -> dict[str, tuple[float, Interval]]:
    """Plays a submission in the environment, and holds its return to the closed form.

    Args:
        file: of `write_submission`.
        seed: of the episodes.

    Returns:
        By the id of the recording, the return in closed form, and the mean of the episodes with
        an interval of four standard errors.

    Raises:
        CeeGymError: if the two differ by more, which would be a mistake of ours.
    """
    found = {}
    for id, table in read_submission(file).items():
        problem = _problem(id, "dev", OBSERVE)
        exact = float(expected_return(table, problem.rewards(ENTRIES[id])).mean())
        played = _played(id, table, seed)
        error = float(played.std(ddof=1) / len(played) ** 0.5)
        mean = float(played.mean())
        if abs(mean - exact) > 4 * error + 1e-9:
            raise CeeGymError(
                f"{file}: {id} earns {exact:.4f} in closed form, and {mean:.4f} in "
                f"{len(played)} episodes"
            )
        found[id] = (exact, Interval(mean, mean - 4 * error, mean + 4 * error))
    return found


def _played(id: str, table: Floats, seed: int) -> Floats:
    """The returns of episodes in which the actions are drawn."""
    envs = EarlyExitVectorEnv(500, id, split="dev", alpha=ENTRIES[id], observe=("layer",))
    rng = np.random.default_rng(seed)
    observations, infos = envs.reset(seed=seed)
    instance = np.array(infos["instance"])
    returns: list[float] = []
    while len(returns) < _REPLAYS:
        layer = observations.argmax(axis=1)
        leave = rng.random(len(layer)) < table[instance, layer]
        observations, rewards, ended, _, infos = envs.step(leave.astype(np.int64))
        returns += rewards[ended].tolist()
        if ended.any():
            instance = np.where(ended, infos["instance"], instance)
    return np.array(returns)


def leaderboard_table(lines: Sequence[Line], known: Mapping[str, Headroom]) -> str:
    """A table for each recording, best first."""
    parts = []
    for id, about in known.items():
        head = ["agent", "return", "regret", "normalised", "accuracy", "saved", "seconds"]
        cells = [head]
        named = {
            "best fixed layer": about.fixed_layer,
            "Longstaff-Schwartz": about.learned,
            "bound": about.bound,
            "hindsight": about.hindsight,
        }
        shown = [
            (
                earned.mean_return,
                [
                    f"({name})",
                    f"{earned.mean_return:.4f} ± {earned.error:.4f}",
                    f"{about.hindsight.mean_return - earned.mean_return:.4f}",
                    "",
                    f"{earned.accuracy:.3f}",
                    f"{earned.saved_layers:.1%}",
                    "",
                ],
            )
            for name, earned in named.items()
        ]
        for line in lines:
            if line.id == id:
                mean = float(np.mean(line.returns))
                score = "" if line.normalised is None else f"{np.mean(line.normalised):.2f}"
                shown.append(
                    (
                        mean,
                        [
                            line.agent,
                            f"{mean:.4f} ± {line.error:.4f}",
                            f"{line.regret:.4f}",
                            score,
                            f"{line.accuracy:.3f}",
                            f"{line.saved_layers:.1%}",
                            "" if line.seconds is None else f"{line.seconds:.1f}",
                        ],
                    )
                )
        cells += [row for _, row in sorted(shown, key=lambda one: -one[0])]
        title = f"{id}, alpha {ENTRIES[id]:g}, {about.rows} rows of dev"
        parts.append(f"{title}\n\n{aligned(cells)}")
    note = (
        "In brackets what is known of the recording. Return: the mean over seeds, and the standard "
        "error over the rows (±). Regret: what hindsight earns more. Normalised: 0 is the best "
        "fixed layer, 1 is Longstaff-Schwartz; it is left out where these two are not clearly "
        "apart."
    )
    return "\n\n".join([*parts, paragraph(note)])


def to_json(lines: Sequence[Line], known: Mapping[str, Headroom]) -> dict[str, Any]:
    """As plain types."""
    return {
        "known": {
            id: {
                name: value._asdict() if hasattr(value, "_asdict") else value
                for name, value in vars(about).items()
            }
            for id, about in known.items()
        },
        "lines": [asdict(line) for line in lines],
    }


def _checked(id: str, table: Floats) -> Problem:
    if id not in ENTRIES:
        raise CeeGymError(f"{id!r} is not on the leaderboard: {did_you_mean(id, list(ENTRIES))}")
    problem = _problem(id, "dev", OBSERVE)
    expected = (len(problem), problem.num_layers)
    if table.shape != expected:
        raise CeeGymError(f"{id}: the table must be of shape {expected}, got {table.shape}")
    if table.dtype.kind not in "fiu" or not ((table >= 0) & (table <= 1)).all():
        raise CeeGymError(f"{id}: the table must hold probabilities, numbers from 0 to 1")
    return problem


def _settings(id: str, observe: Sequence[str]) -> ProblemSettings:
    return ProblemSettings(alpha=(ENTRIES[id],), observe=tuple(observe))


def _problem(id: str, split: str, observe: Sequence[str]) -> Problem:
    return _settings(id, observe).problem(find_recording(id), split)
