"""Metrics: how good predictions are, given the labels.

A metric of your own is one function:

>>> @register_metric("mistakes")
... def mistakes(labels, predictions):
...     return float((labels != predictions).mean())
>>> score(["mistakes", "accuracy"], np.array([0, 1]), np.array([0, 0]))
{'mistakes': 0.5, 'accuracy': 0.5}
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cee_gym.errors import CeeGymError
from cee_gym.registry import Registry

Classes = npt.NDArray[np.integer]
Function = Callable[[Classes, Classes], float]


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        function: of `[N]` labels and `[N]` predictions, both class numbers.
        most_classes: how many classes it is defined for; None for any number.
    """

    function: Function
    most_classes: int | None = None


METRICS: Registry[Metric] = Registry("metric")


def register_metric(name: str, most_classes: int | None = None) -> Callable[[Function], Function]:
    """A decorator that makes a function of labels and predictions known as a metric.

    Args:
        name: what tasks call it.
        most_classes: how many classes it is defined for; None for any number.

    Raises:
        CeeGymError: if the name is taken by another module.
    """

    def register(function: Function) -> Function:
        METRICS.add(name, Metric(function, most_classes), function.__module__)
        return function

    return register


@register_metric("accuracy")
def _accuracy(labels: Classes, predictions: Classes) -> float:
    return float((labels == predictions).mean())


# Tokens have no classes, so no task of classification takes it.
@register_metric("agreement", most_classes=0)
def _agreement(labels: Classes, predictions: Classes) -> float:
    """Of tokens: the share for which an exit says what the model says at full depth."""
    return float((labels == predictions).mean())


@register_metric("f1", most_classes=2)
def _f1(labels: Classes, predictions: Classes) -> float:
    """Of class 1."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, zero_division=0.0))


@register_metric("macro_f1")
def _macro_f1(labels: Classes, predictions: Classes) -> float:
    """The mean over the classes."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, average="macro", zero_division=0.0))


@register_metric("matthews")
def _matthews(labels: Classes, predictions: Classes) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predictions))


def check_metrics(metrics: Sequence[str], num_classes: int) -> None:
    """Refuses metrics that are unknown, or not defined for so many classes.

    Raises:
        CeeGymError: naming the metric, and those that are.
    """
    if not metrics:
        raise CeeGymError(f"at least one metric is needed: {', '.join(METRICS)}")
    for name in metrics:
        most = METRICS.get(name).most_classes
        if most is not None and num_classes > most:
            others = [one for one in METRICS if METRICS.get(one).most_classes is None]
            raise CeeGymError(
                f"metric {name} is defined for at most {most} classes, and there are "
                f"{num_classes}: use {' or '.join(others)}"
            )


def score(metrics: Sequence[str], labels: Classes, predictions: Classes) -> dict[str, float]:
    """The metrics of `[N]` predictions against `[N]` labels, by name.

    Each of cee-gym's own is in [0, 1], Matthews' correlation in [-1, 1].

    Raises:
        CeeGymError: if a metric is unknown.
    """
    return {name: float(METRICS.get(name).function(labels, predictions)) for name in metrics}
