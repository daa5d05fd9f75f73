"""Evaluation: what a policy gets for the layers it runs."""

from cee_gym.evaluation.curve import Point, accuracy_speed_curve, choose_threshold, evaluate
from cee_gym.evaluation.guarantee import conformal_threshold, guaranteed_threshold

__all__ = [
    "Point",
    "accuracy_speed_curve",
    "choose_threshold",
    "conformal_threshold",
    "evaluate",
    "guaranteed_threshold",
]
