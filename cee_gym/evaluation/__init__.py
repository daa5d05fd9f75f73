"""Evaluation: what a policy gets for the layers it runs."""

from cee_gym.evaluation.curve import Point, accuracy_speed_curve, choose_threshold, evaluate

__all__ = ["Point", "accuracy_speed_curve", "choose_threshold", "evaluate"]
