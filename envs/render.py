"""Pictures of an episode: the stack of layers, what each exit says, and what full depth says.

| mode | what `render()` gives |
|---|---|
| `ansi` | a text |
| `rgb_array` | a picture, uint8 `[H, W, 3]` |
| `human` | nothing; `reset` and `step` show the picture in a window of matplotlib |
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from cee_gym.errors import CeeGymError

MODES = ["ansi", "rgb_array", "human"]
FPS = 2

Picture = npt.NDArray[np.uint8]

_WIDTH, _ROW, _MARGIN, _BAR = 640, 26, 14, 190
_PAPER, _INK, _FAINT, _NOT_RUN = (250, 250, 250), (24, 28, 36), (120, 126, 136), (226, 228, 232)
_RIGHT, _WRONG, _HERE = (46, 160, 84), (214, 69, 65), (33, 100, 200)
_LONGEST = 3  # lines of the text


@dataclass(frozen=True, eq=False)
class Readings:
    """What is known of an instance at layer t of L.

    Attributes:
        confidence: of the exits of layers 1 to t, `[t]`.
        prediction: their classes, integers `[t]`.
        label: the right class.
        names: of the classes; None where they are numbers.
        text: of the instance; None where it is not at hand.
        full_depth: the class that the last exit says; None where it has not run.
        scores: of the policy that is watched, at layers 1 to t; None where none is.
        threshold: above which that policy leaves.
    """

    confidence: npt.NDArray[np.floating]
    prediction: npt.NDArray[np.integer[Any]]
    label: int
    names: Sequence[str] | None = None
    text: str | None = None
    full_depth: int | None = None
    scores: npt.NDArray[np.floating] | None = None
    threshold: float = 0.5

    def name(self, number: int) -> str:
        """Of a class."""
        return str(number) if self.names is None else self.names[number]


def checked_mode(mode: str | None) -> str | None:
    """Refuses a render mode that does not exist."""
    if mode is not None and mode not in MODES:
        raise CeeGymError(f"render_mode must be {', '.join(MODES)} or None, got {mode!r}")
    return mode


def frame(mode: str, readings: Readings, num_layers: int, has_left: bool) -> str | Picture:
    """What `render()` gives in this mode."""
    draw = text if mode == "ansi" else picture
    return draw(readings, num_layers, has_left)


def text(readings: Readings, num_layers: int, has_left: bool) -> str:
    """A line for each layer, the last on top; the exit layer stands in brackets.

    >>> said = Readings(np.array([0.51, 0.97]), np.array([1, 0]), 0, ("no", "yes"), "is it?", 1)
    >>> print(text(said, num_layers=3, has_left=True))
    is it?
       3   .
      [2]  no   0.97  right
       1   yes  0.51  wrong
    label no; full depth says yes
    """
    lines = [] if readings.text is None else textwrap.wrap(readings.text, 78) or [""]
    run = len(readings.confidence)
    width = max((len(readings.name(int(number))) for number in readings.prediction), default=0)
    for layer in range(num_layers, 0, -1):
        if layer > run:
            lines.append(f"  {layer:>2}   .")
            continue
        shown = f"[{layer}]" if has_left and layer == run else f"{layer} "
        said = int(readings.prediction[layer - 1])
        right = "right" if said == readings.label else "wrong"
        line = f"{shown:>5}  {readings.name(said):<{width}}  {readings.confidence[layer - 1]:.2f}  "
        if readings.scores is not None:
            right += f"  exit score {readings.scores[layer - 1]:.2f}"
        lines.append(line + right)
    lines.append(_last_line(readings))
    return "\n".join(lines)


def _last_line(readings: Readings) -> str:
    said = f"label {readings.name(readings.label)}"
    if readings.full_depth is not None:
        said += f"; full depth says {readings.name(readings.full_depth)}"
    if readings.scores is not None:
        said += f"; the policy leaves above {readings.threshold:.2f}"
    return said


def picture(readings: Readings, num_layers: int, has_left: bool) -> Picture:
    """The stack of layers, the last on top, uint8 `[H, 640, 3]`.

    A layer that has run has a bar as long as its exit is confident, green where it is right and red
    where it is wrong, and what it says; a watched policy's score stands beside it. Layers that have
    not run are grey. An arrow marks the present layer, and a frame the exit.
    """
    from PIL import Image, ImageDraw

    font, small = _font(15), _font(12)
    lines = []
    if readings.text is not None:
        lines = textwrap.wrap(readings.text, 82, max_lines=_LONGEST, placeholder=" ...")
    top = _MARGIN + 20 * len(lines) + (8 if lines else 0)
    height = top + _ROW * num_layers + 34
    image = Image.new("RGB", (_WIDTH, height), _PAPER)
    draw = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        draw.text((_MARGIN, _MARGIN + 20 * number), line, _INK, font)
    run = len(readings.confidence)
    for layer in range(1, num_layers + 1):
        y = top + _ROW * (num_layers - layer)
        here = layer == run
        draw.text((_MARGIN + 16, y + 3), f"layer {layer}", _INK if layer <= run else _FAINT, font)
        left, right = _MARGIN + 96, _MARGIN + 96 + _BAR
        draw.rectangle((left, y + 3, right, y + _ROW - 4), _NOT_RUN)
        if layer <= run:
            said, sure = int(readings.prediction[layer - 1]), float(readings.confidence[layer - 1])
            colour = _RIGHT if said == readings.label else _WRONG
            draw.rectangle((left, y + 3, left + round(_BAR * sure), y + _ROW - 4), colour)
            says = f"{readings.name(said)[:22]}  {sure:.2f}"
            draw.text((right + 12, y + 3), says, _INK, font)
            if readings.scores is not None:
                score = f"exit score {readings.scores[layer - 1]:.2f}"
                draw.text((_WIDTH - 130, y + 5), score, _HERE if here else _FAINT, small)
        if here:
            draw.polygon(
                [(_MARGIN, y + 6), (_MARGIN + 10, y + _ROW / 2), (_MARGIN, y + _ROW - 7)], _HERE
            )
            if has_left:
                draw.rectangle((left - 3, y, _WIDTH - _MARGIN, y + _ROW - 1), None, _HERE, 2)
    draw.text((_MARGIN, height - 26), _last_line(readings), _FAINT, font)
    return np.asarray(image, dtype=np.uint8).copy()


def show(drawn: Picture, seconds: float) -> None:
    """Shows a picture in a window of matplotlib, the same one every time."""
    from matplotlib import pyplot

    height, width = drawn.shape[:2]
    figure = pyplot.figure("cee-gym", figsize=(width / 100, height / 100), dpi=100)
    figure.clear()
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.imshow(drawn)
    axes.axis("off")
    figure.canvas.draw_idle()
    if pyplot.get_backend().lower() != "agg":  # there is no window to wait for
        pyplot.pause(seconds)


@cache
def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)
