"""The directory of a run, as `cee_gym.training.trainer` writes it, for those who read it."""

from pathlib import Path

from cee_gym.errors import CeeGymError


def is_run(directory: Path) -> bool:
    """Whether it is the directory of a run, rather than of a model or an agent."""
    return any(directory.glob("round-*"))


def newest_round(run: Path) -> Path:
    """The directory of the newest complete round of a run.

    A round is complete with its evaluation, and rounds are made in order.

    Raises:
        CeeGymError: if there is none.
    """
    rounds: list[Path] = []
    while (run / f"round-{len(rounds)}" / "evaluation.json").exists():
        rounds.append(run / f"round-{len(rounds)}")
    if not rounds:
        raise CeeGymError(f"{run} has no complete round yet: go on with it by --resume")
    return rounds[-1]
