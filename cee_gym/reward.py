"""The reward of leaving at each exit: `reward = quality - alpha * price`.

Quality is what the exit achieves; price is what the layers up to it cost, weighted by how easy the
instance is (ConsistentEE, section 3.2). Keeping the two apart lets alpha, the price of one layer,
change without touching either.

Each is one function of what the exits read, arrays `[..., L]` of a trace or of a running model, so
that recorded and live environments pay the same. A module of your own adds one:

    @register_quality("probability", low=0.0, high=1.0)
    def probability(exits):
        return np.exp(-exits.loss)
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt

from cee_gym.cost import CostModel
from cee_gym.errors import CeeGymError
from cee_gym.hardness import HARDNESS
from cee_gym.registry import Registry

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.integer[Any]]


class Exits(Protocol):
    """What L exits read of some instances: a `Trace`, or a `Readout` with labels."""

    @property
    def loss(self) -> Floats:
        """Cross-entropy in nats, `[..., L]`."""

    @property
    def correct(self) -> Bools:
        """Whether the exit is right, `[..., L]`."""

    @property
    def prediction(self) -> Ints:
        """The class it gives, `[..., L]`."""

    @property
    def confidence(self) -> Floats:
        """The probability it gives that class, `[..., L]`."""

    @property
    def entropy(self) -> Floats:
        """Of its class probabilities, in nats, `[..., L]`."""


class Quality(NamedTuple):
    """What leaving achieves.

    Attributes:
        of: from what the exits read to numbers `[..., L]`.
        low: the lowest value.
        high: the highest value.
        deeper: whether it looks at deeper exits than the one that is left; a live environment,
            which does not run those, refuses it.
    """

    of: Callable[[Any], npt.NDArray[Any]]
    low: float
    high: float
    deeper: bool


QUALITIES: Registry[Quality] = Registry("quality")
COSTS: Registry[Callable[[npt.NDArray[np.int64]], npt.ArrayLike]] = Registry("cost")


def register_quality(
    name: str, *, low: float, high: float, deeper: bool = False
) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]]:
    """Makes a function a quality that `Reward` knows by name; see `Quality`."""

    def register(of: Callable[[Any], Any]) -> Callable[[Any], Any]:
        QUALITIES.add(name, Quality(of, low, high, deeper), of.__module__)
        return of

    return register


def register_cost(
    name: str,
) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]]:
    """Makes a function a cost that `Reward` knows by name.

    It is given the layer number of each exit, int64 `[L]`, and gives what running up to each costs,
    `[L]`.
    """

    def register(of: Callable[[Any], Any]) -> Callable[[Any], Any]:
        COSTS.add(name, of)
        return of

    return register


@register_quality("cross_entropy", low=-np.inf, high=0.0)
def _cross_entropy(exits: Exits) -> Floats:
    return -exits.loss


@register_quality("correctness", low=0.0, high=1.0)
def _correctness(exits: Exits) -> Bools:
    return exits.correct


@register_cost("layers")
def _layers(depths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return depths


@dataclass(frozen=True, eq=False)
class Reward:
    """How to pay for an exit.

    Attributes:
        quality: the name of a quality: `"correctness"`, 1 where the exit is right, so that alpha is
            the share of right answers a layer may cost; `"cross_entropy"`, minus its loss; or one
            of your own.
        hardness: the weight of the cost of an instance. `"memorized_layer"` is `1 - m/L`, so that
            one the model understands late may go deep for free; `"last_layer_loss"` is
            `exp(-loss_L)`, the probability that the last exit gives the label; `None` weighs every
            instance 1; an array `[N]` is taken as it is.
        cost: `"layers"`, the number of layers run, or another named cost; or one number per exit
            `[L]`, cumulative; or a `CostModel` or its path, what `cee-gym profile` measured, at its
            typical batch size and length.

    Raises:
        CeeGymError: if a name is unknown, or there is no such profile.
    """

    quality: str = "correctness"
    hardness: str | npt.ArrayLike | None = None
    cost: str | os.PathLike[str] | Sequence[float] | CostModel = "layers"

    def __post_init__(self) -> None:
        QUALITIES.get(self.quality)
        # Full names, by which another process finds them too.
        self._set("quality", QUALITIES.full_name(self.quality))
        if isinstance(self.hardness, str):
            HARDNESS.get(self.hardness)
            self._set("hardness", HARDNESS.full_name(self.hardness))
        elif self.hardness is not None:
            weight = _numbers(self.hardness).copy()
            weight.setflags(write=False)
            self._set("hardness", weight)
        if isinstance(self.cost, str) and (self.cost in COSTS or ":" in self.cost):
            COSTS.get(self.cost)
            self._set("cost", COSTS.full_name(self.cost))
        elif isinstance(self.cost, str | os.PathLike):
            if isinstance(self.cost, str) and not Path(self.cost).exists():
                raise CeeGymError(
                    f"cost {self.cost!r} is unknown: use {', '.join(map(repr, COSTS))}, one number "
                    "per exit, or the path of a profile (cee-gym profile)"
                )
            self._set("cost", CostModel.load(self.cost))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    @classmethod
    def paper(cls) -> Self:
        """That of ConsistentEE, equation 5: `-CE_t - alpha * (1 - m/L) * t`."""
        return cls("cross_entropy", "memorized_layer", "layers")

    @classmethod
    def named(cls, given: "Reward | str | Mapping[str, Any]") -> "Reward":
        """A reward by its short name: `"paper"`, or that of a quality, whose cost weighs 1.

        Gymnasium writes a reward among the arguments of an environment down as a dict of its
        attributes; that is read too.

        Raises:
            CeeGymError: if there is none of this name.
        """
        if isinstance(given, Reward):
            return given
        if given == "paper":
            return cls.paper()
        if isinstance(given, str):
            return cls(given, hardness=None)
        if isinstance(given, Mapping) and given.keys() <= {"quality", "hardness", "cost"}:
            return cls(**given)
        raise CeeGymError(
            f"reward must be a Reward, 'paper', or the name of a quality, got {given!r}"
        )

    @property
    def deterministic(self) -> bool:
        """False where the cost was measured.

        A profile of another machine, or another one of the same, gives other rewards, and so
        another best policy; under one profile they stay the same.
        """
        return not isinstance(self.cost, CostModel)

    @property
    def quality_bounds(self) -> tuple[float, float]:
        """The lowest and the highest quality."""
        quality = QUALITIES.get(self.quality)
        return quality.low, quality.high

    def quality_of(self, exits: Exits) -> Floats:
        """What leaving at each exit achieves, float32 `[..., L]`.

        Raises:
            CeeGymError: if the quality gives anything but finite numbers of this shape.
        """
        found = _numbers(QUALITIES.get(self.quality).of(exits), np.float32)
        if found.shape != exits.correct.shape or not np.isfinite(found).all():
            raise CeeGymError(
                f"quality {self.quality!r} must give a finite number for each exit, "
                f"{list(exits.correct.shape)}, got shape {list(found.shape)}"
            )
        return found

    def price_of(self, exits: Exits, depths: npt.NDArray[np.int64]) -> Floats:
        """What leaving at each exit costs, in units of alpha, float32 `[N, L]`.

        Args:
            exits: arrays `[N, L]`.
            depths: the layer number of each exit, int64 `[L]`.

        Raises:
            CeeGymError: if a given hardness or cost is of another shape.
        """
        weight = self.hardness_weight(exits)
        return (weight[:, None] * self.exit_cost(depths)).astype(np.float32)

    def exit_cost(self, depths: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """What running up to each exit costs, float64 `[L]`.

        Raises:
            CeeGymError: if these are not L finite numbers.
        """
        given: Any = self.cost
        if isinstance(given, CostModel):
            cost = given.layer_costs()
        else:
            cost = _numbers(COSTS.get(given)(depths) if isinstance(given, str) else given)
        if cost.shape != depths.shape or not np.isfinite(cost).all():
            raise CeeGymError(
                f"cost must be {len(depths)} finite numbers, one per layer, got shape {cost.shape}"
            )
        return cost

    def hardness_weight(self, exits: Exits) -> npt.NDArray[np.float64]:
        """The weight of each instance's cost, float64 `[N]`, given arrays `[N, L]`.

        Raises:
            CeeGymError: if these are not N finite numbers.
        """
        num_instances = len(exits.correct)
        if self.hardness is None:
            return np.ones(num_instances)
        given = self.hardness
        weight = _numbers(HARDNESS.get(given)(exits) if isinstance(given, str) else given)
        if weight.shape != (num_instances,) or not np.isfinite(weight).all():
            raise CeeGymError(
                f"hardness must be {num_instances} finite numbers, one per instance, got shape "
                f"{weight.shape}"
            )
        return weight


# A price above this is a slip: a reward would no longer be a number that float32 tells apart.
MOST_ALPHA = 1e6


def alpha_range(alpha: float | Sequence[float]) -> tuple[float, float]:
    """Reads a price of one layer, a number or a range `(low, high)`, as a range.

    Raises:
        CeeGymError: if it is neither, or not from 0 to a million.

    >>> alpha_range(0.035), alpha_range((0.0, 0.1))
    ((0.035, 0.035), (0.0, 0.1))
    """
    try:
        given: Any = (alpha, alpha) if np.ndim(alpha) == 0 else alpha
        low, high = map(float, given)
    except (TypeError, ValueError, OverflowError):
        raise CeeGymError(f"alpha must be a number or a pair (low, high), got {alpha!r}") from None
    if not 0.0 <= low <= high <= MOST_ALPHA:
        raise CeeGymError(
            f"alpha must be from 0 to {MOST_ALPHA:g} (and low <= high), got {alpha!r}"
        )
    return low, high


def _numbers(values: Any, dtype: Any = np.float64) -> npt.NDArray[Any]:
    try:
        return np.asarray(values, dtype=dtype)
    except (TypeError, ValueError):
        return np.array(np.nan)
