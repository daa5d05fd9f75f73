"""The reward of leaving at each layer, as two tables computed from a trace.

`reward = quality - alpha * price`: quality is what the classifier at that layer achieves, price is
what the layers up to it cost, weighted by how easy the instance is (ConsistentEE, section 3.2).
Keeping the two
apart lets alpha, the price of one layer, change without touching either.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cee_gym.cost import CostModel
from cee_gym.errors import CeeGymError
from cee_gym.hardness import memorized_layer
from cee_gym.traces.trace import Trace

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Reward:
    """How to pay for an exit.

    Attributes:
        quality: `"cross_entropy"`, minus the classifier's loss, or `"correctness"`, 1 where it is
            right.
        hardness: the weight of the cost. `"memorized_layer"` is `1 - m/L`, so that an instance the
            model understands late may go deep for free; `"last_layer_loss"` is `exp(-loss_L)`, the
            probability that
            the last layer gives the label; `None` weighs every instance 1; an array `[N]` is taken
            as it is.
        cost: `"layers"`, t at layer t, or one number per layer `[L]`, cumulative; or a `CostModel`
            or its path, what `cee-gym profile` measured, at its typical batch size and length.
    """

    quality: Literal["cross_entropy", "correctness"] = "cross_entropy"
    hardness: Literal["memorized_layer", "last_layer_loss"] | npt.ArrayLike | None = (
        "memorized_layer"
    )
    cost: Literal["layers"] | Sequence[float] | CostModel | str | os.PathLike[str] = "layers"

    def __post_init__(self) -> None:
        if self.quality not in ("cross_entropy", "correctness"):
            raise CeeGymError(
                f"quality {self.quality!r} is unknown: use 'cross_entropy' or 'correctness'"
            )
        if isinstance(self.hardness, str) and self.hardness not in (
            "memorized_layer",
            "last_layer_loss",
        ):
            raise CeeGymError(
                f"hardness {self.hardness!r} is unknown: use 'memorized_layer', "
                "'last_layer_loss', None or an array [N]"
            )
        if isinstance(self.cost, str) and self.cost != "layers" and not Path(self.cost).exists():
            raise CeeGymError(
                f"cost {self.cost!r} is unknown: use 'layers' or one number per layer, or the path "
                "of a profile (cee-gym profile)"
            )
        if isinstance(self.cost, str | os.PathLike) and self.cost != "layers":
            object.__setattr__(self, "cost", CostModel.load(self.cost))

    @property
    def deterministic(self) -> bool:
        """False where the cost was measured.

        A profile of another machine, or another one of the same, gives other rewards, and so
        another best policy; under one profile they stay the same.
        """
        return not isinstance(self.cost, CostModel)

    def tables(self, trace: Trace) -> tuple[Floats, Floats]:
        """Quality and price of leaving at each layer.

        Returns:
            Two float32 arrays `[N, L]`.

        Raises:
            CeeGymError: if a given hardness or cost does not fit the trace, or the cost is that of
                another model.
        """
        if isinstance(self.cost, CostModel):
            self.cost.check_model(trace.header.model)
        return self.of(trace.loss, trace.correct)

    def of(self, loss: Floats, correct: npt.NDArray[np.bool_]) -> tuple[Floats, Floats]:
        """The tables of instances that are in no trace yet.

        Args:
            loss: float32 `[N, L]`.
            correct: bool `[N, L]`.

        Returns:
            Quality and price, float32 `[N, L]`.
        """
        quality = -loss if self.quality == "cross_entropy" else correct
        weight = self.hardness_weight(loss, correct)
        price = weight[:, None] * self.layer_cost(loss.shape[1])
        return np.asarray(quality, dtype=np.float32), price.astype(np.float32)

    def layer_cost(self, num_layers: int) -> npt.NDArray[np.float64]:
        """What running layers 1..t costs, float64 `[L]`."""
        if isinstance(self.cost, str):
            return np.arange(1, num_layers + 1, dtype=np.float64)
        given: Any = self.cost
        cost = given.layer_costs() if isinstance(given, CostModel) else _numbers(given)
        if cost.shape != (num_layers,) or not np.isfinite(cost).all():
            raise CeeGymError(
                f"cost must be {num_layers} finite numbers, one per layer, got shape {cost.shape}"
            )
        return cost

    def hardness_weight(
        self, loss: Floats, correct: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.float64]:
        """The weight of each instance's cost, float64 `[N]`."""
        num_instances, num_layers = loss.shape
        if self.hardness is None:
            return np.ones(num_instances)
        if isinstance(self.hardness, str):
            if self.hardness == "memorized_layer":
                return 1.0 - memorized_layer(correct) / num_layers
            return np.exp(-loss[:, -1].astype(np.float64))
        weight = _numbers(self.hardness)
        if weight.shape != (num_instances,) or not np.isfinite(weight).all():
            raise CeeGymError(
                f"hardness must be {num_instances} finite numbers, one per instance, got shape "
                f"{weight.shape}"
            )
        return weight


def alpha_range(alpha: float | Sequence[float]) -> tuple[float, float]:
    """Reads a price of one layer, a number or a range `(low, high)`, as a range.

    >>> alpha_range(0.035), alpha_range((0.0, 0.1))
    ((0.035, 0.035), (0.0, 0.1))
    """
    try:
        given: Any = (alpha, alpha) if np.ndim(alpha) == 0 else alpha
        low, high = map(float, given)
    except (TypeError, ValueError):
        raise CeeGymError(f"alpha must be a number or a pair (low, high), got {alpha!r}") from None
    if not (0.0 <= low <= high < float("inf")):
        raise CeeGymError(f"alpha must be at least 0 (and low <= high), got {alpha!r}")
    return low, high


def _numbers(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        return np.array(np.nan)
