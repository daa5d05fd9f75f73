"""Pictures of an episode: the layers run so far, and what the classifier of each says."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cee_gym.errors import CeeGymError

MODES = ["ansi", "rgb_array"]
FPS = 2

Picture = npt.NDArray[np.uint8]

_CELL, _HEIGHT, _GAP = 32, 96, 4
_PAPER, _NOT_RUN, _RIGHT, _WRONG, _MARK = (
    np.array(colour, dtype=np.uint8)
    for colour in (
        (250, 250, 250),
        (226, 228, 232),
        (46, 160, 84),
        (214, 69, 65),
        (24, 28, 36),
    )
)


class Readings(NamedTuple):
    """What the classifiers of layers 1 to t say about an instance."""

    confidence: npt.NDArray[np.floating]
    """`[t]`."""
    prediction: npt.NDArray[np.integer[Any]]
    """`[t]`."""
    label: int


def checked_mode(mode: str | None) -> str | None:
    """Refuses a render mode that does not exist."""
    if mode is not None and mode not in MODES:
        raise CeeGymError(f"render_mode must be {' or '.join(MODES)} or None, got {mode!r}")
    return mode


def frame(mode: str, readings: Readings, num_layers: int, has_left: bool) -> str | Picture:
    """What `render()` gives in this mode."""
    draw = text if mode == "ansi" else picture
    return draw(readings, num_layers, has_left)


def text(readings: Readings, num_layers: int, has_left: bool) -> str:
    """Three lines: layers, confidence, and prediction; the exit layer stands in brackets.

    >>> readings = Readings(np.array([0.51, 0.97]), np.array([1, 0]), label=0)
    >>> print(text(readings, num_layers=3, has_left=True))
    layer           1    [2]   3
    confidence   0.51   0.97   .
    prediction      1      0   .   label 0
    """
    run = len(readings.confidence)
    dots = ["."] * (num_layers - run)
    layers = [str(layer) for layer in range(1, num_layers + 1)]
    if has_left:
        layers[run - 1] = f"[{run}]"
    rows = [
        ["layer", *layers],
        ["confidence", *(f"{value:.2f}" for value in readings.confidence), *dots],
        ["prediction", *(str(value) for value in readings.prediction), *dots],
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(num_layers + 1)]
    lines = [
        "   ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        ).rstrip()
        for row in rows
    ]
    lines[2] += f"   label {readings.label}"
    return "\n".join(lines)


def picture(readings: Readings, num_layers: int, has_left: bool) -> Picture:
    """A bar per layer, uint8 `[96, 32 * L, 3]`.

    Its height is the confidence; it is green where the classifier is right and red where it is
    wrong. Layers that were not run are grey. A dark base marks the exit.
    """
    out = np.empty((_HEIGHT, _CELL * num_layers, 3), dtype=np.uint8)
    out[:] = _PAPER
    full = _HEIGHT - 4 * _GAP
    floor = _GAP + full
    run = len(readings.confidence)
    for layer in range(num_layers):
        columns = slice(layer * _CELL + _GAP, (layer + 1) * _CELL - _GAP)
        out[_GAP:floor, columns] = _NOT_RUN
        if layer < run:
            height = max(1, round(full * float(readings.confidence[layer])))
            right = readings.prediction[layer] == readings.label
            out[floor - height : floor, columns] = _RIGHT if right else _WRONG
    if has_left:
        columns = slice((run - 1) * _CELL + _GAP, run * _CELL - _GAP)
        out[floor + _GAP : floor + 2 * _GAP, columns] = _MARK
    return out
