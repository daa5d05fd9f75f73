"""A problem: a trace, a reward, and what is observed.

Everything an environment shows and pays, as tables over N instances and L exits. Environments are
views of it, and agents that can use all of it at once learn from it directly.
"""

import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

from cee_gym.errors import CeeGymError
from cee_gym.hardness import HARDNESS, memorized_layer
from cee_gym.observation import PARTS, Layout
from cee_gym.recorded_observations import RecordedObservations, recorded_observations
from cee_gym.reward import QUALITIES, Reward, alpha_range
from cee_gym.traces.recordings import find_recording, open_split
from cee_gym.traces.trace import Trace

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.integer[Any]] | slice

OBSERVE = ("hidden", "layer")
# One point of accuracy a layer.
ALPHA = 0.01


class Problem:
    """Early exit over a trace as optimal stopping. It cannot be changed; its arrays are read-only.

    Args:
        trace: what backbone and exits did on a split.
        reward: how an exit is paid for.
        observe: the parts of an observation; see `cee_gym.observation`.
        alpha: the price of one layer, or the range `(low, high)` from which episodes draw it.

    Raises:
        CeeGymError: if an argument does not fit the trace.

    Attributes:
        trace: of N instances and L exits.
        reward: how an exit is paid for.
        alpha: the lowest and highest price of one layer; equal where it is fixed.
        layout: the columns of each part of an observation.
        quality: float32 `[N, L]`, what leaving achieves.
        price: float32 `[N, L]`, what it costs, in units of alpha.
    """

    trace: Trace
    reward: Reward
    alpha: tuple[float, float]
    recorded: RecordedObservations
    layout: Layout
    quality: Floats
    price: Floats
    _observe: tuple[str, ...]

    def __init__(
        self,
        trace: Trace,
        reward: Reward | None = None,
        observe: Sequence[str] = OBSERVE,
        alpha: float | Sequence[float] = ALPHA,
    ) -> None:
        recorded = recorded_observations(trace, observe)
        # Set past `__setattr__`, which refuses: problems are shared.
        vars(self).update(
            trace=trace,
            reward=reward or Reward(),
            alpha=alpha_range(alpha),
            recorded=recorded,
            layout=recorded.layout,
            _observe=tuple(observe),
        )
        if not self.reward.deterministic:
            self.reward.cost.check_model(trace.header.model)  # type: ignore[union-attr]
        vars(self).update(quality=_frozen(self.reward.quality_of(trace)))
        self._check_depth()
        vars(self).update(price=_frozen(self.reward.price_of(trace, trace.depths)))

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(
            f"a problem cannot be changed, as others share it: make one with another {name}"
        )

    def _check_depth(self) -> None:
        """Refuses a quality that reads deeper exits and does not say so."""
        end = (self.num_layers + 1) // 2
        first = self.trace.readout(slice(0, 8)).apply(lambda array: array[:, :end])
        same = np.allclose(self.reward.quality_of(first), self.quality[:8, :end], atol=1e-4)
        if not same and not QUALITIES.get(self.reward.quality).deeper:
            raise CeeGymError(
                f"quality {self.reward.quality!r} reads deeper exits than the one that is left: "
                "register it with deeper=True"
            )

    def __len__(self) -> int:
        """N."""
        return len(self.trace)

    @property
    def num_layers(self) -> int:
        """L."""
        return self.trace.num_layers

    @cached_property
    def memorized_layer(self) -> npt.NDArray[np.int64]:
        """Of each instance, int64 `[N]`, from 1."""
        return _frozen(memorized_layer(self.trace.correct))

    @cached_property
    def correct(self) -> npt.NDArray[np.bool_]:
        """Whether each exit is right, bool `[N, L]`."""
        return _frozen(self.trace.correct)

    @cached_property
    def prediction(self) -> npt.NDArray[np.int64]:
        """The class each exit gives, int64 `[N, L]`."""
        return _frozen(self.trace.prediction.astype(np.int64))

    @cached_property
    def states(self) -> "States":
        """The tables by state, as environments that step many at once read them."""
        return States(self)

    @property
    def alpha_column(self) -> int | None:
        """The column of an observation that each episode sets to its alpha, if there is one."""
        return int(self.layout["alpha"].start) if "alpha" in self.layout else None

    def rewards(
        self, alpha: float | npt.ArrayLike, rows: Rows = slice(None)
    ) -> npt.NDArray[np.float64]:
        """The reward of leaving at each exit, float64 `[B, L]`.

        Args:
            alpha: the price of one layer: a number, or one per instance `[B]`.
            rows: B of the instances; all by default.
        """
        price = np.asarray(alpha, dtype=np.float64).reshape(-1, 1) * self.price[rows]
        return self.quality[rows].astype(np.float64) - price

    def observe(
        self,
        rows: Rows = slice(None),
        alpha: float | npt.ArrayLike | None = None,
        layer: int | None = None,
    ) -> Floats:
        """The observations of some instances, float32 `[B, L, D]`, not to be written to.

        Args:
            rows: B of the instances; all by default.
            alpha: the price of one layer that the observations say, where they say one: a number,
                or one per instance `[B]`; by default the lowest.
            layer: from 1, to have those of this layer alone, `[B, D]`.
        """
        recorded = self.recorded
        observations = recorded[rows] if layer is None else recorded.of_layer(rows, layer)
        if self.alpha_column is None:
            return observations
        observations = np.array(observations)
        given = self.alpha[0] if alpha is None else alpha
        one_each = np.asarray(given).reshape(-1, *[1] * (observations.ndim - 2))
        observations[..., self.alpha_column] = one_each
        return observations

    def __reduce__(self) -> tuple[Any, ...]:
        observe = tuple(PARTS.full_name(part) for part in self._observe)
        return shared_problem, (self.trace, self.reward, observe, self.alpha)

    def __copy__(self) -> "Problem":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "Problem":
        return self


class States:
    """What each state shows, and what leaving it comes to; all read-only.

    A state is row `instance * L + layer - 1` of each of them.

    Args:
        problem: of N instances and L exits.

    Attributes:
        rows: the observations, float32 `[N * L, D]`; None where they are too large for memory.
        quality: float64 `[N * L]`.
        price: float64 `[N * L]`.
        prediction: int64 `[N * L]`.
        correct: bool `[N * L]`.
    """

    def __init__(self, problem: Problem) -> None:
        table = problem.recorded.table
        self.rows: Floats | None = None if table is None else table.reshape(-1, table.shape[-1])
        self.quality = _frozen(problem.quality.astype(np.float64)).reshape(-1)
        self.price = _frozen(problem.price.astype(np.float64)).reshape(-1)
        self.prediction = problem.prediction.reshape(-1)
        self.correct = problem.correct.reshape(-1)

    @cached_property
    def views(self) -> npt.NDArray[np.object_]:
        """A view of each row, `[N * L]`: making one takes longer than copying its row."""
        assert self.rows is not None
        return np.fromiter(self.rows, object, len(self.rows))


# A problem lives as long as an environment uses it, so that a thousand environments share one.
_problems: WeakValueDictionary[tuple[Any, ...], Problem] = WeakValueDictionary()


def shared_problem(
    trace: Trace, reward: Reward, observe: Sequence[str], alpha: float | Sequence[float]
) -> Problem:
    """The problem of these arguments; equal ones give the same object."""
    alpha = alpha_range(alpha)
    costs = reward.exit_cost(np.asarray(trace.header.depths)).tobytes()
    # Functions, not only their names, as a name may be given to another one.
    quality, parts = QUALITIES.get(reward.quality), [PARTS.get(name) for name in observe]
    key = (
        *(trace, quality, _key(reward.hardness), costs, reward.deterministic),
        *(tuple(observe), *parts, alpha),
    )
    problem = _problems.get(key)
    if problem is None:
        problem = _problems[key] = Problem(trace, reward, observe, alpha)
    return problem


def open_problem(
    recording: str | None = None,
    trace: Trace | str | os.PathLike[str] | None = None,
    split: str = "train",
    *,
    reward: Reward | str = "correctness",
    observe: Sequence[str] = OBSERVE,
    alpha: float | Sequence[float] = ALPHA,
) -> Problem:
    """The problem for the arguments of a recorded environment; equal ones give the same object.

    Args:
        recording: the id of a benchmark.
        trace: instead, the path or address of a recording or of a single trace, or an open one.
        split: of the recording.
        reward: see `cee_gym.Reward.named`.
        observe: see `Problem`.
        alpha: see `Problem`.

    Raises:
        CeeGymError: if there is no such trace, or an argument does not fit.
    """
    alpha = alpha_range(alpha)
    if isinstance(observe, str):
        raise CeeGymError(f"observe must name parts, such as {OBSERVE}, got {observe!r}")
    if trace is None:
        if recording is None:
            raise CeeGymError("EarlyExit needs a trace: give trace=PATH, or make a benchmark's id")
        trace = find_recording(recording)
    if not isinstance(trace, Trace):
        trace = open_split(trace, split)
    return shared_problem(trace, Reward.named(reward), observe, alpha)


def _key(hardness: Any) -> Any:
    if isinstance(hardness, str):
        return HARDNESS.get(hardness)
    return None if hardness is None else hardness.tobytes()


def _frozen(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The array, read-only; a copy where it is a view of another one."""
    array = array if array.base is None else array.copy()
    array.setflags(write=False)
    return array
