"""How instances and prices are drawn: in blocks, from one random generator per environment.

A call of a generator costs as much as several steps. The scalar and the vector environment draw the
same blocks and both read them from their end, so that equal seeds give equal episodes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

BLOCK = 256


def instance_block(rng: np.random.Generator, num_instances: int) -> npt.NDArray[np.int64]:
    """A block of instances, int64 `[256]`, uniform with replacement."""
    return rng.integers(num_instances, size=BLOCK)


def alpha_block(rng: np.random.Generator, low: float, high: float) -> npt.NDArray[np.float64]:
    """A block of prices, float64 `[256]`, uniform."""
    return rng.uniform(low, high, size=BLOCK)


class BlockDraws:
    """A stream of draws for each of n environments.

    Args:
        num_envs: n.
        draw: draws a block from a generator.
        dtype: of a draw.
    """

    def __init__(
        self,
        num_envs: int,
        draw: Callable[[np.random.Generator], npt.NDArray[Any]],
        dtype: npt.DTypeLike,
    ) -> None:
        self._draw = draw
        self._blocks = np.empty((num_envs, BLOCK), dtype=dtype)
        self._left = np.zeros(num_envs, dtype=np.int64)

    def take(
        self, envs: npt.NDArray[np.int64], generators: Sequence[np.random.Generator]
    ) -> npt.NDArray[Any]:
        """The next draw of each of these environments, given as integers `[k]`."""
        left = self._left[envs]
        empty = left == 0
        for env in envs[empty].tolist():
            self._blocks[env] = self._draw(generators[env])
        left[empty] = BLOCK
        left -= 1
        self._left[envs] = left
        return self._blocks[envs, left]

    def drop(self, envs: npt.NDArray[np.int64]) -> None:
        """Forgets what was drawn for these environments, because they are seeded anew."""
        self._left[envs] = 0
