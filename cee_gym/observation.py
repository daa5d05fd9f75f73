"""The observation: one flat float32 vector made of named parts.

| part | width | what it is | bounds |
|---|---|---|---|
| hidden | H | the state of the layer | those of float32 |
| layer | L | the layer, one-hot | 0, 1 |
| probs | C | the class probabilities its exit gives | 0, 1 |
| entropy | 1 | their entropy, divided by log C | 0, 1 |
| confidence | 1 | the largest of them | 0, 1 |
| margin | 1 | the difference of the two largest | 0, 1 |
| agreement | 1 | how many exits in a row, up to this one, give its class, divided by L | 0, 1 |
| previous | 3 | the `entropy` of the 3 exits before, the nearest first; 1 before layer 1 | 0, 1 |
| alpha | 1 | the price of one layer in this episode | its range, or 0 to a million where fixed |

`agreement` and `previous` show the path: with them a policy without a memory can do what the rules
`patience` and `pcee` do. Only `probs` needs logits, which are recorded up to 256 classes.

A part is one function, which serves recorded, live and deployed states alike. A module of your own
adds one:

    @register_observation("runner_up", width=1, low=0.0, high=0.5)
    def runner_up(seen):
        return seen.xp.sort(seen.probs, axis=-1)[..., -2:-1]
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box

from cee_gym.errors import CeeGymError
from cee_gym.registry import Registry
from cee_gym.reward import MOST_ALPHA
from cee_gym.traces.readout import gap_of, log_softmax, softmax

EXITS_BEFORE = 3  # whose entropies `previous` holds

Layout = dict[str, slice]
Array = Any  # of numpy or of torch
Floats = npt.NDArray[np.float32]


class Sizes(NamedTuple):
    """Of a backbone with exits: L exits, states H wide, C classes."""

    num_layers: int
    width: int
    num_labels: int


class Seen:
    """What n instances have shown at t exits in a row, as arrays `[n, t, ...]`.

    Args:
        xp: the array library, numpy or `array_api_compat.torch`.
        sizes: of the backbone.
        layers: the number of the first and the last of the t exits, from 1.
        alpha: the price of one layer: a number, or `[n, 1, 1]`; None where episodes differ in it.
        hidden: `[n, t, H]`.
        logits: float32 `[n, t, C]`; None where they were not recorded.
        confidence: `[n, t]`; by default computed from the logits.
        entropy: `[n, t]` in nats; by default computed from the logits.
        prediction: integers `[n, t]`; by default computed from the logits.
        gap: `[n, t]`; by default computed from the logits.
    """

    def __init__(
        self,
        xp: Any,
        sizes: Sizes,
        layers: tuple[int, int],
        alpha: Any,
        hidden: Array,
        logits: Array | None,
        *,
        confidence: Array | None = None,
        entropy: Array | None = None,
        prediction: Array | None = None,
        gap: Array | None = None,
    ) -> None:
        self.xp, self.sizes, self.layers = xp, sizes, layers
        self.hidden = hidden
        self._alpha = alpha
        self._logits = logits
        # Those that are given take the place of the cached properties.
        given = {"confidence": confidence, "entropy": entropy, "prediction": prediction, "gap": gap}
        for name, array in given.items():
            if array is not None:
                vars(self)[name] = array

    @property
    def alpha(self) -> Array:
        """The price of one layer, a number or `[n, 1, 1]`.

        Raises:
            CeeGymError: if each episode has its own, as those over a trace.
        """
        if self._alpha is None:
            raise CeeGymError(
                "a part of the observation is made of alpha, which each episode has its own of: "
                "observe 'alpha' beside it instead"
            )
        return self._alpha

    @property
    def logits(self) -> Array:
        """The class logits `[n, t, C]`.

        Raises:
            CeeGymError: if they were not recorded.
        """
        if self._logits is None:
            raise CeeGymError(
                f"the trace holds no logits, as it has {self.sizes.num_labels} classes, and a part "
                "of the observation is made of them: leave that part ('probs', for one) out"
            )
        return self._logits

    @cached_property
    def log_probs(self) -> Array:
        """Logarithms of the class probabilities, `[n, t, C]`."""
        return log_softmax(self.logits, self.xp)

    @cached_property
    def probs(self) -> Array:
        """The class probabilities, `[n, t, C]`."""
        return softmax(self.logits, self.xp)

    @cached_property
    def confidence(self) -> Array:
        """The largest class probability, `[n, t]`."""
        return self.xp.max(self.probs, axis=-1)

    @cached_property
    def entropy(self) -> Array:
        """The entropy of the class probabilities in nats, `[n, t]`."""
        return -self.xp.sum(self.probs * self.log_probs, axis=-1)

    @cached_property
    def prediction(self) -> Array:
        """The most probable class, `[n, t]`."""
        return self.xp.argmax(self.logits, axis=-1)

    @cached_property
    def gap(self) -> Array:
        """The difference of the two largest class probabilities, `[n, t]`."""
        return gap_of(self.probs, self.prediction, self.xp)


@dataclass(frozen=True)
class Part:
    """A part of an observation.

    Attributes:
        of: from what is seen `[n, t, ...]` to the part `[n, t, width]`, or what broadcasts to it.
        width: its number of columns.
        low: their lowest value.
        high: their highest value.
        path: whether it reads exits before the present one. The t exits are then all up to the
            present one; else they may be the present one alone.
    """

    of: Callable[[Seen], Array]
    width: Callable[[Sizes], int]
    low: float
    high: float
    path: bool = False


PARTS: Registry[Part] = Registry("part of an observation")


def register_observation(
    name: str,
    *,
    width: int | Callable[[Sizes], int] = 1,
    low: float,
    high: float,
    path: bool = False,
) -> Callable[[Callable[[Seen], Array]], Callable[[Seen], Array]]:
    """Makes a function a part of observations; see `Part`.

    Args:
        name: what `observe` is to call it.
        width: a number, or a function of the sizes of the backbone.
        low: the lowest value of a column.
        high: the highest.
        path: whether it reads exits before the present one.
    """

    def register(of: Callable[[Seen], Array]) -> Callable[[Seen], Array]:
        columns = (lambda _: width) if isinstance(width, int) else width
        PARTS.add(name, Part(of, columns, low, high, path), of.__module__)
        return of

    return register


@register_observation("hidden", width=lambda sizes: sizes.width, low=-np.inf, high=np.inf)
def _hidden(seen: Seen) -> Array:
    return seen.hidden


@register_observation("layer", width=lambda sizes: sizes.num_layers, low=0.0, high=1.0)
def _layer(seen: Seen) -> Array:
    xp, (first, last) = seen.xp, seen.layers
    one_hot = xp.eye(seen.sizes.num_layers, dtype=xp.float32, device=seen.hidden.device)
    return one_hot[None, first - 1 : last]


@register_observation("probs", width=lambda sizes: sizes.num_labels, low=0.0, high=1.0)
def _probs(seen: Seen) -> Array:
    # Rounding can carry what is a probability past 1, out of the observation space.
    return seen.xp.clip(seen.probs, 0.0, 1.0)


@register_observation("entropy", low=0.0, high=1.0)
def _entropy(seen: Seen) -> Array:
    return _normal_entropy(seen)[..., None]


def _normal_entropy(seen: Seen) -> Array:
    """The entropy divided by log C, `[n, t]`, from 0 to 1."""
    scale = float(np.log(max(seen.sizes.num_labels, 2)))
    return seen.xp.clip(seen.entropy / scale, 0.0, 1.0)


@register_observation("confidence", low=0.0, high=1.0)
def _confidence(seen: Seen) -> Array:
    return seen.confidence[..., None]


@register_observation("margin", low=0.0, high=1.0)
def _margin(seen: Seen) -> Array:
    return seen.xp.clip(seen.gap, 0.0, 1.0)[..., None]


@register_observation("agreement", low=0.0, high=1.0, path=True)
def _agreement(seen: Seen) -> Array:
    xp, given = seen.xp, seen.prediction
    same = xp.astype(given[:, 1:] == given[:, :-1], xp.float32)
    run = [xp.ones(given.shape[0], dtype=xp.float32, device=seen.hidden.device)]
    for layer in range(same.shape[1]):
        run.append(run[-1] * same[:, layer] + 1)  # from 1 again where it changed
    return xp.stack(run, axis=1)[..., None] / seen.sizes.num_layers


@register_observation("previous", width=EXITS_BEFORE, low=0.0, high=1.0, path=True)
def _previous(seen: Seen) -> Array:
    xp, entropy = seen.xp, _normal_entropy(seen)
    size, steps = entropy.shape
    # Before layer 1 nothing is certain, as for the rule `pcee`.
    nothing = xp.ones((size, EXITS_BEFORE), dtype=entropy.dtype, device=seen.hidden.device)
    padded = xp.concat([nothing, entropy], axis=1)
    starts = range(EXITS_BEFORE - 1, -1, -1)
    return xp.stack([padded[:, start : start + steps] for start in starts], axis=-1)


@register_observation("alpha", low=0.0, high=np.inf)
def _alpha(seen: Seen) -> Array:
    alpha = seen.xp.asarray(seen.alpha, dtype=seen.xp.float32, device=seen.hidden.device)
    return seen.xp.reshape(alpha, (-1, 1, 1))


def layout_of(observe: Sequence[str], sizes: Sizes) -> Layout:
    """The columns of each part of an observation.

    Args:
        observe: names of parts, in the order they are to have; `MODULE:NAME` imports MODULE.
        sizes: of the backbone.

    Raises:
        CeeGymError: if a part is unknown or named twice, or there is none.

    >>> layout_of(("hidden", "layer"), Sizes(num_layers=12, width=768, num_labels=2))
    {'hidden': slice(0, 768, None), 'layer': slice(768, 780, None)}
    """
    if isinstance(observe, str) or not observe:
        raise CeeGymError(f"observe must name parts, such as ('hidden', 'layer'), got {observe!r}")
    layout: Layout = {}
    start = 0
    for given in observe:
        width = PARTS.get(str(given)).width(sizes)
        name = str(given).rpartition(":")[2]
        if name in layout:
            raise CeeGymError(f"observe names {name!r} twice")
        layout[name] = slice(start, start + width)
        start += width
    return layout


def width_of(layout: Mapping[str, slice]) -> int:
    """D, the width of the whole observation."""
    return sum(where.stop - where.start for where in layout.values())


def space_of(layout: Layout, alpha: tuple[float, float]) -> Box:
    """The observation space, a float32 Box `[D]`."""
    low = np.zeros(width_of(layout), dtype=np.float32)
    high = np.ones_like(low)
    for name, where in layout.items():
        part = PARTS.get(name)
        bounds = allowed_alpha(layout, alpha) if name == "alpha" else (part.low, part.high)
        low[where], high[where] = bounds
    limits = np.finfo(np.float32)  # infinite bounds would draw warnings from the checkers
    return Box(low.clip(limits.min), high.clip(None, limits.max), dtype=np.float32)


def allowed_alpha(layout: Layout, alpha: tuple[float, float]) -> tuple[float, float]:
    """What an episode may pay for a layer: a price in the range, where that is observed, or any."""
    low, high = alpha
    return alpha if "alpha" in layout and low < high else (0.0, MOST_ALPHA)


def needs_path(parts: Sequence[str]) -> bool:
    """Whether one of these parts reads exits before the present one."""
    return any(PARTS.get(name).path for name in parts)


def observe_into(out: Floats, layout: Layout, seen: Seen) -> None:
    """Writes the observations of numpy arrays into float32 `[n, t, D]`."""
    for name, where in layout.items():
        out[..., where] = _show(name, seen)


def observe_last(parts: Sequence[str], seen: Seen) -> Array:
    """The observation of the last of the t exits, float32 `[n, D]`, in the array library of `seen`.

    Args:
        parts: in order.
        seen: what n instances have shown.
    """
    xp, size, columns = seen.xp, seen.hidden.shape[0], []
    for name in parts:
        column = _show(name, seen)[:, -1]
        # To call what does nothing takes time that shows next to a small layer.
        if column.shape[0] != size:
            column = xp.broadcast_to(column, (size, column.shape[1]))
        if column.dtype != xp.float32:
            column = xp.astype(column, xp.float32)
        columns.append(column)
    return columns[0] if len(columns) == 1 else xp.concat(columns, axis=1)


def _show(name: str, seen: Seen) -> Array:
    """A part, `[n, t, width]`, or what broadcasts to it.

    Raises:
        CeeGymError: if its function gives another shape.
    """
    part = PARTS.get(name)
    shown, width = part.of(seen), part.width(seen.sizes)
    if shown.ndim != 3 or shown.shape[2] != width:
        raise CeeGymError(
            f"part {name!r} of an observation must give [n, t, {width}], as it was registered, "
            f"got {list(shown.shape)}"
        )
    return shown
