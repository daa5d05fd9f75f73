"""What exits answer, read off their logits by one formula for numpy and torch."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np

# Up to this many classes logits are kept; beyond it the gap stands in for them.
MOST_LABELS_WITH_LOGITS = 256

Array = Any  # of numpy or torch, or None


@dataclass(frozen=True, kw_only=True, eq=False)
class Readout:
    """What some exits answer, and how good that is. Arrays of numpy or torch.

    Attributes:
        loss: float32 `[..., L]`, the cross-entropy of each exit against the label, in nats; None
            where there are no labels.
        prediction: integers `[..., L]`, the class each exit gives; of equal ones the first.
        correct: bool `[..., L]`, whether that is the label; None where there are no labels.
        confidence: float32 `[..., L]`, the probability of that class.
        entropy: float32 `[..., L]`, the entropy of the class probabilities, in nats.
        logits: float32 `[..., L, C]`, or None.
        gap: float32 `[..., L]`, the difference of the two largest probabilities; None up to 256
            classes, where the logits tell it.
    """

    loss: Array
    prediction: Array
    correct: Array
    confidence: Array
    entropy: Array
    logits: Array = None
    gap: Array = None

    def apply(self, function: Callable[[Array], Array]) -> Self:
        """The readout with every array put through a function, such as one that moves it."""
        arrays = {one.name: getattr(self, one.name) for one in fields(self)}
        return type(self)(
            **{name: None if x is None else function(x) for name, x in arrays.items()}
        )


def log_softmax(logits: Array, xp: Any = np) -> Array:
    """Logarithms of the class probabilities, `[..., C]` as the logits.

    Args:
        logits: floats `[..., C]`.
        xp: the namespace of their library, as for `read_out`.
    """
    # torch has it as one operation; five small ones are felt next to a small layer.
    if hasattr(xp, "log_softmax"):
        return xp.log_softmax(logits, -1)
    shifted = logits - xp.max(logits, axis=-1, keepdims=True)
    return shifted - xp.log(xp.sum(xp.exp(shifted), axis=-1, keepdims=True))


def softmax(logits: Array, xp: Any = np) -> Array:
    """The class probabilities, `[..., C]`; see `log_softmax`."""
    if hasattr(xp, "softmax"):
        return xp.softmax(logits, -1)
    return xp.exp(log_softmax(logits, xp))


def gap_of(probs: Array, prediction: Array, xp: Any = np) -> Array:
    """The difference of the two largest class probabilities, `[...]`.

    Args:
        probs: floats `[..., C]`.
        prediction: integers `[...]`, the class of the largest; of equal ones any.
        xp: the namespace of their library, as for `read_out`.
    """
    classes = xp.arange(probs.shape[-1], device=probs.device)
    others = xp.where(classes == prediction[..., None], xp.zeros_like(probs), probs)
    return xp.max(probs, axis=-1) - xp.max(others, axis=-1)


def read_out(logits: Array, labels: Array | None = None, xp: Any = np) -> Readout:
    """Reads the logits of some exits.

    Args:
        logits: float32 `[..., C]`; the axis before C is that of the layers, where there is one.
        labels: integers 0 to C - 1 that broadcast with `[...]`, as `[N, 1]` does with `[N, L]`;
            None in deployment.
        xp: the array library as a namespace of the array API: numpy, or `array_api_compat.torch`.
    """
    log_p = log_softmax(logits, xp)
    p = xp.exp(log_p)
    prediction = xp.argmax(logits, axis=-1)
    confidence = xp.max(p, axis=-1)
    loss = correct = gap = None
    if labels is not None:
        labels = xp.astype(xp.broadcast_to(labels, prediction.shape), xp.int64, copy=False)
        loss = -xp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]
        correct = prediction == labels
    if logits.shape[-1] > MOST_LABELS_WITH_LOGITS:
        gap = gap_of(p, prediction, xp)
    return Readout(
        loss=loss,
        prediction=prediction,
        correct=correct,
        confidence=confidence,
        entropy=-xp.sum(p * log_p, axis=-1),
        logits=logits,
        gap=gap,
    )
