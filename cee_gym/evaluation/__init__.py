"""Evaluation: what a policy gets for the layers it runs."""

from cee_gym.evaluation.curve import Point, accuracy_speed_curve, evaluate, evaluate_policy
from cee_gym.evaluation.guarantee import conformal_threshold, guaranteed_threshold

__all__ = [
    "Point",
    "accuracy_speed_curve",
    "conformal_threshold",
    "evaluate",
    "evaluate_policy",
    "guaranteed_threshold",
]
