"""A third measure of hardness, for `hardness.toml`: the share of exits that are wrong."""

from typing import Any

import numpy as np
import numpy.typing as npt

from cee_gym import register_hardness


@register_hardness("wrong_exits")
def wrong_exits(exits: Any) -> npt.NDArray[np.float64]:
    """The weight of the price: the more exits are right, the higher."""
    return exits.correct.mean(axis=1).astype(np.float64)
