"""What a pipeline is to answer, by hand."""

from typing import Any

import numpy as np
import torch

THRESHOLD = 0.75


def by_hand(model: Any, tokenizer: Any, text: str, pair: str | None = None) -> dict[str, Any]:
    """One text through all layers; it leaves at the first that is confident."""
    with torch.inference_mode():
        probabilities = model(**tokenizer(text, pair, return_tensors="pt")).logits[0].softmax(dim=1)
    confident = [*(probabilities.amax(dim=1) > THRESHOLD).tolist(), True]
    layer = min(confident.index(True) + 1, len(probabilities))
    score, number = probabilities[layer - 1].max(dim=0)
    return {"label": model.labels[number], "score": score.item(), "exit_layer": layer}


def assert_same(found: Any, expected: Any) -> None:
    """The same labels and exit layers, and scores up to rounding."""
    assert [one["label"] for one in found] == [one["label"] for one in expected]
    assert [one["exit_layer"] for one in found] == [one["exit_layer"] for one in expected]
    scores = ([one["score"] for one in side] for side in (found, expected))
    np.testing.assert_allclose(*scores, rtol=1e-4)
