"""The observation: one flat float32 vector made of named parts.

| part | width | what it is | bounds |
|---|---|---|---|
| hidden | H | the pooled hidden state of the layer | those of float32 |
| layer | L | the layer, one-hot | 0, 1 |
| probs | C | the class probabilities its classifier gives | 0, 1 |
| entropy | 1 | their entropy, divided by log C | 0, 1 |
| confidence | 1 | the largest of them | 0, 1 |
| alpha | 1 | the price of one layer in this episode | its range, or 0 up where fixed |
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box

from cee_gym.errors import CeeGymError, did_you_mean
from cee_gym.traces.readout import log_softmax

Floats = npt.NDArray[np.floating]
Layout = dict[str, slice]


def layout_of(observe: Sequence[str], num_layers: int, width: int, num_labels: int) -> Layout:
    """Where each part stands in the observation.

    Args:
        observe: names of parts, in the order they are to have.
        num_layers: L.
        width: H.
        num_labels: C.

    Raises:
        CeeGymError: if a part is unknown or named twice, or there is none.

    >>> layout_of(("hidden", "layer"), num_layers=12, width=768, num_labels=2)
    {'hidden': slice(0, 768, None), 'layer': slice(768, 780, None)}
    """
    widths = {
        "hidden": width,
        "layer": num_layers,
        "probs": num_labels,
        "entropy": 1,
        "confidence": 1,
        "alpha": 1,
    }
    if isinstance(observe, str) or not observe:
        raise CeeGymError(f"observe must name parts, such as ('hidden', 'layer'), got {observe!r}")
    layout: Layout = {}
    start = 0
    for part in observe:
        if part not in widths:
            hint = did_you_mean(str(part), list(widths))
            raise CeeGymError(f"observe names an unknown part {part!r}: {hint}")
        if part in layout:
            raise CeeGymError(f"observe names {part!r} twice")
        layout[part] = slice(start, start + widths[part])
        start += widths[part]
    return layout


def width_of(layout: Layout) -> int:
    """D, the width of the whole observation."""
    return sum(where.stop - where.start for where in layout.values())


def space_of(layout: Layout, alpha: tuple[float, float]) -> Box:
    """The observation space, a float32 Box `[D]`."""
    low = np.zeros(width_of(layout), dtype=np.float32)
    high = np.ones_like(low)
    if "hidden" in layout:
        low[layout["hidden"]], high[layout["hidden"]] = -np.inf, np.inf
    if "alpha" in layout:
        low[layout["alpha"]], high[layout["alpha"]] = allowed_alpha(layout, alpha)
    limits = np.finfo(np.float32)  # infinite bounds would draw warnings from the checkers
    return Box(low.clip(limits.min), high.clip(None, limits.max), dtype=np.float32)


def allowed_alpha(layout: Layout, alpha: tuple[float, float]) -> tuple[float, float]:
    """What an episode may pay for a layer: a price in the range, where that is observed, or any."""
    low, high = alpha
    return alpha if "alpha" in layout and low < high else (0.0, np.inf)


def write(
    out: npt.NDArray[np.float32],
    layout: Layout,
    *,
    hidden: Floats,
    layer: Floats,
    logits: npt.NDArray[np.float32] | None,
    entropy: npt.NDArray[np.float32],
    confidence: npt.NDArray[np.float32],
    num_labels: int,
    alpha: float | Floats,
) -> None:
    """Writes observations.

    Args:
        out: `[..., D]`, written to.
        layout: of the D columns.
        hidden: `[..., H]`.
        layer: one-hot `[..., L]`.
        logits: `[..., C]`; None where they are not observed.
        entropy: `[...]`, in nats.
        confidence: `[...]`.
        num_labels: C.
        alpha: the price of one layer, a number or `[..., 1]`.
    """
    for part, where in layout.items():
        if part == "hidden":
            out[..., where] = hidden
        elif part == "layer":
            out[..., where] = layer
        elif part == "probs":
            assert logits is not None
            # Rounding can carry what is a probability past 1, out of the observation space.
            out[..., where] = np.exp(log_softmax(logits)).clip(0, 1)
        elif part == "entropy":
            out[..., where] = (entropy / np.log(max(num_labels, 2))).clip(0, 1)[..., None]
        elif part == "confidence":
            out[..., where] = confidence.clip(0, 1)[..., None]
        elif part == "alpha":
            out[..., where] = alpha
