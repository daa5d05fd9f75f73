"""The settings of a problem as they stand on a command line and in the config.json of a run."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy.typing as npt

from cee_gym.cost import CostModel
from cee_gym.errors import CeeGymError
from cee_gym.hardness import HARDNESS
from cee_gym.observation import PARTS
from cee_gym.problem import ALPHA, OBSERVE, Problem
from cee_gym.reward import COSTS, QUALITIES, Reward, alpha_range
from cee_gym.traces.recordings import open_split


@dataclass(frozen=True)
class ProblemSettings:
    """What a policy observes, and what leaving pays.

    Attributes:
        alpha: The price of one layer: a number, or a range `low high`, from which each episode
            draws its own price.
        quality: What leaving at an exit achieves: `correctness`, `cross_entropy` (which is minus
            the cross-entropy), or a quality of your own, MODULE:NAME.
        hardness: The weight of the price: `memorized_layer`, `last_layer_loss`, `none`, or one of
            your own, MODULE:NAME.
        reward: A short name for quality and hardness together: `paper` is ConsistentEE's reward,
            with `cross_entropy` and `memorized_layer`.
        cost: What running up to an exit costs: `layers`, the number of layers; the path of a
            profile, which `cee-gym profile` measured for the recorded model; or a cost of your own,
            MODULE:NAME.
        observe: The parts of an observation. By default they are those of the agent's preset.
    """

    alpha: tuple[float, ...] = (ALPHA,)
    quality: str = "correctness"
    hardness: str = "none"
    reward: str | None = None
    cost: str = "layers"
    observe: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        alpha_range(self.price)
        if self.reward is not None:
            self._read_reward()
        QUALITIES.get(self.quality)
        if self.hardness != "none":
            HARDNESS.get(self.hardness)
        if Path(self.cost).is_file():  # a run is evaluated from any directory
            object.__setattr__(self, "cost", str(Path(self.cost).resolve()))
        for part in self.observe or ():
            PARTS.get(part)

    def _read_reward(self) -> None:
        """Puts quality and hardness in the place of the name that stands for them."""
        usual = type(self)()
        if (self.quality, self.hardness) != (usual.quality, usual.hardness):
            raise CeeGymError(
                f"reward {self.reward!r} stands for a quality and a hardness: leave out quality "
                f"{self.quality} and hardness {self.hardness}, or the reward"
            )
        named = Reward.named(self.reward or "")
        for name, value in (
            ("quality", named.quality),
            ("hardness", named.hardness or "none"),
            ("reward", None),
        ):
            object.__setattr__(self, name, value)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Self:
        """The settings that `to_json` gave."""
        given: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()}
        return cls(**given)

    def to_json(self) -> dict[str, Any]:
        """As plain types, with the names by which another process finds what is the user's own."""
        named = asdict(self)
        del named["reward"]  # quality and hardness say it
        named["quality"] = QUALITIES.full_name(self.quality)
        if self.hardness != "none":
            named["hardness"] = HARDNESS.full_name(self.hardness)
        if self.cost.rpartition(":")[2] in COSTS:
            named["cost"] = COSTS.full_name(self.cost)
        if self.observe is not None:
            named["observe"] = [PARTS.full_name(part) for part in self.observe]
        named["alpha"] = list(self.alpha)
        return named

    def observing(self, parts: Sequence[str]) -> Self:
        """These settings, with these parts of an observation where none were given.

        An agent that is to learn at every price of a range observes alpha too.
        """
        every_price = len(self.alpha) > 1
        return replace(self, observe=self.observe or (*parts, *["alpha"] * every_price))

    @property
    def price(self) -> float | tuple[float, ...]:
        """Alpha as problems take it."""
        return self.alpha[0] if len(self.alpha) == 1 else self.alpha

    @property
    def layer_costs(self) -> list[float] | None:
        """What leaving at each layer costs by the profile, in layers; None where there is none.

        Raises:
            CeeGymError: if cost is neither the name of one nor a profile.
        """
        cost = Reward(cost=self.cost).cost
        return cost.layer_costs().tolist() if isinstance(cost, CostModel) else None

    def make_reward(self, hardness: npt.ArrayLike | None = None) -> Reward:
        """The reward.

        Args:
            hardness: the weight of each instance, `[N]`, in place of the named one.

        Raises:
            CeeGymError: if a name is unknown, or there is no such profile.
        """
        named = None if self.hardness == "none" else self.hardness
        return Reward(self.quality, named if hardness is None else hardness, self.cost)

    def problem(self, recording: str | Path, split: str) -> Problem:
        """The problem of a split of a recording.

        Raises:
            CeeGymError: if there is no such split, or a setting does not fit it.
        """
        trace = open_split(recording, split)
        return Problem(trace, self.make_reward(), self.observe or OBSERVE, self.price)
