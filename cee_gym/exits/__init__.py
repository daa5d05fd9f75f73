"""What is read off a layer: a state, and what that exit would answer."""

from cee_gym.exits.classifier import (
    MultiExitConfig,
    MultiExitModel,
    MultiExitOutput,
    load_model,
)
from cee_gym.exits.reader import ClassifierExit, EarlyExitModel, ExitReader

__all__ = [
    "ClassifierExit",
    "EarlyExitModel",
    "ExitReader",
    "MultiExitConfig",
    "MultiExitModel",
    "MultiExitOutput",
    "load_model",
]
