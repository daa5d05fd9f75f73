import numpy as np
import pytest

from cee_gym.envs.render import Readings, picture, text

READINGS = Readings(confidence=np.array([0.5, 0.25, 1.0]), prediction=np.array([1, 2, 1]), label=1)


@pytest.mark.parametrize("has_left", [False, True])
def test_text(has_left: bool) -> None:
    layers, confidence, prediction = text(READINGS, 5, has_left).splitlines()
    assert layers.split() == ["layer", "1", "2", "[3]" if has_left else "3", "4", "5"]
    assert confidence.split() == ["confidence", "0.50", "0.25", "1.00", ".", "."]
    assert prediction.split() == ["prediction", "1", "2", "1", ".", ".", "label", "1"]


def colours(drawn: np.ndarray, layer: int) -> list[str]:
    """The colours down the middle of a layer's bar."""
    named = {(46, 160, 84): "green", (214, 69, 65): "red", (226, 228, 232): "grey"}
    named |= {(24, 28, 36): "dark", (250, 250, 250): "paper"}
    return [named[tuple(pixel)] for pixel in drawn[:, 32 * layer - 16].tolist()]


def test_picture() -> None:
    drawn = picture(READINGS, 5, has_left=True)
    assert drawn.dtype == np.uint8
    assert drawn.shape == (96, 160, 3)
    right, wrong, sure, not_run = (colours(drawn, layer) for layer in (1, 2, 3, 4))
    assert right.count("green") == 40
    assert "red" not in right
    assert wrong.count("red") == 20
    assert sure.count("green") == 80
    assert not_run.count("grey") == 80
    assert "dark" in sure
    assert "dark" not in right


def test_exit_is_marked_only_once_it_has_happened() -> None:
    assert "dark" not in colours(picture(READINGS, 5, has_left=False), 3)
