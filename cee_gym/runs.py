"""The directory of a run of `cee-gym train`, for those who read it.

config.json              what was asked for
round-R/models           the backbones of the round (the last round's are kept)
round-R/recording        what they did
round-R/agent            the policy, and what the agent needs to go on learning
round-R/evaluation.json  what the policy comes to, with its operating points; the last to be written
points.json              the operating points that `cee-gym evaluate` kept beside those, by name
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from cee_gym.documents import read_document, refused_if_damaged, write_document
from cee_gym.errors import CeeGymError
from cee_gym.hold import hold
from cee_gym.policies.base import ExitPolicy
from cee_gym.policies.speeds import AT_ONCE, NEVER, Speeds
from cee_gym.problem import Problem
from cee_gym.problem_settings import ProblemSettings
from cee_gym.traces.recordings import local, where

CONFIG, EVALUATION, POINTS = "config.json", "evaluation.json", "points.json"
POINTS_VERSION = 1


def is_run(directory: Path) -> bool:
    """Whether it is the directory of a run, rather than of a model or a policy."""
    return any(directory.glob("round-*"))


@dataclass(frozen=True)
class Run:
    """A run, as its newest complete round left it.

    Attributes:
        directory: of the run.
        settings: of its problem.
        metrics: of its task, the leading one first.
        agent: the name of the agent that learned.
    """

    directory: Path
    settings: ProblemSettings
    metrics: tuple[str, ...]
    agent: str
    _given: str | None
    _cost: list[float] | None

    @classmethod
    def open(cls, directory: str | Path) -> Self:
        """Reads the settings of a run.

        Raises:
            CeeGymError: if there is no run, or its settings are damaged.
        """
        directory = Path(directory)
        file = directory / CONFIG
        if not file.exists():
            raise CeeGymError(f"there is no run at {directory} (it has no {CONFIG})")
        found = read_document(
            file, "run's config.json", remedy="give another --output and train again"
        )
        with refused_if_damaged(str(file), "give another --output and train again"):
            return cls(
                directory,
                ProblemSettings.from_json(found["problem"]),
                tuple(map(str, found["metrics"])),
                str(found["agent"]),
                None if found["recording"] is None else where(found["recording"]),
                found["cost"],
            )

    @cached_property
    def newest_round(self) -> Path:
        """The directory of the newest complete round; rounds are made in order.

        Raises:
            CeeGymError: if there is none.
        """
        rounds: list[Path] = []
        while (self.directory / f"round-{len(rounds)}" / EVALUATION).exists():
            rounds.append(self.directory / f"round-{len(rounds)}")
        if not rounds:
            raise CeeGymError(
                f"{self.directory} has no complete round yet: go on with it by --resume"
            )
        return rounds[-1]

    @property
    def recording(self) -> Path:
        """What the policy learned on; fetched where it is elsewhere."""
        return self.newest_round / "recording" if self._given is None else local(self._given)

    @property
    def weights(self) -> Path:
        """The directory of the deployed model.

        Raises:
            CeeGymError: if the run has none.
        """
        above = self.newest_round if self._given is None else self.recording
        models = above / "models"
        if not models.is_dir():
            raise CeeGymError(
                f"{self.directory} was trained on the recording {self._given or self.recording}, "
                "which has no weights: train with --backbone, or make the recording by cee-gym "
                "build"
            )
        return models / "deployed"

    @cached_property
    def policy(self) -> ExitPolicy:
        """What was learned, at its own speed."""
        return ExitPolicy.load(self.newest_round / "agent")

    @cached_property
    def evaluation(self) -> dict[str, Any]:
        """What the policy came to when it was learned; see `cee_gym.evaluation.report.report`.

        Raises:
            CeeGymError: if it is damaged.
        """
        return read_document(self.newest_round / EVALUATION, "evaluation", remedy="train again")

    @cached_property
    def speeds(self) -> Speeds:
        """The operating points of the policy on calibration.

        Raises:
            CeeGymError: if they are damaged.
        """
        with refused_if_damaged(str(self.newest_round / EVALUATION), "train again"):
            return Speeds.from_json(self.evaluation["speeds"])

    def problem(self, split: str) -> Problem:
        """The problem of a split, as the policy learned it.

        Raises:
            CeeGymError: if there is no such split, or recording or profile have changed since.
        """
        if self.settings.layer_costs != self._cost:
            raise CeeGymError(
                f"{self.settings.cost} has been measured again since {self.directory} was trained "
                "with it: train again"
            )
        problem = self.settings.problem(self.recording, split)
        if split == "calibration":
            before = self.evaluation.get("calibration_trace")
            if before != problem.trace.fingerprint:
                raise CeeGymError(
                    f"{self.recording} has been recorded again since {self.directory} was trained "
                    f"on it ({before}, now {problem.trace.fingerprint}): train again"
                )
        return problem

    @property
    def points(self) -> dict[str, ExitPolicy]:
        """The policy at the operating points that are kept, by name.

        Raises:
            CeeGymError: if they are damaged.
        """
        with refused_if_damaged(str(self.newest_round / EVALUATION), "train again"):
            learned = kept_policies(self.policy, self.evaluation["points"])
        with refused_if_damaged(str(self.directory / POINTS), "remove it and evaluate again"):
            return learned | kept_policies(self.policy, self._kept())

    def keep(self, points: Mapping[str, Mapping[str, Any]]) -> None:
        """Keeps operating points of the newest round's policy beside those kept before.

        A point that is kept already also keeps what it comes to on other splits.

        Args:
            points: by name, as `cee_gym.evaluation.report.report` gives them.

        Raises:
            CeeGymError: if those kept before are damaged.
        """
        with hold(self.directory / POINTS, wait=10):
            self._keep(points)

    def _keep(self, points: Mapping[str, Mapping[str, Any]]) -> None:
        with refused_if_damaged(str(self.directory / POINTS), "remove it and evaluate again"):
            kept = self._kept()
            for name, point in points.items():
                before = kept.get(name, point)
                same = all(before[key] == point[key] for key in ("threshold", "alpha"))
                measured = before["measured"] if same else {}
                kept[name] = {**point, "measured": {**measured, **point["measured"]}}
        write_document(
            self.directory / POINTS,
            {"version": POINTS_VERSION, "round": self.newest_round.name, "points": kept},
        )

    def _kept(self) -> dict[str, Any]:
        """What points.json holds of the newest round's policy."""
        file = self.directory / POINTS
        if not file.exists():
            return {}
        found = read_document(
            file, "list of points", remedy="remove it and evaluate again", versions=[POINTS_VERSION]
        )
        # Those of an earlier round were of another policy.
        return dict(found["points"]) if found["round"] == self.newest_round.name else {}


def kept_policies(
    policy: ExitPolicy, points: Mapping[str, Mapping[str, Any]]
) -> dict[str, ExitPolicy]:
    """A policy at operating points that were kept, by name."""
    low, high = policy.alpha_range if policy.has_every_price else (0.0, 0.0)
    held = {}
    for name, point in points.items():
        threshold = float(point["threshold"])
        alpha = None if point["alpha"] is None else float(point["alpha"])
        if not AT_ONCE <= threshold <= NEVER or not (alpha is None or low <= alpha <= high):
            raise ValueError(f"point {name}: threshold {threshold}, alpha {alpha}")
        chosen_on = "" if point["chosen_on"] is None else str(point["chosen_on"]["trace"])
        held[name] = replace(policy, threshold=threshold, alpha=alpha, chosen_on=chosen_on)
    return held
