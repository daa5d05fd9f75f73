"""Thresholds that come with a statistical guarantee.

Leaving early loses where its prediction is not the last layer's, or where the last layer is right
and it is wrong. Two ways to bound how often, from the scores of a calibration split:

- `guaranteed_threshold`: with probability `1 - delta` over the draw of the calibration rows, the
  threshold loses on less than a share `epsilon` of new rows. Learn then Test (Angelopoulos et al.
  2021, arXiv 2110.01052) with fixed-sequence testing.
- `conformal_threshold`: averaged over the draw of the calibration rows, at most a share `epsilon`
  of new rows leave with another prediction than the last layer's. The calibration of Confident
  Adaptive Transformers (CATs; Schuster et al. 2021, arXiv 2104.08803).

Neither assumes anything about model, scores or text but this: calibration rows and new rows are
independent draws of the same kind, and the scores were settled before the calibration rows were
looked at. So the agent must not have learned from them, nor been picked by them among others, and
the report is on other rows again. On text of another kind nothing is promised.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import ceil, floor, log, log1p
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy.special import expit
from scipy.stats import binom, binomtest

from cee_gym.errors import CeeGymError
from cee_gym.evaluation.curve import Floats, Ints, check_not_chosen_on, evaluate
from cee_gym.returns import first_exit
from cee_gym.traces.trace import Trace

Risk = Literal["disagreement", "harm"]
Bools = npt.NDArray[np.bool_]

# The thresholds that are tested, from the safest down. 1 never leaves early. The others are 1/256
# apart in their logits: scores crowd near 0 and 1 with some agents and around 1/2 with others. They
# are float32 as scores are, so that no rounding moves one of them past a score.
GRID: npt.NDArray[np.float64] = np.concatenate(
    [[1.0], np.unique(expit(np.linspace(-16, 16, 32 * 256 + 1)).astype(np.float32))[::-1]]
)


@dataclass(frozen=True)
class Threshold:
    """A threshold, and the fingerprint of the trace it was chosen on."""

    value: float
    chosen_on: str


@dataclass(frozen=True)
class Guarantee:
    """A threshold whose risk is below epsilon with probability `1 - delta`.

    Attributes:
        threshold: the threshold; 1 never leaves early.
        risk: what is bounded, see `loss_table`.
        epsilon: the bound.
        delta: how probable a calibration split is that misleads.
        rows: of the calibration split.
        losses: how many of them the threshold loses on.
    """

    threshold: Threshold
    risk: Risk
    epsilon: float
    delta: float
    rows: int
    losses: int

    @property
    def name(self) -> str:
        """What is promised, in a few words."""
        return f"{self.risk} below {self.epsilon:.3g} at {1 - self.delta:.6g} confidence"

    def check(self, trace: Trace, scores: Floats) -> dict[str, Any]:
        """How it turns out on another split.

        Args:
            trace: of the split to report on.
            scores: `[N, L]`, the agent's on that split.

        Returns:
            JSON-able: what was promised, and under `there` how it turns out: the split's `rate` of
            losses with its 95% Clopper-Pearson interval, its accuracy and `saved_layers`.

        Raises:
            CeeGymError: if it is the split the threshold was chosen on.
        """
        check_not_chosen_on(self.threshold.chosen_on, trace)
        point = evaluate(trace, first_exit(scores > self.threshold.value))
        lost = losses_at(loss_table(trace, self.risk), scores, self.threshold.value)
        interval = binomtest(int(lost.sum()), len(lost)).proportion_ci(0.95, method="exact")
        return {
            "name": self.name,
            **asdict(self),
            "calibration_rate": self.losses / self.rows,
            "there": {
                "split": trace.header.split,
                "trace": trace.fingerprint,
                "rows": len(trace),
                "rate": float(lost.mean()),
                "rate_interval": [float(interval.low), float(interval.high)],
                "accuracy": point.accuracy,
                "saved_layers": point.saved_layers,
            },
        }


def sentence(checked: Mapping[str, Any]) -> str:
    """What `Guarantee.check` found, in a line."""
    there = checked["there"]
    low, high = there["rate_interval"]
    text = (
        f"{checked['name']}: {checked['calibration_rate']:.4f} of {checked['rows']} calibration "
        f"rows, {there['rate']:.4f} of {there['rows']} {there['split']} rows "
        f"(95% interval {low:.4f} to {high:.4f})"
    )
    if low > checked["epsilon"]:
        text += f"; not kept: is {there['split']} text of the same kind as calibration?"
    return text


def loss_table(trace: Trace, risk: Risk) -> Bools:
    """Whether leaving an instance at a layer counts as a loss, bool `[N, L]`.

    Args:
        trace: N instances, L layers.
        risk: `"disagreement"`, the prediction is not the last layer's; or `"harm"`, the last layer
            is right and this one wrong.

    Raises:
        CeeGymError: if the risk is unknown.
    """
    if risk not in get_args(Risk):
        raise CeeGymError(f"risk {risk!r} is unknown: use 'disagreement' or 'harm'")
    if risk == "harm":
        return trace.correct[:, -1:] & ~trace.correct
    return trace.prediction != trace.prediction[:, -1:]


def losses_at(losses: Bools, scores: Floats, threshold: float) -> Bools:
    """Which instances are lost at a threshold, bool `[N]`.

    Args:
        losses: bool `[N, L]`, see `loss_table`.
        scores: `[N, L]`; an instance leaves at the first layer with a score above the threshold.
        threshold: a state with a score above it is left.
    """
    return losses[np.arange(len(losses)), first_exit(scores > threshold) - 1]


def count_losses(losses: Bools, scores: Floats) -> npt.NDArray[np.int64]:
    """How many instances are lost at each threshold of `GRID`, int64 `[G]`.

    An instance leaves at layer t at the thresholds that are below its score there and not below any
    of its scores before: a range of `GRID`, so that one pass over the scores does for all of it.

    Args:
        losses: bool `[N, L]`, see `loss_table`; at the last layer there are none.
        scores: `[N, L]` in [0, 1].
    """
    highest = np.maximum.accumulate(scores[:, :-1], axis=1)
    before = np.pad(highest, ((0, 0), (1, 0)))[:, :-1]
    lost = losses[:, :-1]
    begins, ends = (np.searchsorted(GRID[::-1], bound[lost]) for bound in (before, highest))
    size = len(GRID) + 1
    change = np.bincount(begins, minlength=size) - np.bincount(ends, minlength=size)
    return change[:-1].cumsum()[::-1]


def fixed_sequence(losses: Ints, rows: int, *, epsilon: float, delta: float) -> Ints:
    """How many settings, from the first, have a risk below epsilon by fixed-sequence testing.

    Each setting is tested against "the risk is at least epsilon" at level delta, in the given order
    and only as long as all before it were rejected. A wrong rejection therefore needs one at the
    first setting whose risk is too high, and that has probability delta at most: no correction for
    the number of settings (Angelopoulos et al. 2021). The p-value is exact, `P(Binomial(rows,
    epsilon) <= losses)`.

    Args:
        losses: integers `[..., G]`, the number of lost rows at each of G settings, in an order
            chosen before the rows were seen.
        rows: how many there are.
        epsilon: the bound on the risk.
        delta: the bound on the probability of passing a setting of higher risk.

    Returns:
        Integers `[...]`, 0 to G.

    >>> fixed_sequence(np.array([[0, 3, 8, 2], [7, 0, 0, 0]]), 200, epsilon=0.05, delta=0.1)
    array([2, 0])
    """
    p_values = binom.cdf(np.arange(rows + 1), rows, epsilon)
    return np.logical_and.accumulate((p_values <= delta)[losses], axis=-1).sum(axis=-1)


def rows_needed(epsilon: float, delta: float) -> int:
    """The fewest calibration rows that can show a risk below epsilon, by not losing one of them.

    The least n with `(1 - epsilon)**n <= delta`.

    >>> rows_needed(0.05, 0.05), rows_needed(0.01, 0.1)
    (59, 230)
    """
    _check_share("epsilon", epsilon)
    _check_share("delta", delta)
    return ceil(round(log(delta) / log1p(-epsilon), 9))


def guaranteed_threshold(
    trace: Trace, scores: Floats, *, risk: Risk, epsilon: float, delta: float
) -> Guarantee:
    """The lowest threshold that fixed-sequence testing down `GRID` shows to be safe.

    Asking again with another risk, epsilon or delta is allowed, but each answer may fail with
    probability delta on its own.

    Args:
        trace: of the calibration split.
        scores: `[N, L]` in [0, 1], the agent's on that split.
        risk: what to bound, see `loss_table`.
        epsilon: the bound, a share of the rows.
        delta: the probability that the bound does not hold.

    Raises:
        CeeGymError: if the split has too few rows for this epsilon and delta, naming how many it
            takes, or is the one policies are trained on; or if the scores do not fit.
    """
    needed = rows_needed(epsilon, delta)
    _check_scores(trace, scores)
    if len(trace) < needed:
        raise CeeGymError(
            f"{len(trace)} calibration rows are too few for epsilon {epsilon:g} at delta {delta:g}"
            f": it takes {needed}, and more to leave early; give more, or a larger one of the two"
        )
    losses = count_losses(loss_table(trace, risk), scores)
    # Never leaving early loses nothing on any row, so there is nothing to test.
    chosen = int(fixed_sequence(losses[1:], len(trace), epsilon=epsilon, delta=delta))
    return Guarantee(
        threshold=Threshold(float(GRID[chosen]), chosen_on=trace.fingerprint),
        risk=risk,
        epsilon=epsilon,
        delta=delta,
        rows=len(trace),
        losses=int(losses[chosen]),
    )


def conformal_threshold(trace: Trace, scores: Floats, *, epsilon: float) -> Threshold:
    """The threshold of CATs: a new instance leaves with the last layer's prediction.

    It fails to with probability at most epsilon, over the draw of the calibration rows and the new
    one together; a given calibration split may do worse (Schuster et al. 2021, the threshold shared
    by all layers). With `v_i` the highest score at which row i could leave with another prediction,
    it is the `ceil((N + 1)(1 - epsilon))`-th smallest `v_i`.

    Args:
        trace: of the calibration split.
        scores: `[N, L]` in [0, 1], the agent's on that split.
        epsilon: the bound, a share of the rows.

    Raises:
        CeeGymError: if the split has too few rows for this epsilon, naming how many it takes, or is
            the one policies are trained on; or if the scores do not fit.
    """
    _check_share("epsilon", epsilon)
    _check_scores(trace, scores)
    # Without the 1e-9, 49 * (1 / 49) would come to less than 1.
    rank = len(trace) + 1 - floor((len(trace) + 1) * epsilon + 1e-9)
    if rank > len(trace):
        raise CeeGymError(
            f"{len(trace)} calibration rows are too few for epsilon {epsilon:g}: it takes "
            f"{ceil(1 / epsilon - 1e-9) - 1}; give more, or a larger epsilon"
        )
    other = loss_table(trace, "disagreement")[:, :-1]
    highest = np.where(other, scores[:, :-1], 0).max(axis=1, initial=0)
    return Threshold(float(np.sort(highest)[rank - 1]), chosen_on=trace.fingerprint)


def _check_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise CeeGymError(f"{name} must be above 0 and below 1, got {value}")


def _check_scores(trace: Trace, scores: Floats) -> None:
    if trace.sequence is not None:
        raise CeeGymError(
            "the tokens of one text depend on one another, and a guarantee takes rows that do not: "
            "there is none for traces of tokens"
        )
    shape = (len(trace), trace.num_layers)
    if scores.shape != shape:
        raise CeeGymError(f"scores must be of shape {list(shape)}, got {list(scores.shape)}")
    if not ((scores >= 0) & (scores <= 1)).all():
        raise CeeGymError("scores must be numbers from 0 to 1")
    if trace.header.split == "train":
        raise CeeGymError(
            "a guarantee takes rows that training has not seen, and this is the split train: give "
            "calibration"
        )
