"""Exit policies: what leaves where.

A *score* gives every state a number in [0, 1]; an `ExitPolicy` holds a score at a threshold and, if
the score was learned for every price of a layer, at a price. It is what training hands over: it is
saved, chosen for a speed, evaluated and deployed, and needs nothing of the agent that learned it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from cee_gym.documents import (
    ILL_TYPED,
    read_document,
    refused_if_damaged,
    write_document,
    written_whole,
)
from cee_gym.errors import CeeGymError, check_number, first_line
from cee_gym.observation import PARTS, Layout
from cee_gym.policies.score import SCORES, Decider, Floats, Score
from cee_gym.problem import Problem
from cee_gym.returns import first_exit

if TYPE_CHECKING:
    import torch

VERSION = 1
_ROWS_AT_A_TIME = 4096
_BYTES_AT_A_TIME = 64 * 2**20  # of observations; a network takes several times as much


@dataclass(frozen=True, eq=False)
class ExitPolicy:
    """A score, held at a threshold and perhaps at a price. It cannot be changed.

    Attributes:
        score: of states, in [0, 1].
        layout: the columns of each part of the observations it reads.
        threshold: an instance leaves at the first exit with a score above it, and at the last.
        alpha_range: the lowest and highest price of one layer that it was learned for.
        alpha: the price it is held at: whatever alpha an observation says, it decides as at this
            one. None where it is not held.
        model: the fingerprint of the weights whose states it was learned on; None where that is not
            known.
        chosen_on: the fingerprint of the trace its threshold or price was chosen on; empty where
            they were given.
        learned_by: the name of the agent that learned it; empty where none did.
    """

    score: Score
    layout: Layout
    threshold: float = 0.5
    alpha_range: tuple[float, float] = (0.0, 0.0)
    alpha: float | None = None
    model: str | None = None
    chosen_on: str = ""
    learned_by: str = ""

    def __repr__(self) -> str:
        held = "" if self.alpha is None else f", alpha {self.alpha:.4g}"
        reads = ", ".join(self.observe)
        return f"<ExitPolicy {self.name}: reads {reads}; threshold {self.threshold:.4g}{held}>"

    @property
    def name(self) -> str:
        """That of the agent that learned it, or of its score."""
        return self.learned_by or self.score.name

    @property
    def observe(self) -> tuple[str, ...]:
        """The parts of an observation it reads, in order."""
        return tuple(self.layout)

    @property
    def has_every_price(self) -> bool:
        """Whether it was learned for every price of a range, which observations say."""
        low, high = self.alpha_range
        return "alpha" in self.layout and low < high

    def scores(self, observations: Floats) -> Floats:
        """The scores of whole traces, float32 `[N, L]`, given observations float32 `[N, L, D]`.

        Raises:
            CeeGymError: if the score gives anything but a number from 0 to 1 for each state.
        """
        chunks = []
        for start in range(0, max(1, len(observations)), _ROWS_AT_A_TIME):
            chunk = observations[start : start + _ROWS_AT_A_TIME]
            if self.alpha is not None:
                chunk = np.array(chunk)
                chunk[..., self.layout["alpha"]] = self.alpha
            scores = np.asarray(self.score.scores(chunk, self.layout))
            if scores.shape != chunk.shape[:2]:
                raise CeeGymError(
                    f"the score of {self.name} must give one number for each state, of shape "
                    f"{chunk.shape[:2]}, and gives {scores.shape}"
                )
            # Rounding may carry a score a little beyond.
            if not ((scores >= -1e-3) & (scores <= 1 + 1e-3)).all():
                raise CeeGymError(
                    f"the score of {self.name} must be from 0 to 1, and goes from "
                    f"{scores.min():.4g} to {scores.max():.4g}"
                )
            chunks.append(scores)
        return np.concatenate(chunks) if len(chunks) > 1 else chunks[0]

    def scores_on(self, problem: Problem, alpha: float | npt.ArrayLike | None = None) -> Floats:
        """The scores of every state of a problem, float32 `[N, L]`, read in parts.

        Args:
            problem: with observations of this layout.
            alpha: the price the observations say: a number, or one per instance `[N]`; by default
                the one it is held at, or the lowest.

        Raises:
            CeeGymError: if the observations are others, or of another model.
        """
        self.check_fits(problem.layout, problem.trace.header.model)
        prices = np.broadcast_to(problem.alpha[0] if alpha is None else alpha, len(problem))
        # Filled in, as the scores of some rules are a view of all that was observed.
        found = np.empty((len(problem), problem.num_layers), dtype=np.float32)
        width = max(where.stop for where in problem.layout.values())
        at_most = _BYTES_AT_A_TIME // (4 * problem.num_layers * width)
        at_a_time = max(1, min(_ROWS_AT_A_TIME, at_most))
        for start in range(0, len(problem), at_a_time):
            rows = slice(start, start + at_a_time)
            found[rows] = self.scores(problem.observe(rows, prices[rows]))
        return found

    def exit_probabilities(self, observations: Floats) -> Floats:
        """The probability of leaving each state once there, `[N, L]`, given `[N, L, D]`.

        The score itself, where that is a probability; else 1 above the threshold and 0 elsewhere.
        """
        scores = self.scores(observations)
        return scores if self.score.is_probability else self._leaves(scores).astype(np.float32)

    def exit_layers(self, scores: Floats) -> npt.NDArray[np.int64]:
        """Where instances leave, int64 `[N]` from 1, given their scores `[N, L]`."""
        return first_exit(self._leaves(scores))

    def _leaves(self, scores: Floats) -> npt.NDArray[np.bool_]:
        return scores > np.float32(self.threshold)

    def at(self, *, alpha: float | None = None, threshold: float | None = None) -> "ExitPolicy":
        """This policy at another price or threshold.

        Args:
            alpha: the price of one layer; the policy must have been learned for a range of prices.
            threshold: on its score.

        Raises:
            CeeGymError: if it was not, or one is out of range.
        """
        policy = replace(self, chosen_on="")
        if alpha is not None:
            self.check_has_every_price()
            low, high = self.alpha_range
            if not low <= alpha <= high:
                raise CeeGymError(
                    f"alpha {alpha:g} is not in the range this {self.name} policy was learned with"
                    f": give {low:g} to {high:g}"
                )
            policy = replace(policy, alpha=float(alpha))
        if threshold is not None:
            check_number("threshold", threshold, 0, 1)
            policy = replace(policy, threshold=float(threshold))
        return policy

    def price_on(self, problem: Problem) -> float:
        """The price it is held at, or else the middle of those of a problem."""
        return sum(problem.alpha) / 2 if self.alpha is None else self.alpha

    def at_some_price(self) -> "ExitPolicy":
        """This policy; in the middle of its prices where it has several and is held at none."""
        if self.has_every_price and self.alpha is None:
            return replace(self, alpha=sum(self.alpha_range) / 2)
        return self

    def of_another_model(self) -> "ExitPolicy":
        """This policy for states of any weights: whoever asks for it answers for their likeness."""
        return replace(self, model=None)

    def for_budget(
        self,
        *,
        saved_layers: float | None = None,
        points_lost: float | None = None,
        on: Problem,
    ) -> "ExitPolicy":
        """This policy at the slowest speed that saves, or the fastest that loses, so much.

        Args:
            saved_layers: `1 - mean(exit_layer)/L`, in [0, 1).
            points_lost: in hundredths of accuracy, against the last exit.
            on: the problem of a split to choose on, such as calibration.

        Raises:
            CeeGymError: if there is no such speed, or not one of the two is given.
        """
        from cee_gym.policies.speeds import Speed, measure_speeds

        speed = Speed(saved_layers=saved_layers, points_lost=points_lost)
        if not speed.given:
            raise CeeGymError(
                "a budget is a share of saved_layers or points_lost: give one of them"
            )
        return speed.choose(self, measure_speeds(self, on))

    def check_has_every_price(self) -> None:
        """Refuses a policy that was not learned for a range of prices.

        Raises:
            CeeGymError: saying what to do.
        """
        if not self.has_every_price:
            raise CeeGymError(
                f"this {self.name} policy was learned for one price of a layer: choose a speed by "
                "threshold or saved layers, or train it on observations with 'alpha' and a range "
                "of alpha, such as --alpha 0 0.1"
            )

    def check_has_a_speed(self) -> None:
        """Refuses a policy that was learned for a range of prices and is held at none.

        Raises:
            CeeGymError: saying what to do.
        """
        if self.has_every_price and self.alpha is None:
            low, high = self.alpha_range
            raise CeeGymError(
                f"this {self.name} policy has a speed for every alpha from {low:g} to {high:g}: "
                "choose one by alpha, saved layers or points lost, or a point that was kept (--at)"
            )

    def check_fits(self, layout: Mapping[str, slice], model: str | None) -> None:
        """Refuses other observations, or states of another model, than it was learned on.

        Args:
            layout: the columns of each part of the observations.
            model: the fingerprint of the weights; None where it is not known.

        Raises:
            CeeGymError: naming both.
        """
        check_layout(f"{self.name} policy", self.layout, layout)
        if model is not None and self.model is not None and model != self.model:
            raise CeeGymError(
                f"this {self.name} policy was learned on the states of model {self.model}, not "
                f"{model}: their numbers mean other things, so train one on this model"
            )

    def decider(self, device: "torch.device") -> Decider:
        """What says, layer by layer, who leaves; observations are given on this device."""
        import torch

        alpha = self.alpha_range[0] if self.alpha is None else self.alpha
        faster = self.score.decider(self.layout, self.threshold, device)
        if faster is not None:
            return Decider(*faster, alpha)
        parts = self.score.reads or self.observe
        layout, start = {}, 0
        for part in parts:
            width = self.layout[part].stop - self.layout[part].start
            layout[part] = slice(start, start + width)
            start += width

        def scores(observations: torch.Tensor, layer: int) -> torch.Tensor:
            paths = observations if self.score.has_memory else observations[:, None]
            return torch.from_numpy(self.score.scores(paths.cpu().numpy(), layout)[:, -1])

        return Decider(parts, scores, self.threshold, alpha)

    def save(self, directory: str | Path) -> None:
        """Writes `policy.safetensors` and `policy.json`."""
        from safetensors.torch import save_file

        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        # A file of safetensors holds at least one tensor.
        with written_whole(directory / "policy.safetensors") as unfinished:
            save_file(self.score.tensors() or _nothing(), unfinished)
        write_document(directory / "policy.json", self.description())

    def description(self) -> dict[str, Any]:
        """All of it but the tensors, JSON-able."""
        return {
            "version": VERSION,
            "score": SCORES.full_name(self.score.name),
            "settings": self.score.settings(),
            "threshold": self.threshold,
            "alpha": self.alpha,
            "alpha_range": list(self.alpha_range),
            "layout": {
                PARTS.full_name(part): [place.start, place.stop]
                for part, place in self.layout.items()
            },
            "model": self.model,
            "chosen_on": self.chosen_on,
            "learned_by": self.learned_by,
        }

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """Reads what `save` wrote; a module of the user's that defines its score is imported.

        Raises:
            CeeGymError: if there is none, it is damaged, or of another version.
        """
        directory = Path(directory)
        found = read_document(
            directory / "policy.json", "exit policy", remedy="train it again", versions=[VERSION]
        )
        kinds = (*ILL_TYPED, OSError, RuntimeError)  # of the tensors too
        with refused_if_damaged(f"the exit policy at {directory}", "train it again", kinds):
            layout = {}
            # By their columns: a file whose keys were sorted is of the same policy.
            for part, place in sorted(found["layout"].items(), key=lambda one: one[1]):
                PARTS.get(part)
                begin, end = map(int, place)
                if not 0 <= begin < end:
                    raise ValueError(f"{part} has columns from {begin} to {end}")
                layout[part.rpartition(":")[2]] = slice(begin, end)
            low, high = map(float, found["alpha_range"])
            threshold = float(found["threshold"])
            if not all(map(math.isfinite, (low, high, threshold))):
                raise ValueError("alpha_range and threshold must be finite")
            score = SCORES.get(found["score"]).restore(
                found["settings"], _tensors(directory / "policy.safetensors"), layout, (low, high)
            )
            return cls(
                score,
                layout,
                threshold,
                (low, high),
                None if found["alpha"] is None else float(found["alpha"]),
                found["model"],
                found["chosen_on"],
                str(found["learned_by"]),
            )


def check_layout(who: str, own: Mapping[str, slice], given: Mapping[str, slice]) -> None:
    """Refuses observations that are made of other parts than those something was learned on.

    Raises:
        CeeGymError: naming both.
    """
    if dict(own) != dict(given):
        sizes = [
            ", ".join(f"{part} [{place.stop - place.start}]" for part, place in parts.items())
            for parts in (own, given)
        ]
        raise CeeGymError(
            f"this {who} reads {sizes[0]}, but the observations are {sizes[1]}: it was trained on "
            "another backbone, depth or choice of parts"
        )


def _nothing() -> "dict[str, torch.Tensor]":
    import torch

    return {"none": torch.zeros(0)}


def _tensors(file: Path) -> "dict[str, torch.Tensor]":
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file.name}: {first_line(error)}") from None
    tensors.pop("none", None)
    return tensors
