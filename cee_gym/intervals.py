"""Standard errors where rows come in groups: the tokens of one text depend on one another."""

from typing import Any

import numpy as np
import numpy.typing as npt


def error_of_ratio(sums: npt.NDArray[np.floating], counts: npt.NDArray[np.integer[Any]]) -> float:
    """The standard error of `sum(sums) / sum(counts)`, where texts are drawn, not tokens.

    By the delta method (Cochran 1977, section 6.4). Where each text is one instance it is that of
    a mean.

    Args:
        sums: `[N]`, of a number over the tokens of each text.
        counts: `[N]`, how many tokens.

    >>> error_of_ratio(np.array([1.0, 0.0, 1.0, 1.0]), np.array([1, 1, 1, 1]))
    0.25
    """
    if len(sums) < 2:
        return 0.0
    residuals = sums - sums.sum() / counts.sum() * counts
    return float(residuals.std(ddof=1) * len(sums) ** 0.5 / counts.sum())


def error_of_mean(
    values: npt.NDArray[np.floating], groups: npt.NDArray[np.integer[Any]] | None = None
) -> float:
    """The standard error of a mean over rows.

    Args:
        values: `[N]`.
        groups: integers `[N]`; rows of one group depend on one another. None where none do.

    >>> error_of_mean(np.array([1.0, 0.0, 1.0, 1.0]))
    0.25
    """
    if groups is None:
        return error_of_ratio(values, np.ones(len(values), dtype=np.int64))
    _, owner = np.unique(groups, return_inverse=True)
    sums = np.bincount(owner, values).astype(float)
    return error_of_ratio(sums, np.bincount(owner))


def parts_of(
    rows: int, parts: int, seed: int, groups: npt.NDArray[np.integer[Any]] | None = None
) -> list[npt.NDArray[np.int64]]:
    """Rows shared out at random into parts of about equal size, int64 each.

    Args:
        rows: how many there are.
        parts: at most so many.
        seed: of the draw.
        groups: integers `[rows]`; rows of one group come into one part.
    """
    rng = np.random.default_rng(seed)
    if groups is None:
        return np.array_split(rng.permutation(rows), min(parts, rows))
    names = rng.permutation(np.unique(groups))
    return [
        np.flatnonzero(np.isin(groups, some))
        for some in np.array_split(names, min(parts, len(names)))
    ]
