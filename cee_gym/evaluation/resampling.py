"""Intervals by resampling: of rows, which are paired, and of seeds and tasks, as in rliable.

Agarwal et al. (NeurIPS 2021), "Deep reinforcement learning at the edge of the statistical
precipice": few seeds give uncertain means, so every seed is shown, outliers are trimmed (the
interquartile mean), and improvement is a probability.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import trim_mean

Floats = npt.NDArray[np.floating]
DRAWS = 2_000


class Interval(NamedTuple):
    """An estimate and its 95 % percentile interval.

    Attributes:
        mean: the estimate itself.
        low: of the interval.
        high: of the interval.
    """

    mean: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether 0 lies outside."""
        return self.low > 0 or self.high < 0


def paired_difference(
    first: Floats,
    second: Floats,
    *,
    groups: npt.NDArray[np.integer] | None = None,
    seed: int = 0,
    draws: int = DRAWS,
) -> Interval:
    """The mean of the differences between two policies on the same rows.

    Args:
        first: of each row, `[N]`.
        second: of the same rows, `[N]`.
        groups: integers `[N]`; rows of one group (the tokens of one text) are drawn together.
        seed: of the draws.
        draws: how many.
    """
    difference: npt.NDArray[Any] = np.asarray(first, dtype=np.float64) - second
    counts: npt.NDArray[Any] = np.ones(len(difference))
    if groups is not None:
        _, owner = np.unique(groups, return_inverse=True)
        counts = np.bincount(owner, np.ones(len(owner)))
        difference = np.bincount(owner, difference)
    rng = np.random.default_rng(seed)
    means = np.empty(draws)
    for draw in range(draws):
        rows = rng.integers(len(difference), size=len(difference))
        means[draw] = difference[rows].sum() / counts[rows].sum()
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(float(difference.sum() / counts.sum()), float(low), float(high))


def interquartile_mean(values: Floats) -> float:
    """The mean of the middle half of all values.

    >>> interquartile_mean(np.array([[0.0, 1.0], [2.0, 100.0]]))
    1.5
    """
    return float(trim_mean(np.asarray(values), 0.25, axis=None))


def probability_of_improvement(first: Floats, second: Floats) -> float:
    """How often a run of the first is better than one of the second, a tie counting half.

    Args:
        first: seeds by tasks, `[S, T]`.
        second: likewise, `[R, T]`.

    >>> probability_of_improvement(np.array([[2.0], [3.0]]), np.array([[1.0], [2.0]]))
    0.875
    """
    better = first[:, None] > second[None]
    equal = first[:, None] == second[None]
    return float((better + 0.5 * equal).mean(axis=(0, 1)).mean())


def over_seeds(
    statistic: Callable[..., float], *scores: Floats, seed: int = 0, draws: int = DRAWS
) -> Interval:
    """A statistic of scores and its interval: the seeds of each task are drawn anew.

    Args:
        statistic: of arrays such as the scores.
        *scores: each seeds by tasks, `[S, T]`.
        seed: of the draws.
        draws: how many.
    """
    rng = np.random.default_rng(seed)

    def drawn(of: Floats) -> Floats:
        rows = rng.integers(len(of), size=of.shape)
        return np.take_along_axis(of, rows, axis=0)

    found = [statistic(*map(drawn, scores)) for _ in range(draws)]
    low, high = np.quantile(found, (0.025, 0.975))
    return Interval(statistic(*scores), float(low), float(high))


def in_words(differences: Mapping[str, Interval]) -> list[str]:
    """What paired differences of accuracy say, a sentence each."""
    said = []
    for name, found in differences.items():
        mean, low, high = (100 * number for number in found)
        points = f"{mean:+.2f} points ({low:+.2f} to {high:+.2f})"
        verdict = "no difference can be seen"
        if found.is_clear:
            verdict = "it is ahead" if found.mean > 0 else "it is behind"
        said.append(f"{name}: {verdict}, {points}")
    return said
